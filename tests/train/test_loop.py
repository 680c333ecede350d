"""Training: it learns, only the adapter; it resumes; it stops where it must."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.faid import assemble
from arrag_engine.settings import Sampling
from arrag_engine.train import Place, RunFolder, TrainSettings, score, train_adapter
from arrag_engine.train import loop as loop_module
from arrag_engine.train.curve import draw_curve, ticks
from arrag_engine.train.data import Batches, Examples
from arrag_engine.train.loop import BOUND, better, undisturbed
from arrag_engine.train.loss import Learner, base_losses
from tests import slow
from tests.tiny import tiny_adapter
from tests.train.test_begin import fresh
from tests.train.test_data import examples_of

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


@pytest.fixture
def base(model_file):
    return load_checkpoint(model_file, torch.float32)


def trained(base, tmp_path, settings=QUICK, name="run", place=HERE, examples=None, **more):
    run = RunFolder(tmp_path / name)
    run.begin({})
    return run, train_adapter(base, examples or examples_of(8), settings, run, place, **more)


def own_pictures(base, count=40, k=4):
    """Pictures that the base draws of one caption, with nothing retrieved for them."""
    prompt = base.prompt_encoder.encode("a red car")
    recipe = Recipe(prompt.ids, prompt.unconditional, Sampling(cfg=1.0))
    drawing = draw_pictures(base.model, recipe, list(range(count)))
    tokens = drawing.tokens.flatten(1).numpy()
    digests = np.zeros((count, 32), np.uint8)
    codes = np.full((*tokens.shape, k), -1, np.int32)
    return Examples(tokens, ["a red car"] * count, digests, codes, np.ones(36, bool))


def same(one, two):
    mine, its = one.state_dict(), two.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[n], its[n]) for n in mine)


def lines(run):
    return [json.loads(line) for line in run.log.read_text().splitlines()]


def test_the_loss_falls_and_the_base_stays(base, tmp_path):
    before = {n: t.clone() for n, t in base.model.state_dict().items()}
    run, adapter = trained(base, tmp_path, replace(QUICK, steps=20, lr=5e-3, every=20))
    log = lines(run)
    steps = [line for line in log if "bits" in line]
    assert [line["step"] for line in steps] == list(range(1, 21))
    first, last = steps[:4], steps[-4:]
    assert np.mean([s["bits"] for s in last]) < np.mean([s["bits"] for s in first]) - 0.3
    assert all(torch.equal(t, before[n]) for n, t in base.model.state_dict().items())
    assert not same(adapter, fresh(base, QUICK))
    assert max(s["lr"] for s in steps) == pytest.approx(5e-3)
    assert steps[0]["lr"] == pytest.approx(5e-3 / 2)
    assert steps[-1]["lr"] < 1e-3
    assert {"base_held_out_bits", "held_out_bits"} <= log[0].keys()
    assert log[-1].keys() == {"step", "held_out_bits"}
    assert run.results().keys() == {"base_held_out_bits", "held_out_bits"}
    with Image.open(run.curve) as image:
        assert image.size == (900, 500)


@pytest.mark.parametrize("stop", [3, 4])
def test_going_on_gives_what_would_have_come_without_the_stop(base, tmp_path, stop, monkeypatch):
    """Also when it was stopped between two checkpoints: the steps since are done again."""
    whole, wanted = trained(base, tmp_path)
    real = loop_module.Trainer.update

    def killed(trainer):
        if trainer.step == stop:
            raise KeyboardInterrupt
        return real(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Trainer, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(base, tmp_path, name="stopped")
    assert RunFolder(tmp_path / "stopped").saved_step() == stop, "the last updates are lost"
    run, found = trained(base, tmp_path, name="stopped")
    assert same(found, wanted)
    assert lines(run) == lines(whole)


@pytest.mark.parametrize("step", [3, 6])
def test_a_measurement_that_was_stopped_is_done_again(base, tmp_path, step, monkeypatch):
    whole, wanted = trained(base, tmp_path)
    real = loop_module.Trainer.measure

    def killed(trainer, scorer):
        if trainer.step == step:
            raise KeyboardInterrupt
        return real(trainer, scorer)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Trainer, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(base, tmp_path, name="stopped")
    assert RunFolder(tmp_path / "stopped").saved_step() == step
    run, found = trained(base, tmp_path, name="stopped")
    assert same(found, wanted)
    assert lines(run) == lines(whole)


def test_ctrl_c_waits_for_what_must_be_whole():
    done = []

    def write():
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        write()
    assert done == [1]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_interruption_before_the_first_update_saves_nothing(base, tmp_path, monkeypatch):
    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop_module.Trainer, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(base, tmp_path)
    assert not RunFolder(tmp_path / "run").state.exists()


def test_own_pictures_are_measured_and_kept(base, tmp_path):
    """The same training without rehearsal forgets more."""
    settings = replace(QUICK, steps=20, lr=1e-2, every=20, rehearse=0.5, caption_dropout=0.0)
    own = own_pictures(base)
    run, _ = trained(base, tmp_path, settings, own=own)
    log = lines(run)
    assert {"base_own_bits", "own_bits"} <= log[0].keys()
    alone = score(base, None, own.take(np.arange(32)), settings, HERE).mean()
    assert log[0]["base_own_bits"] == pytest.approx(alone, abs=1e-5)
    assert log[-1].keys() == {"step", "held_out_bits", "own_bits"}
    assert run.results().keys() == {
        "base_held_out_bits", "held_out_bits", "base_own_bits", "own_bits", "best_step",
    }  # fmt: skip
    _, forgetful = trained(base, tmp_path, replace(settings, rehearse=0.0), "without")
    lost = score(base, forgetful, own.take(np.arange(32)), settings, HERE).mean() - alone
    assert log[-1]["own_bits"] - alone < 0.5 * lost


def test_an_adapter_that_does_not_forget_is_better_then_the_held_out_loss_counts():
    base_own = 1.0
    ranked = [
        {"own_bits": 1.0 + BOUND, "held_out_bits": 3.0},
        {"own_bits": 0.5, "held_out_bits": 4.0},
        {"own_bits": 1.1 + BOUND, "held_out_bits": 2.0},
        {"own_bits": 1.2 + BOUND, "held_out_bits": 1.0},
    ]
    for i, one in enumerate(ranked):
        for j, other in enumerate(ranked):
            assert better(one, other, base_own) == (i <= j)
    assert better({"own_bits": 1.01}, {"own_bits": 1.0}, base_own), "the later of two good ones"


def test_the_weight_of_own_pictures_decides_how_little_they_change(base, tmp_path, monkeypatch):
    """The logged loss is without the weight."""
    settings = replace(QUICK, steps=20, lr=1e-2, every=20, rehearse=0.5, caption_dropout=0.0)
    own, found = own_pictures(base), {}
    for weight in (1.0, 200.0):
        monkeypatch.setattr(loop_module, "KEEPING", weight)
        run, _ = trained(base, tmp_path, settings, f"weight {weight}", own=own)
        found[weight] = lines(run)
    assert found[200.0][-1]["own_bits"] < found[1.0][-1]["own_bits"]
    first = [found[weight][1]["bits"] for weight in found]
    assert first[0] == pytest.approx(first[1], rel=1e-5)


MEASURED = {0: (9.0, 1.0), 2: (5.0, 1.0), 4: (4.0, 1.0 + BOUND), 6: (3.0, 1.1 + BOUND)}
"""Step -> held out, own."""


@pytest.fixture
def measured(monkeypatch):
    def measure(trainer, _):
        return dict(zip(("held_out_bits", "own_bits"), MEASURED[trainer.step], strict=True))

    monkeypatch.setattr(loop_module.Trainer, "measure", measure)


@pytest.mark.usefixtures("measured")
def test_the_best_by_both_losses_is_kept_and_forgetting_is_told_once(base, tmp_path):
    told = []
    settings = replace(QUICK, every=2)
    run, adapter = trained(base, tmp_path, settings, own=own_pictures(base), warn=told.append)
    assert run.results() == {
        "base_held_out_bits": 9.0, "held_out_bits": 4.0, "base_own_bits": 1.0,
        "own_bits": 1.0 + BOUND, "best_step": 4,
    }  # fmt: skip
    [sentence] = told
    assert sentence.startswith("at step 6 the pictures that the model draws itself cost 1.150 bits")
    assert "1.000 before the training, more than the 0.05 allowed" in sentence
    last = load_file(run.state)
    assert not torch.equal(last["weight.gen_head.vision_head.weight"],
                           adapter.state_dict()["gen_head.vision_head.weight"])  # fmt: skip
    best = load_file(run.best)
    assert all(torch.equal(best[name], tensor) for name, tensor in adapter.named_parameters())


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("stop", [3, 5])
def test_the_best_is_the_same_after_a_stop(base, tmp_path, stop, monkeypatch):
    settings, own = replace(QUICK, every=2), own_pictures(base)
    whole, wanted = trained(base, tmp_path, settings, own=own)
    real = loop_module.Trainer.update

    def killed(trainer):
        if trainer.step == stop:
            raise KeyboardInterrupt
        return real(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Trainer, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(base, tmp_path, settings, "stopped", own=own)
    run, found = trained(base, tmp_path, settings, "stopped", own=own)
    assert same(found, wanted)
    assert run.results() == whole.results()


def test_folders_of_0_1_go_on_without_rehearsal_only(tmp_path):
    RunFolder(tmp_path / "run").begin({"lr": 1.0})
    RunFolder(tmp_path / "run").begin({"lr": 1.0, "rehearse": 0.0}, {"rehearse": 0.0})
    with pytest.raises(InputError, match=r"begun with rehearse 0\.0, not 0\.5; use the same"):
        RunFolder(tmp_path / "run").begin({"lr": 1.0, "rehearse": 0.5}, {"rehearse": 0.0})


def test_blenders_may_learn_faster_than_the_rest(base, tmp_path):
    """The first update of AdamW is as long as its learning rate."""
    settings = replace(QUICK, steps=1, every=1, weight_decay=0.0, warmup=0.0, blender_lr=5.0)
    _, adapter = trained(base, tmp_path, settings)
    before = fresh(base, settings).state_dict()
    moved = {n: (t - before[n]).abs().max().item() for n, t in adapter.state_dict().items()}
    assert moved["layers.0.blender.conv22.weight"] == pytest.approx(5 * settings.lr, rel=0.01)
    assert moved["gen_head.vision_head.weight"] == pytest.approx(settings.lr, rel=0.01)


def test_a_finished_run_is_not_trained_again(base, tmp_path, monkeypatch):
    _, wanted = trained(base, tmp_path)
    monkeypatch.setattr(loop_module.Trainer, "update", lambda _: pytest.fail("trained again"))
    assert same(trained(base, tmp_path)[1], wanted)


def test_a_run_goes_on_only_with_what_it_was_begun_with(tmp_path):
    RunFolder(tmp_path / "run").begin({"lr": 1.0, "steps": 3})
    RunFolder(tmp_path / "run").begin({"lr": 1.0, "steps": 3})
    with pytest.raises(InputError, match=r"begun with lr 1\.0, not 2\.0; use the same value"):
        RunFolder(tmp_path / "run").begin({"lr": 2.0, "steps": 3})


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    base, tmp_path, monkeypatch
):
    real = Learner.forward
    calls = []

    def breaking(learner, batch):
        if learner.training:
            calls.append(1)
        return real(learner, batch) * (float("nan") if len(calls) > 4 * 2 else 1)

    monkeypatch.setattr(Learner, "forward", breaking)
    with pytest.raises(InputError, match=r"not a number at step 5; the last good .* of step 3"):
        trained(base, tmp_path)
    monkeypatch.undo()
    assert RunFolder(tmp_path / "run").saved_step() == 3
    _, wanted = trained(base, tmp_path, name="other")
    assert same(trained(base, tmp_path)[1], wanted)


def test_weights_that_measure_as_no_number_are_not_saved(base, tmp_path, monkeypatch):
    monkeypatch.setattr(
        loop_module.Trainer,
        "measure",
        lambda t, scorer: {"held_out_bits": float("nan") if t.step else 1},
    )
    with pytest.raises(InputError, match=r"there is no checkpoint yet; lower --lr 0\.0002"):
        trained(base, tmp_path)
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_a_full_disk_keeps_the_former_checkpoint(base, tmp_path, monkeypatch):
    from arrag_engine.train import state as state_module

    trained(base, tmp_path, replace(QUICK, steps=3))
    path = tmp_path / "run" / "state.safetensors"
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_module, "save_file", full)
    with pytest.raises(InputError, match="No space left on device; free some space"):
        trained(base, tmp_path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_a_damaged_checkpoint_is_refused(base, tmp_path):
    run, _ = trained(base, tmp_path, replace(QUICK, steps=3))
    run.state.write_bytes(run.state.read_bytes()[:-10])
    with pytest.raises(InputError, match="truncated"):
        trained(base, tmp_path)


def test_working_layers_out_again_gives_the_same_gradient(base, tmp_path):
    settings = replace(QUICK, steps=2, every=2)
    _, one = trained(base, tmp_path, settings, "one")
    _, two = trained(base, tmp_path, settings, "two", Place(CPU, checkpointing=True))
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_trains(base, tmp_path):
    _, adapter = trained(base, tmp_path, place=Place(CPU, autocast=True))
    assert {t.dtype for t in adapter.state_dict().values()} == {torch.float32}
    vq = base.model.vq
    base.model.to(torch.bfloat16)
    vq.float()
    run, _ = trained(base, tmp_path, name="bf16", place=Place(CPU, autocast=True))
    assert all(np.isfinite(line.get("bits", 0)) for line in lines(run))


def test_the_loss_of_a_batch_is_that_of_its_pictures_one_by_one_and_the_slow_reference(base):
    settings = replace(QUICK, dropout=0.0, rank=0, train_head=False)
    adapter = tiny_adapter(base.model, settings.adapter(2), scale=0.1)
    examples = examples_of(3)
    examples = replace(examples, active=np.arange(36) % 5 > 0)
    batches = Batches(examples, base.prompt_encoder, settings)
    learner = Learner(base.model, adapter, settings).eval()
    together = learner(batches.plain(np.arange(3), CPU)).mean(dim=1)
    tensors = {
        f"language_model.model.{name}": tensor.detach()
        for name, tensor in adapter.state_dict().items()
    }
    for i in range(3):
        alone = learner(batches.plain(np.array([i]), CPU))[0].mean()
        assert together[i].item() == pytest.approx(alone.item(), abs=1e-5)
        tokens = examples.tokens[i].tolist()
        with torch.no_grad():
            logits, _ = slow.faid_logits(
                base.model, tensors, (0, 1), (1, 2), batches.prompts[i], tokens[:-1],
                examples.codes[i].tolist(), examples.active.tolist(),
            )  # fmt: skip
        wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens))
        assert alone.item() == pytest.approx(wanted.item(), abs=1e-4)


def test_silent_blenders_and_a_new_adapter_leave_the_base_as_it_is(base):
    settings = replace(QUICK, caption_dropout=1.0, blend_dropout=1.0)
    batches = Batches(examples_of(4), base.prompt_encoder, settings)
    batch = batches.training(0, 4, CPU)
    assert not batch.blended.any()
    learner = Learner(base.model, fresh(base, settings), settings)
    wanted = base_losses(base.model, batch)
    torch.testing.assert_close(learner.eval()(batch), wanted)
    heard = replace(batch, blended=torch.ones(4))
    assert not torch.allclose(learner(heard), wanted)
    silent = Learner(base.model, fresh(base, replace(settings, init="zero")), settings)
    torch.testing.assert_close(silent.eval()(heard), wanted)


def test_the_control_trains_without_blenders(base, tmp_path):
    settings = replace(QUICK, retrieval=False)
    examples = replace(examples_of(8), codes=np.zeros((8, 36, 0), np.int32))
    _, adapter = trained(base, tmp_path, settings, examples=examples)
    assert adapter.config.blender_layers == ()
    assert set(adapter.by_layer) == {0, 1}
    assert adapter.gen_head is not None


def test_scores_are_those_of_base_and_adapter_folded_or_not(base):
    examples, settings = examples_of(5), replace(QUICK, batch=2)
    adapter = tiny_adapter(base.model, settings.adapter(2))
    alone = score(base, None, examples, settings, HERE)
    found = score(base, adapter, examples, settings, HERE)
    assert alone.shape == found.shape == (5, 36)
    assert not np.allclose(alone, found)
    state = adapter.state_dict()
    folded = assemble(base.model.config, adapter.config, lambda n: state[n], torch.float32)
    np.testing.assert_allclose(score(base, folded, examples, settings, HERE), found, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0; choose 1 to 10000000"),
        ({"lr": 0.0}, "lr is 0.0; choose more than 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"rank": -1}, "rank is -1"),
        ({"caption_dropout": 1.5}, "caption dropout is 1.5; choose 0 to 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"rehearse": 1.0}, "rehearse is 1.0; choose 0 or more, less than 1"),
        ({"rehearse": -0.1}, "rehearse is -0.1"),
        ({"rehearse_pictures": 0}, "rehearse pictures is 0; choose 1 to 1000000"),
        ({"weight_decay": -1.0}, "weight decay is -1.0"),
        ({"pool": 3, "candidates": 10}, "the pool is 3 for 10 candidates"),
        ({"retrieval": False, "rank": 0, "train_head": False}, "there is nothing to train"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        TrainSettings(**settings)


def test_blenders_stand_a_stride_apart():
    assert TrainSettings().adapter(24).blender_layers == (0, 12)
    assert TrainSettings(blender_every=2).adapter(4).blender_layers == (0, 2)
    assert TrainSettings(blender_every=0).adapter(4).blender_layers == (0,)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (5.43, 5.47), (0, 30000), (-1, 7.5)])
def test_ticks_are_few_and_round(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert low <= found[0] < found[-1] <= high


def test_a_curve_of_one_point_can_be_drawn(tmp_path):
    draw_curve([{"step": 0, "held_out_bits": 3.0}], tmp_path / "a.png")
    draw_curve([{"step": 1, "bits": 2.0}, {"step": 9, "bits": 1.0}], tmp_path / "b.png")
    for name in "ab":
        with Image.open(tmp_path / f"{name}.png") as image:
            colours = image.convert("RGB").getcolors(10**6)
        assert len(colours) > 3
    draw_curve([{"step": 0, "bits": 9.0}, {"step": 1, "own_bits": 0.1}], tmp_path / "own.png")
    with Image.open(tmp_path / "own.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(10**6)}
    assert (0x23, 0x8B, 0x45) in colours, "the own pictures are not in the curve"
    draw_curve([], tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
