"""The suite with a model that draws in any order."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.decode import draw_pictures
from arrag_engine.evaluate.benchmark import no_progress
from arrag_engine.evaluate.journal import Journal
from arrag_engine.grid import Grid
from arrag_engine.index import Source, SourceTable, create_index, save_index
from arrag_engine.models.showo.model import SPECIAL, ShowOConfig
from arrag_engine.models.showo.phi import PhiConfig
from arrag_engine.models.showo.vq import VQConfig, code_vectors
from arrag_engine.settings import Schedule
from scripts.pocket.bench import DATA
from scripts.pocket.bench.benchmark import Bench, use_of
from scripts.pocket.bench.bits import SHARES, likelihoods, masks_of
from scripts.pocket.bench.library import Library
from scripts.pocket.bench.prompts import CONCEPT, STYLE, of_kind, read_prompts
from scripts.pocket.bench.scenes import read_scenes
from scripts.pocket.bench.settings import (
    COMPLETION,
    EVERY_KIND,
    GIVEN_ROWS,
    MASKED_FORCED,
    family_of,
)
from scripts.pocket.bench.tasks import Material, make_tasks, scene_tokens
from tests.tiny import tiny_source
from tests.tiny_showo import AROUND, TEXT, showo_folder, tiny_showo

BITS, SIDE = 11, 12
METHODS = ("plain", "daid", "control")
KINDS = ("single_object", CONCEPT, COMPLETION, STYLE)
"""One of each use."""


def pocket_o_config() -> ShowOConfig:
    """The layout of pocket-o at the least width: 96 pixels, 12x12 tokens of 11 bits."""
    levels = (32,) * 4
    vq = VQConfig(32, levels, (1,) * 4, levels, (1,) * 4, BITS)
    vocabulary = TEXT + len(SPECIAL) + vq.codebook_size + 1
    phi = PhiConfig(vocabulary, 32, 48, 1, 4, 4, head_dim=8, rotary_dim=4, max_positions=256)
    return ShowOConfig(phi, vq, Grid(SIDE, SIDE), 12)


def sources() -> list[Source]:
    """Two pictures of each thing and style that prompts ask for, and four that know neither."""
    prompts = read_prompts(DATA / "prompts.jsonl")
    named = {f"unseen/{i}": p.text for i, p in enumerate(of_kind(prompts, CONCEPT))}
    named |= {f"style/{i}": p.text for i, p in enumerate(of_kind(prompts, STYLE))}
    named |= {f"known/{i}": "a red car" for i in range(4)}
    return [
        replace(tiny_source(i), name=name, caption=caption)
        for i, (name, caption) in enumerate(named.items())
    ]


@pytest.fixture(scope="module")
def library_index():
    table = SourceTable.from_sources(sources())
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 2**BITS, (len(table), SIDE * SIDE)).astype(np.uint16)
    rows = code_vectors(torch.arange(2**BITS), BITS).numpy()
    return create_index(Grid(SIDE, SIDE), tokens, None, rows, table, AROUND, "bits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny_showo(0, pocket_o_config())
    return showo_folder(tmp_path_factory.mktemp("models") / "pocket-o", model)


@pytest.fixture(scope="module")
def checkpoint(folder):
    return load_checkpoint(folder, torch.float32)


def test_a_short_run_scores_each_use(run, tmp_path, folder, library_index):
    save_index(library_index, tmp_path / "index.safetensors")
    line = "eval pocket --model {model_o} --dtype fp32 --index {tmp}/index.safetensors --seeds 1"
    line += f" --limit 1 --kinds {','.join(KINDS)} --methods {','.join(METHODS)} --out {{tmp}}/out"
    code, out, err = run(line, model_o=folder)
    assert code == 0, err
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {(s["kind"], s["method"]) for s in scores} == {
        (kind, method) for kind in KINDS for method in METHODS
    }
    assert all(len(s["right"]) == 1 and 0 <= s["right"][0] <= 1 for s in scores)
    for split in ("seen", "unseen", "style"):
        for method in METHODS:
            assert f"{split:<8} {method:<8}" in out


def test_each_kind_has_its_settings_in_either_order(checkpoint):
    for kind in EVERY_KIND:
        use, raster = use_of(kind, checkpoint.model.order), use_of(kind)
        assert use.spec == replace(AROUND, position_weight=24.0)
        assert (use.parts, use.by_word, use.blank) == (raster.parts, raster.by_word, raster.blank)
        assert (use.options.distances, raster.options.distances) == ("mean", "sum")
        assert use.schedule.grow
    assert family_of(checkpoint.model.order).forced is MASKED_FORCED


def test_a_completion_keeps_the_rows_that_are_given(checkpoint, library_index):
    """Of a scene that the tokenizer of the model encodes."""
    scenes = [scene for scene in read_scenes(DATA) if scene.split == "unseen"][:1]
    tokens = scene_tokens(checkpoint, scenes, DATA)
    assert tokens.shape == (1, SIDE * SIDE)
    material = Material((), scenes, tokens)
    uses = {COMPLETION: use_of(COMPLETION, checkpoint.model.order)}
    bench = Bench(checkpoint, Library(checkpoint, library_index), None, None, material, uses)
    [task] = make_tasks(COMPLETION, material, SIDE)
    recipe = bench.plan(task, "daid").recipe
    assert recipe.schedule == uses[COMPLETION].schedule
    recipe = replace(recipe, schedule=Schedule(2))
    drawn = draw_pictures(checkpoint.model, recipe, [0]).tokens.flatten().numpy()
    given = GIVEN_ROWS * SIDE
    assert np.array_equal(drawn[:given], tokens[0, :given])


def test_bits_are_those_of_the_tokens_that_are_not_known(checkpoint, library_index):
    scenes = read_scenes(DATA)[:1]
    tokens = scene_tokens(checkpoint, scenes, DATA)
    masks = masks_of(scenes[0], SIDE * SIDE)
    assert [int(mask.sum()) for mask in masks] == [round(s * SIDE * SIDE) for s in SHARES]
    assert (masks[0] <= masks[1]).all()
    library, material = Library(checkpoint, library_index), Material((), scenes, tokens)
    found = likelihoods(checkpoint, library, material, METHODS, no_progress, Journal())
    prompt = checkpoint.prompt_encoder.encode(scenes[0].truth.text)
    each = []
    for mask in masks:
        one = torch.from_numpy(tokens), torch.from_numpy(mask)[None]
        opened = checkpoint.model.open(torch.tensor([prompt.ids]))
        p = torch.softmax(checkpoint.model.masked_logits(opened, *one)[0], dim=-1)
        each += [-math.log2(p[i, tokens[0, i]]) for i in np.flatnonzero(~mask)]
    assert found[scenes[0].split, "plain"][0].every == pytest.approx(np.mean(each), rel=1e-4)
    assert len({found[scenes[0].split, method][0] for method in METHODS}) == 3
