"""The driver with a benchmark of its own: what is drawn, shown, counted and written."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.decode import Kept, Recipe, draw_pictures
from arrag_engine.evaluate.benchmark import Benchmark, Task, evenly
from arrag_engine.evaluate.journal import open_journal
from arrag_engine.evaluate.run import draw_tokens, evaluate
from arrag_engine.images import save_png
from arrag_engine.retrieval import layers_of, make_retriever
from arrag_engine.session import Plan
from arrag_engine.settings import RetrievalOptions, Sampling
from tests.tiny import tiny_index

METHODS, SEEDS = ("plain", "daid"), (3, 4, 5)
GIVEN = 7


@dataclass
class Toy(Benchmark[int]):
    """Two kinds of two tasks, which want a code; a score is its share."""

    checkpoint: object
    index: object
    written: list = field(default_factory=list)

    @property
    def kinds(self):
        return ("words", "rest of a picture")

    def tasks(self, kind):
        given = None if kind == "words" else np.arange(GIVEN)
        return [Task(text, code, given) for text, code in (("red", 1), ("blue", 2))]

    def plan(self, task, method):
        model, retriever = self.checkpoint.model, None
        if method == "daid":
            codebook, options = model.vq.codebook(model.device), RetrievalOptions(0.9)
            retriever = make_retriever(self.index, model.config.grid, codebook, options)
        prompt = self.checkpoint.prompt_encoder.encode(task.text)
        kept = None if task.given is None else Kept.first(task.given, model.grid.size)
        layers = layers_of(retriever)
        recipe = Recipe(prompt.ids, prompt.unconditional, Sampling(1.0), layers, None, kept)
        return Plan(prompt, recipe, ())

    def score(self, task, method, tokens, pixels):
        assert len(tokens) == len(pixels) == len(SEEDS)
        return [{"share": float((row == task.wanted).mean())} for row in tokens]

    def measure(self, methods, progress, journal):
        for done in range(3):
            progress("thought", done, 2, "")
        return [f"measured for {', '.join(methods)}", ""]

    def summary(self, part, pictures):
        return {"share": pictures.by_seed("share")}

    def tables(self, parts, progress):
        return [f"{kind} {method}: {len(p.tokens)}" for (kind, method), p in parts.items()]

    def write(self, folder, part, pictures):
        self.written.append(part)
        for text, seed, pixels in zip(
            pictures.captions, pictures.seeds, pictures.pixels, strict=True
        ):
            save_png(Image.fromarray(pixels), folder / f"{'-'.join(part)}-{text}-{seed}.png", {})


@pytest.fixture(scope="module")
def toy(model_file):
    checkpoint = load_checkpoint(model_file, torch.float32)
    return Toy(checkpoint, tiny_index(checkpoint.model))


def test_every_task_is_drawn_with_every_method_and_seed(toy, tmp_path):
    calls = []
    told = evaluate(
        toy.checkpoint, toy, METHODS, SEEDS, lambda *call: calls.append(call), tmp_path / "new"
    )
    parts = [(kind, method) for kind in toy.kinds for method in METHODS]
    assert toy.written == parts
    assert told.split("\n\n") == [
        "measured for plain, daid",
        *(f"{kind} {method}: 6" for kind, method in parts),
    ]
    assert (tmp_path / "new" / "table.txt").read_text() == told + "\n"
    scores = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert [(s["kind"], s["method"]) for s in scores] == parts
    assert all(len(s["share"]) == len(SEEDS) for s in scores)
    assert len(list((tmp_path / "new").glob("*.png"))) == len(parts) * 2 * len(SEEDS)
    prompts = [call for call in calls if call[0] == "prompt"]
    assert calls[:3] == [("thought", done, 2, "") for done in range(3)]
    assert [done for _, done, _, _ in prompts] == sorted(done for _, done, _, _ in prompts)
    assert prompts[0] == ("prompt", 0, 8, "words plain")
    assert prompts[-1] == ("prompt", 8, 8, "rest of a picture daid")


def test_a_part_is_written_before_the_next_is_drawn(toy, tmp_path, monkeypatch):
    """A run that is stopped leaves what it has drawn."""

    def stop(kind, done, total, note):
        if kind == "prompt" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(toy.checkpoint, toy, METHODS, SEEDS, stop, tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [(s["kind"], s["method"]) for s in scores] == [("words", "plain"), ("words", "daid")]
    assert not (tmp_path / "table.txt").exists()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["words", "rest of a picture"])
def test_batches_draw_what_single_pictures_do(toy, kind, method):
    task = toy.tasks(kind)[1]
    planned = toy.plan(task, method)
    drawn = draw_tokens(toy.checkpoint, planned, SEEDS, batch=2)
    recipe = planned.recipe
    single = [draw_pictures(toy.checkpoint.model, recipe, [s]).tokens.flatten() for s in SEEDS]
    assert np.array_equal(drawn, torch.stack(single).numpy())
    assert len(np.unique(drawn, axis=0)) == len(SEEDS)
    if task.given is not None:
        assert (drawn[:, :GIVEN] == task.given).all()


def test_a_stopped_run_goes_on_and_draws_nothing_twice(toy, tmp_path, monkeypatch):
    drawn = []
    plan = Toy.plan

    def counted(self, task, method):
        drawn.append((task.text, method))
        return plan(self, task, method)

    def stop(kind, done, total, note):
        if kind == "prompt" and done == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Toy, "plan", counted)
    whole = evaluate(toy.checkpoint, toy, METHODS, SEEDS, folder=tmp_path / "whole")
    expected, drawn[:] = list(drawn), []
    with (
        pytest.raises(KeyboardInterrupt),
        open_journal(tmp_path, {}, {}) as journal,
    ):
        evaluate(toy.checkpoint, toy, METHODS, SEEDS, stop, tmp_path, journal)
    assert len(drawn) == 5
    with open_journal(tmp_path, {}, {}) as journal:
        assert evaluate(toy.checkpoint, toy, METHODS, SEEDS, folder=tmp_path, journal=journal)
    assert drawn == expected
    assert (tmp_path / "table.txt").read_text() == whole + "\n"
    for name in ("scores.json", "words-plain-red-3.png"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_limits_are_spread_evenly():
    assert evenly("abcde", None) == evenly("abcde", 9) == list("abcde")
    assert evenly("abcde", 3) == list("ace")
    assert evenly("abcde", 1) == ["a"]
