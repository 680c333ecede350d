"""What is trained on: tokens, captions, and candidates that are never the picture's own."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.errors import InputError
from arrag_engine.grid import NEIGHBORHOODS
from arrag_engine.index import create_index, load_index, save_index
from arrag_engine.retrieval import make_retriever
from arrag_engine.train import Examples, TrainSettings, prepare_examples, retrieve_codes
from arrag_engine.train.data import Batches
from tests import slow
from tests.tiny import tiny_index, tiny_model, tiny_source

CPU = torch.device("cpu")
CAUSAL_4 = NEIGHBORHOODS["causal-4"]


def write_pictures(folder, count=4, caption="a red car", seed=0):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        noise = np.random.default_rng((seed, i)).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        if caption:
            (folder / f"{i}.txt").write_text(caption)
    return folder


def digests_of(index, rows):
    return np.asarray(index.sources.sha256)[rows]


def retriever_for(model, index):
    return make_retriever(index, model.config.grid, model.vq.codebook(CPU))


def brute_force(index, codebook, grid, own, k):
    """Codes [N, k] of the nearest patches of pictures other than `own`."""
    found = np.full((len(grid), k), -1)
    patches = [p for p in slow.patches(index, CAUSAL_4) if p[2] not in own]
    for position in range(len(grid)):
        if slow.is_active(index.grid, CAUSAL_4, "skip", position):
            query = slow.key(codebook[grid], index.grid, CAUSAL_4, position)
            ranked = sorted(patches, key=lambda p: ((p[0] - query) ** 2).sum())[:k]
            found[position, : len(ranked)] = [code for _, code, _, _ in ranked]
    return found


@pytest.mark.parametrize("k", [3, 200])
def test_codes_are_the_nearest_of_other_pictures(model, index, k):
    """A picture of the index would find itself first: its own patches are exact matches."""
    retriever = retriever_for(model, index)
    tokens = index.tokens[[1, 3]].astype(np.int64)
    found = retrieve_codes(retriever, tokens, digests_of(index, [1, 3]), k)
    for row, own in enumerate((1, 3)):
        wanted = brute_force(index, index.codebook, tokens[row], {own}, k)
        assert np.array_equal(found[row], wanted)
        itself = brute_force(index, index.codebook, tokens[row], set(), k)
        assert not np.array_equal(found[row], itself)


def test_every_copy_of_a_picture_is_left_out(model, index):
    """The same file may be in the index under several names or crops."""
    sources = [tiny_source(i) for i in (0, 1, 1, 1, 4)]
    index = create_index(index.grid, index.tokens, index.vectors, index.codebook, sources)
    retriever = retriever_for(model, index)
    tokens = index.tokens[[2]].astype(np.int64)
    found = retrieve_codes(retriever, tokens, digests_of(index, [2]), 5)
    assert np.array_equal(found[0], brute_force(index, index.codebook, tokens[0], {1, 2, 3}, 5))


def test_an_index_of_nothing_but_the_picture_gives_nothing(model):
    index = tiny_index(model, images=1)
    tokens = index.tokens.astype(np.int64)
    found = retrieve_codes(retriever_for(model, index), tokens, digests_of(index, [0]), 4)
    assert (found == -1).all()


def test_an_index_that_does_not_know_its_pictures_is_refused(model, index):
    sources = [replace(tiny_source(i), sha256="" if i == 2 else tiny_source(i).sha256)
               for i in range(5)]  # fmt: skip
    index = create_index(index.grid, index.tokens, index.vectors, index.codebook, sources)
    with pytest.raises(InputError, match="lacks the SHA-256 of its pictures"):
        retrieve_codes(
            retriever_for(model, index), index.tokens[:1].astype(np.int64), np.zeros((1, 32)), 2
        )


def test_pictures_of_a_folder_never_find_themselves_in_an_index_built_from_it(tmp_path, run, model):
    """All the way: files to index, files to examples."""
    write_pictures(tmp_path / "pictures")
    code, _, err = run("build --model {model} --images {tmp}/pictures --out {tmp}/i.safetensors")
    assert code == 0, err
    index = load_index(tmp_path / "i.safetensors")
    examples = prepare_examples(model, [tmp_path / "pictures"], index, 4)
    assert np.array_equal(examples.tokens, index.tokens)
    for i in range(4):
        wanted = brute_force(index, index.codebook, examples.tokens[i], {i}, 4)
        assert np.array_equal(examples.codes[i], wanted)
    shutil.copyfile(tmp_path / "pictures" / "0.png", tmp_path / "pictures" / "copy.png")
    (tmp_path / "pictures" / "copy.txt").write_text("a copy")
    assert len(prepare_examples(model, [tmp_path / "pictures"], index, 4)) == 4


def test_several_folders_are_joined_and_unreadable_pictures_named(tmp_path, model):
    one, two = write_pictures(tmp_path / "a", 2), write_pictures(tmp_path / "b", 3, seed=1)
    (two / "bad.png").write_bytes(b"bad")
    (two / "bad.txt").write_text("bad")
    examples = prepare_examples(model, [one, two], None, 3)
    assert len(examples) == len(examples.captions) == 5
    assert examples.codes.shape == (5, 36, 3)
    assert (examples.codes == -1).all()
    assert not examples.active.any()
    assert [line.split(":")[0] for line in examples.skipped] == ["bad.png"]


def test_an_index_can_be_trained_on_as_it_is(tmp_path, model, index):
    """Its tokens need no encoding; its pictures do not find themselves either."""
    save_index(index, tmp_path / "i.safetensors")
    examples = prepare_examples(model, [tmp_path / "i.safetensors"], index, 3)
    assert np.array_equal(examples.tokens, index.tokens)
    assert examples.captions == [f"picture {i}" for i in range(5)]
    wanted = brute_force(index, index.codebook, examples.tokens[2], {2}, 3)
    assert np.array_equal(examples.codes[2], wanted)
    save_index(tiny_index(tiny_model(9)), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="the index was built with another VQ"):
        prepare_examples(model, [tmp_path / "other.safetensors"], None, 3)


def test_a_picture_without_a_caption_is_refused_by_name(tmp_path, model):
    folder = write_pictures(tmp_path / "a", 3)
    (folder / "1.txt").unlink()
    with pytest.raises(InputError, match=r"1 of 3 pictures in .* 1\.png; write .* 1\.txt"):
        prepare_examples(model, [folder], None, 3)


def test_a_folder_without_readable_pictures_is_refused(tmp_path, model):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"no readable picture; x\.png: not a readable"):
        prepare_examples(model, [tmp_path], None, 3)


def test_an_index_for_another_vq_is_refused(tmp_path, model):
    folder = write_pictures(tmp_path / "a", 1)
    with pytest.raises(InputError, match="the index was built with another VQ"):
        prepare_examples(model, [folder], tiny_index(tiny_model(9)), 3)


def examples_of(count, k=4):
    rng = np.random.default_rng(0)
    return Examples(
        rng.integers(0, 64, (count, 36)),
        ["a red car" if i % 2 else "two apples red" for i in range(count)],
        rng.integers(0, 256, (count, 32)).astype(np.uint8),
        rng.integers(0, 64, (count, 36, k)).astype(np.int32),
        np.ones(36, bool),
    )


def test_the_split_depends_on_the_pictures_alone():
    examples = examples_of(20)
    train, held_out = examples.split(0.25)
    assert (len(train), len(held_out)) == (15, 5)
    back = examples.take(np.arange(20)[::-1]).split(0.25)[1]
    assert {d.tobytes() for d in held_out.digests} == {d.tobytes() for d in back.digests}
    both = np.concatenate((train.digests, held_out.digests))
    assert len(np.unique(both, axis=0)) == 20


def test_too_few_pictures_are_refused():
    with pytest.raises(InputError, match="1 pictures are too few to train on with 1 held out"):
        examples_of(1).split(0.1)
    assert len(examples_of(1).split(0)[0]) == 1


@pytest.fixture(scope="module")
def encoder(model_file):
    return load_checkpoint(model_file, torch.float32).prompt_encoder


def test_an_epoch_takes_every_picture_once_in_an_order_of_its_own(encoder):
    examples = examples_of(7)
    batches = Batches(examples, encoder, TrainSettings(caption_dropout=0))
    stream = batches.training(0, 21, CPU).tokens.numpy()
    epochs = [[row.tobytes() for row in stream[e * 7 : e * 7 + 7]] for e in range(3)]
    every = {row.tobytes() for row in examples.tokens}
    assert all(set(epoch) == every for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_stream_is_the_same_however_it_is_cut(encoder):
    batches = Batches(examples_of(7), encoder, TrainSettings(caption_dropout=0.5))
    whole = batches.training(3, 6, CPU)
    parts = [batches.training(3, 2, CPU), batches.training(5, 4, CPU)]
    assert torch.equal(whole.codes, torch.cat([p.codes for p in parts]))
    assert torch.equal(whole.blended, torch.cat([p.blended for p in parts]))


def test_candidates_are_shuffled_or_drawn_from_a_pool(encoder):
    examples = examples_of(3, k=8)
    examples = replace(examples, codes=np.tile(np.arange(8, dtype=np.int32), (3, 36, 1)))
    for candidates in (8, 3):
        settings = TrainSettings(candidates=candidates, pool=8)
        batches = Batches(examples, encoder, settings)
        codes = batches.training(0, 30, CPU).codes
        assert codes.shape == (30, 36, candidates)
        assert (codes.sort(-1).values.diff(dim=-1) > 0).all(), "a candidate came twice"
        assert len(codes.flatten(0, 1).unique(dim=0)) > 100
        plain = batches.plain(np.arange(3), CPU).codes
        assert torch.equal(plain, torch.arange(candidates).expand(3, 36, -1))


def test_captions_are_blanked_as_often_as_asked_and_some_of_them_unblended(encoder):
    settings = TrainSettings(caption_dropout=0.4, blend_dropout=0.25)
    batch = Batches(examples_of(10), encoder, settings).training(0, 1000, CPU)
    blank = torch.tensor(
        [
            (row[gap + 1 : -1] == encoder.pad_id).all().item()
            for row, gap in zip(batch.text, batch.padding, strict=True)
        ]
    )
    assert blank.float().mean().item() == pytest.approx(0.4, abs=0.05)
    assert not ((batch.blended == 0) & ~blank).any()
    silent = (batch.blended == 0).sum() / blank.sum()
    assert silent.item() == pytest.approx(0.25, abs=0.06)
    assert (batch.text[:, -1] == encoder.begin_of_image_id).all()


def test_prompts_of_different_lengths_are_padded_on_the_left(encoder):
    batch = Batches(examples_of(2), encoder, TrainSettings()).plain(np.arange(2), CPU)
    texts = ["two apples red", "a red car"]
    for row, gap, text in zip(batch.text.tolist(), batch.padding, texts, strict=True):
        assert row[gap:] == encoder.encode(text).ids
        assert row[:gap] == [encoder.pad_id] * gap
