"""What the base draws itself: drawn once, cached, mixed in, kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.retrieval import make_retriever
from arrag_engine.train import RunFolder, TrainSettings, draw_own, retrieve_codes
from arrag_engine.train import rehearsal as rehearsal_module
from arrag_engine.train.data import Batches
from arrag_engine.train.loss import Learner
from arrag_engine.train.rehearsal import EACH, MEASURED_OWN
from tests.train.test_begin import fresh
from tests.train.test_data import examples_of

CPU = torch.device("cpu")
SETTINGS = TrainSettings(
    rank=4, blender_every=1, candidates=3, batch=4, caption_dropout=0.0, rehearse_pictures=8
)


@pytest.fixture
def base(model_file):
    return load_checkpoint(model_file, torch.float32)


def draw(base, index, folder, settings=SETTINGS, learnt=("two apples",), **more):
    run = RunFolder(folder)
    run.begin({})
    return draw_own(base, index, learnt, settings, run, CPU, **more)


def same(one, two):
    pairs = [(getattr(one, n), getattr(two, n)) for n in ("tokens", "digests", "codes", "active")]
    return one.captions == two.captions and all(np.array_equal(a, b) for a, b in pairs)


def test_the_base_draws_its_own_pictures_and_looks_patches_up_for_them(base, index, tmp_path):
    ticks = []
    own = draw(base, index, tmp_path, progress=lambda *tick: ticks.append(tick))
    assert len(own) == 8 + MEASURED_OWN
    assert set(own.captions) == {"a car", "a red car"}
    assert ticks[-1] == (len(own) // EACH, len(own) // EACH)
    assert len(np.unique(own.tokens, axis=0)) > len(own) / 2
    prompt = base.prompt_encoder.encode(own.captions[EACH])
    seeds = np.random.SeedSequence((0, 4, 1)).generate_state(EACH).tolist()
    sampling = replace(base.sampling, temperature=1.0, top_p=0.95)
    wanted = draw_pictures(base.model, Recipe(prompt.ids, prompt.unconditional, sampling), seeds)
    assert np.array_equal(own.tokens[EACH : 2 * EACH], wanted.tokens.flatten(1).numpy())
    retriever = make_retriever(index, base.model.config.grid, base.model.vq.codebook(CPU))
    wanted = retrieve_codes(retriever, own.tokens, own.digests, 3)
    assert np.array_equal(own.codes, wanted)
    assert np.array_equal(own.active, retriever.active)


def test_drawing_goes_on_where_it_stopped_and_is_not_done_twice(base, index, tmp_path, monkeypatch):
    wanted = draw(base, index, tmp_path / "whole")
    real = rehearsal_module.draw_caption

    def killed(base, caption, number, *more):
        if number == 3:
            raise KeyboardInterrupt
        return real(base, caption, number, *more)

    with monkeypatch.context() as patch:
        patch.setattr(rehearsal_module, "draw_caption", killed)
        with pytest.raises(KeyboardInterrupt):
            draw(base, index, tmp_path / "stopped")
    assert len(RunFolder(tmp_path / "stopped").load_own()) == 3 * EACH
    assert same(draw(base, index, tmp_path / "stopped"), wanted)
    monkeypatch.setattr(rehearsal_module, "draw_caption", lambda *_: pytest.fail("drawn again"))
    assert same(draw(base, index, tmp_path / "stopped"), wanted)


def test_nothing_is_drawn_where_nothing_is_to_be_kept(base, index, tmp_path):
    assert draw(base, index, tmp_path, replace(SETTINGS, rehearse=0.0)) is None
    assert draw(base, index, tmp_path, learnt=["a red car"]) is None
    assert not RunFolder(tmp_path).own.exists()


def test_without_an_index_nothing_is_looked_up(base, tmp_path):
    own = draw(base, None, tmp_path, replace(SETTINGS, retrieval=False))
    assert own.codes.shape[-1] == 0
    assert not own.active.any()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_own_pictures_have_their_share_of_the_stream(base, share):
    pictures, own = examples_of(7), examples_of(5)
    own = replace(own, tokens=own.tokens[::-1] * 0 + np.arange(5)[:, None])
    settings = replace(SETTINGS, rehearse=share)
    batches = Batches(pictures, base.prompt_encoder, settings, own)
    stream = batches.training(0, 140, CPU)
    assert stream.own.sum().item() == 140 * share
    drawn = stream.tokens[stream.own].numpy()
    assert (drawn == drawn[:, :1]).all(), "a picture was taken for one of the model's own"
    assert set(drawn[:5, 0]) == set(range(5)), "one came twice in an epoch"
    first = [row.tobytes() for row in stream.tokens[~stream.own][:7].numpy()]
    assert set(first) == {row.tobytes() for row in pictures.tokens}
    parts = torch.cat([batches.training(0, 9, CPU).tokens, batches.training(9, 8, CPU).tokens])
    assert torch.equal(stream.tokens[:17], parts)


def test_without_own_pictures_the_stream_is_as_without_rehearsal(base):
    streams = [
        Batches(examples_of(7), base.prompt_encoder, replace(SETTINGS, rehearse=share))
        for share in (0.0, 0.5)
    ]
    one, two = (stream.training(0, 20, CPU) for stream in streams)
    assert torch.equal(one.tokens, two.tokens)
    assert not two.own.any()


def test_the_loss_of_own_pictures_is_that_of_the_bases_distribution(base):
    """Least where the adapter changes nothing: then it is the entropy."""
    settings = replace(SETTINGS, rehearse=0.5, init="zero", dropout=0.0)
    batches = Batches(examples_of(8), base.prompt_encoder, settings, examples_of(8))
    batch = batches.training(0, 4, CPU)
    assert batch.own.tolist() == [False, True, False, True]
    adapter = fresh(base, settings)
    learner = Learner(base.model, adapter, settings).eval()
    losses = learner(batch)
    plain = learner(replace(batch, own=torch.zeros(4) > 0))
    torch.testing.assert_close(losses[::2], plain[::2])
    for row in (1, 3):
        ids = batch.text[row : row + 1, batch.padding[row] :]
        x = torch.cat(
            (base.model.embed_text(ids), base.model.embed_codes(batch.tokens[row : row + 1, :-1])),
            dim=1,
        )
        p = base.model.logits(x)[0, -36:].softmax(-1)
        entropy = -(p * p.log()).sum(-1)
        torch.testing.assert_close(losses[row], entropy, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        adapter.gen_head.vision_head.weight.mul_(1.5)
    assert (learner(batch)[1::2].mean(1) > losses[1::2].mean(1)).all()
