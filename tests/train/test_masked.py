"""Training for a model that fills its grid in any order: masks, look-ups, loss, the whole run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.errors import InputError
from arrag_engine.faid import AdapterConfig, assemble
from arrag_engine.faid.blender import PatchBlender
from arrag_engine.faid.hook import MaskedPass, slot_table
from arrag_engine.grid import Grid
from arrag_engine.retrieval import Retriever
from arrag_engine.train import Examples, Place, RunFolder, TrainSettings, score, train_adapter
from arrag_engine.train import loop as loop_module
from arrag_engine.train.begin import new_adapter
from arrag_engine.train.data import Batches
from arrag_engine.train.loss import Learner, base_losses
from arrag_engine.train.masking import Masks, masks_for
from tests.models.slow_showo import slow_logits
from tests.models.slow_showo_faid import adapted_logits, window
from tests.tiny import tiny_adapter
from tests.tiny_showo import showo_folder, sign_index, tiny_showo

CPU = torch.device("cpu")
HERE = Place(CPU)
QUICK = TrainSettings(
    steps=6, batch=2, accumulation=2, rank=4, alpha=8.0, every=3, blender_every=1, candidates=4,
    held_out=0.25,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _gradients():
    with torch.inference_mode(False), torch.enable_grad():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = showo_folder(tmp_path_factory.mktemp("models") / "show-o", tiny_showo())
    return load_checkpoint(folder, torch.float32)


@pytest.fixture(scope="module")
def index():
    return sign_index()


def examples_of(index, count=6):
    """Pictures of the index itself, and further ones."""
    rng = np.random.default_rng(1)
    tokens = np.concatenate((index.tokens[:count], rng.integers(0, 64, (max(0, count - 6), 36))))
    digests = rng.integers(0, 256, (count, 32)).astype(np.uint8)
    known = min(count, len(index.tokens))
    digests[:known] = np.asarray(index.sources.sha256)[:known]
    captions = ["a red car" if i % 2 else "two apples" for i in range(count)]
    none = np.full((count, 36, 0), -1, np.int32)
    return Examples(tokens.astype(np.int64), captions, digests, none, np.zeros(36, bool))


def batches_of(base, index, examples=None, settings=QUICK):
    masks = masks_for(base, index, settings)
    return Batches(examples or examples_of(index), base.prompt_encoder, settings, masks=masks)


def trained(base, index, tmp_path, settings=QUICK, name="run", examples=None, **more):
    run = RunFolder(tmp_path / name)
    run.begin({})
    examples = examples or examples_of(index, 8)
    return run, train_adapter(base, examples, settings, run, HERE, index=index, **more)


def same(one, two):
    mine, its = one.state_dict(), two.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[n], its[n]) for n in mine)


def test_the_shares_of_unknown_tokens_follow_the_cosine():
    masks, rng = Masks(100, 0, 0), np.random.default_rng(0)
    shares = [(~masks.known(number, rng)).mean() for number in range(64)]
    wanted = np.cos((np.arange(64)[::-1] + 0.5) / 64 * math.pi / 2)
    np.testing.assert_allclose(np.sort(shares), wanted, atol=0.04)
    assert (~Masks(4, 0, 0).known(0, rng)).sum() >= 1
    hidden = np.mean([~masks.known(3, rng) for _ in range(400)], axis=0)
    assert hidden.std() < 0.05, "some places are hidden more often than others"


def test_what_is_found_depends_on_what_is_known_and_is_never_the_pictures_own(base, index):
    masks, examples = masks_for(base, index, QUICK), examples_of(index)
    rng = np.random.default_rng(3)
    known = rng.random((6, 36)) < 0.3
    each = [masks.found(*one) for one in zip(examples.tokens, known, examples.digests, strict=True)]
    codes, active = (np.stack(parts) for parts in zip(*each, strict=True))
    assert not (active & known).any()
    for picture, place in ((0, 7), (2, 14), (5, 35)):
        around = [
            (place // 6 + r) * 6 + place % 6 + c
            for r in (-1, 0, 1) for c in (-1, 0, 1)
            if (r, c) != (0, 0) and 0 <= place // 6 + r < 6 and 0 <= place % 6 + c < 6
        ]  # fmt: skip
        seen = [p for p in around if known[picture, p]]
        assert active[picture, place] == (bool(seen) and not known[picture, place])
    for picture, place in np.argwhere(active)[:25]:
        ranked = sorted(
            (distance(index, examples, known, picture, place, other, cell), other * 36 + cell)
            for other in set(range(6)) - {picture}
            for cell in range(36)
        )[:4]
        wanted = [int(index.tokens.ravel()[number]) for far, number in ranked if far < math.inf]
        assert [int(code) for code in codes[picture, place] if code >= 0] == wanted


def distance(index, examples, known, picture, place, other, cell):
    """Between the known surroundings of a place and those of a cell; a cell that lacks one of these
    neighbours is none."""
    total = 0.0
    for r in (-1, 0, 1):
        for c in (-1, 0, 1):
            (row, column), (there, beside) = divmod(place, 6), divmod(cell, 6)
            asked = 0 <= row + r < 6 and 0 <= column + c < 6 and (r, c) != (0, 0)
            if not asked or not known[picture, (row + r) * 6 + column + c]:
                continue
            if not (0 <= there + r < 6 and 0 <= beside + c < 6):
                return math.inf
            mine = index.codebook[examples.tokens[picture, (row + r) * 6 + column + c]]
            its = index.codebook[index.tokens[other, (there + r) * 6 + beside + c]]
            total += float(((mine - its) ** 2).sum())
    return total


def test_the_stream_is_the_same_however_it_is_cut(base, index):
    batches = batches_of(base, index, settings=replace(QUICK, caption_dropout=0.5))
    whole = batches.training(3, 6, CPU)
    parts = [batches.training(3, 2, CPU), batches.training(5, 4, CPU)]
    for name in ("tokens", "known", "codes", "active", "weights"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts]))
    again = batches.training(3 + 6 * 4, 6, CPU)
    assert not torch.equal(whole.known, again.known), "a picture has another mask every time"


def test_blank_captions_are_those_of_the_unconditional_stream(base, index):
    settings = replace(QUICK, caption_dropout=1.0, blend_dropout=1.0)
    batches = batches_of(base, index, settings=settings)
    batch = batches.training(0, 4, CPU)
    assert not batch.blended.any()
    pad = base.prompt_encoder.pad_id
    words = [[i for i in row if i != pad] for row in batch.text.tolist()]
    blank = [i for i in base.prompt_encoder.encode("a").unconditional if i != pad]
    assert words == [blank] * 4
    adapter = new_adapter(base.model, settings, batches)
    wanted = base_losses(base.model, batch)
    learner = Learner(base.model, adapter, settings).eval()
    torch.testing.assert_close(learner(batch), wanted)
    assert not torch.allclose(learner(replace(batch, blended=torch.ones(4))), wanted)


def test_the_loss_is_that_of_whole_sequences_one_by_one(base, index):
    settings = replace(QUICK, dropout=0.0)
    adapter = tiny_adapter(base.model, settings.adapter(2, "masked"), scale=0.1)
    batches, examples = batches_of(base, index, settings=settings), examples_of(index)
    batch = batches.plain(np.arange(3), CPU)
    together = Learner(base.model, adapter, settings).eval()(batch)
    alone = base_losses(base.model, batch)
    for i in range(3):
        known, tokens = batch.known[i], torch.from_numpy(examples.tokens[i])
        places = torch.nonzero(batch.active[i])[:, 0].tolist()
        assert bool(places) == bool(known.any())
        codes = {place: batch.codes[i, place].tolist() for place in places}
        prompt = batch.text[i, batch.padding[i] :].tolist()
        with torch.no_grad():
            wanted = adapted_logits(base.model, adapter, prompt, tokens, known, codes)
            plain = slow_logits(base.model, prompt, tokens, known)
        for found, logits in ((together[i], wanted), (alone[i], plain)):
            losses = F.cross_entropy(logits, tokens, reduction="none")
            assert not found[known].any()
            assert found.mean().item() == pytest.approx(losses[~known].mean().item(), rel=1e-4)


def test_scores_are_those_of_the_adapter_folded_or_not_in_batches_of_any_size(base, index):
    adapter = tiny_adapter(base.model, QUICK.adapter(2, "masked"), scale=0.1)
    state, examples = adapter.state_dict(), examples_of(index)
    folded = assemble(base.model.config, adapter.config, lambda n: state[n], torch.float32)
    found = [
        score(base, one, examples, replace(QUICK, batch=size), HERE, index)
        for one, size in ((adapter, 2), (adapter, 5), (folded, 3))
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-3)
    np.testing.assert_allclose(found[2], found[0], atol=1e-3)
    assert not np.allclose(score(base, None, examples, QUICK, HERE, index), found[0])


def test_gradients_are_those_of_the_convolutions_window_by_window():
    grid, hops, k, hidden = Grid(4, 5), (1, 2), 2, 6
    blender = PatchBlender(hidden, hops, "masked")
    states = torch.randn(grid.size, hidden, requires_grad=True)
    known, centres = torch.rand(grid.size) < 0.5, torch.randn(grid.size, k, hidden)
    places = torch.nonzero(~known)[:, 0]
    work = MaskedPass(
        torch.zeros_like(places), places, centres[places], known[None],
        slot_table(grid, hops, CPU, "masked"),
    )  # fmt: skip
    blender(work.surroundings(0, states[None]), work.candidates).square().sum().backward()
    found = {name: p.grad.clone() for name, p in blender.named_parameters()}
    inputs = states.grad.clone()
    blender.zero_grad()
    states.grad = None
    total = torch.zeros(())
    for place in places.tolist():
        for centre in centres[place]:
            outs = []
            for hop in hops:
                x = window(states, known, grid, place, hop, centre)
                for name in (f"conv{hop}", f"conv{hop}2"):
                    conv = blender.get_submodule(name)
                    x = F.conv2d(x, conv.weight, conv.bias)
                outs.append(x.flatten())
            one, two = torch.softmax(blender.conv_weights, dim=0)
            u = one * outs[0] + two * outs[1]
            total = total + (torch.sigmoid(blender.mlp(u)) * u).square().sum()
    total.backward()
    torch.testing.assert_close(inputs, states.grad, atol=1e-4, rtol=1e-4)
    for name, parameter in blender.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-4, rtol=1e-4)
    assert not inputs[~known].any(), "what is not known has no influence"


def test_a_few_pictures_are_learnt_by_heart_and_the_base_stays(base, index, tmp_path):
    before = {n: t.clone() for n, t in base.model.state_dict().items()}
    settings = replace(QUICK, steps=30, lr=1e-2, every=30, batch=4, accumulation=1, held_out=0.0)
    examples = examples_of(index, 3)
    _, adapter = trained(base, index, tmp_path, settings, examples=examples)
    assert adapter.config == AdapterConfig((0, 1), (1, 2), 4, 8.0, 0.05, True, 4, "masked")
    start = score(base, None, examples, settings, HERE, index).mean()
    assert score(base, adapter, examples, settings, HERE, index).mean() < 0.75 * start
    assert all(torch.equal(t, before[n]) for n, t in base.model.state_dict().items())


def test_blenders_learn_what_the_control_cannot(base, tmp_path):
    """Every picture has a twin in the index, which only retrieval can find."""
    index = sign_index(images=24)
    settings = replace(QUICK, steps=40, lr=5e-3, every=40, batch=8, accumulation=1, init="copy")
    settings = replace(settings, rank=0, train_head=False, caption_dropout=0.0)
    rng = np.random.default_rng(0)
    examples = replace(
        examples_of(index, 24), tokens=index.tokens.astype(np.int64),
        digests=rng.integers(0, 256, (24, 32)).astype(np.uint8),
    )  # fmt: skip
    run, _ = trained(base, index, tmp_path, settings, examples=examples)
    results = run.results()
    assert results["held_out_bits"] < results["base_held_out_bits"] - 0.5


def test_silent_batches_are_the_same_pictures_with_nothing_looked_up(base, index):
    batches = batches_of(base, index)
    silent = batches.silent().plain(np.arange(6), CPU)
    looked_up = batches.plain(np.arange(6), CPU)
    assert (silent.codes < 0).all()
    assert torch.equal(silent.known, looked_up.known)
    assert torch.equal(silent.weights, looked_up.weights)


def test_blenders_that_begin_by_copying_look_nothing_up(base, index, monkeypatch):
    batches = batches_of(base, index)
    monkeypatch.setattr(Retriever, "lookup", None)
    new_adapter(base.model, replace(QUICK, init="copy"), batches)


def test_the_control_trains_without_blenders(base, index, tmp_path):
    _, adapter = trained(base, index, tmp_path, replace(QUICK, retrieval=False))
    assert adapter.config.blender_layers == ()
    assert set(adapter.by_layer) == {0, 1}


@pytest.mark.parametrize("stop", [3, 4])
def test_going_on_gives_what_would_have_come_without_the_stop(
    base, index, tmp_path, stop, monkeypatch
):
    whole, wanted = trained(base, index, tmp_path)
    real = loop_module.Trainer.update

    def killed(trainer):
        if trainer.step == stop:
            raise KeyboardInterrupt
        return real(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Trainer, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(base, index, tmp_path, name="stopped")
    run, found = trained(base, index, tmp_path, name="stopped")
    assert same(found, wanted)
    assert run.log.read_text() == whole.log.read_text()


def test_working_layers_out_again_gives_the_same_gradient(base, index, tmp_path):
    settings, found = replace(QUICK, steps=2, every=2), []
    for name, place in (("one", HERE), ("two", Place(CPU, checkpointing=True))):
        run = RunFolder(tmp_path / name)
        run.begin({})
        found.append(train_adapter(base, examples_of(index, 8), settings, run, place, index=index))
    for name, tensor in found[0].state_dict().items():
        torch.testing.assert_close(found[1].state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


def test_semantics_without_effect_are_refused(base, index, tmp_path):
    with pytest.raises(InputError, match=r"semantics is stepzero, .* choose step"):
        trained(base, index, tmp_path, replace(QUICK, semantics="stepzero"))
