"""What the scorer is trained on, and the prompts and truths that the benchmark is made of."""

import argparse
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from backgrounds import SIZE
from captions import KINDS
from data import Composer, Thing
from make_bench import draw_prompts, special_prompts, truth_of
from sweep import (
    KEYS,
    bit_settings,
    draw_variants,
    retrieval_of,
    sampling_of,
    schedule_of,
    spec_of,
    sweep_sampling,
    with_settings,
)
from train_scorer import (
    IGNORED,
    LABELS,
    MIDDLE,
    NAMES,
    loss_of,
    make_batch,
    make_targets,
    shift,
    shuffle_patches,
    soften,
)

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.faid import Faid
from arrag_engine.grid import ANY_ORDER, RASTER
from arrag_engine.index import KeySpec
from arrag_engine.settings import RetrievalOptions, Sampling, Schedule
from scripts.pocket.bench.benchmark import Bench, use_of
from scripts.pocket.bench.library import Library
from scripts.pocket.bench.prompts import CONCEPT, DIRECTIONS, BenchPrompt, Wanted, judge
from scripts.pocket.bench.scorer import CELL, Detection, Scorer
from scripts.pocket.bench.settings import CONCEPTS, GENERAL
from tests.pocket.made import NAMES as MADE
from tests.tiny import tiny_adapter, tiny_index, write_tiny


def perfect(scene):
    """What a detector that makes no mistakes would find."""
    return [
        Detection(
            thing.name,
            thing.color,
            scene.style,
            (thing.box[0] + thing.box[2]) / 2 / SIZE,
            (thing.box[1] + thing.box[3]) / 2 / SIZE,
            1.0,
        )
        for thing in scene.things
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["fluent", "google"])
def test_truths_are_right_about_their_scenes_and_no_others(sprites, kind, style):
    composer = Composer(sprites[style], MADE, "train")
    rng = np.random.default_rng(0)
    scenes = [composer.scene(rng, kind) for _ in range(12)]
    for scene in scenes:
        assert judge(truth_of(scene), perfect(scene)).right
        assert not judge(truth_of(scene), perfect(scene)[:-1]).right
        wrong = [d for d in perfect(scene)]
        wrong[0] = Detection("ghost", None, style, wrong[0].x, wrong[0].y, 1.0)
        assert not judge(truth_of(scene), wrong).right


def test_mirrored_places_are_wrong(composer):
    rng = np.random.default_rng(1)
    for _ in range(8):
        scene = composer.scene(rng, "position")
        swapped = [
            Detection(d.name, d.color, d.style, 1 - d.x, 1 - d.y, 1.0) for d in perfect(scene)
        ]
        assert not judge(truth_of(scene), swapped).right


@pytest.mark.parametrize("kind", ["two_object", "position", "color_attr"])
def test_prompts_differ_and_name_colours_only_where_asked(composer, kind):
    prompts = draw_prompts(composer, kind, np.random.default_rng(0), 20)
    again = draw_prompts(composer, kind, np.random.default_rng(0), 20)
    assert prompts == again
    assert len({prompt.text for prompt in prompts}) == 20
    colored = [wanted.color is not None for prompt in prompts for wanted in prompt.include]
    assert all(colored) if kind == "color_attr" else not any(colored)
    used = Counter(wanted.name for prompt in prompts for wanted in prompt.include)
    if kind != "color_attr":
        assert max(used.values()) - min(used.values()) <= 4
    if kind == "position":
        assert all(prompt.include[1].position[0] in DIRECTIONS for prompt in prompts)


def test_special_prompts_ask_for_what_the_decoder_never_saw():
    prompts = special_prompts()
    assert Counter(prompt.kind for prompt in prompts) == {"concept": 64, "style": 64}
    assert len({prompt.text for prompt in prompts}) == 128


def test_targets_mark_the_middles():
    things = [(Thing("car", "red", (8, 8, 56, 40)), "google")]
    names, colors, styles = make_targets([things, []])
    middles = (np.mgrid[: SIZE // CELL, : SIZE // CELL] + 0.5) * CELL
    distance = np.hypot(middles[0] - 24, middles[1] - 32)
    here = torch.from_numpy(distance <= MIDDLE)
    assert here.any()
    assert (names[0][here] == 1 + NAMES.index("car")).all()
    assert (colors[0][here] == 1 + LABELS.colors.index("red")).all()
    assert (styles[0][here] == 1).all()
    assert (names[0][torch.from_numpy(distance > 14)] == 0).all()
    assert (names[0] == IGNORED).any()
    assert (colors[0][~here] == IGNORED).all()
    assert (names[1] == 0).all()


def test_shifted_things_stay_in_their_boxes(composer):
    rng = np.random.default_rng(3)
    for _ in range(10):
        scene = composer.scene(rng, "single_object")
        pixels, [thing] = shift(scene, rng)
        left, top, right, bottom = scene.things[0].box
        a, b, c, d = thing.box
        assert (c - a, d - b) == (right - left, bottom - top)
        if a >= 0 and b >= 0 and c <= SIZE and d <= SIZE:
            assert np.array_equal(pixels[b:d, a:c], scene.pixels[top:bottom, left:right])


def test_shuffled_patches_are_the_same_patches(composer):
    scene = composer.scene(np.random.default_rng(0))
    mixed = shuffle_patches(scene.pixels, np.random.default_rng(1))
    assert not np.array_equal(mixed, scene.pixels)

    def patches(pixels):
        side = SIZE // CELL
        cut = pixels.reshape(side, CELL, side, CELL, 3).transpose(0, 2, 1, 3, 4)
        return Counter(patch.tobytes() for patch in cut.reshape(-1, CELL, CELL, 3))

    assert patches(mixed) == patches(scene.pixels)


def test_softened_pictures_keep_their_shape_and_most_of_their_look(composer):
    pixels = composer.scene(np.random.default_rng(0)).pixels.astype(np.float32) / 255
    for seed in range(6):
        soft = soften(pixels, np.random.default_rng(seed))
        assert soft.shape == pixels.shape
        coarse = [p.reshape(6, 16, 6, 16, 3).mean(axis=(1, 3)) for p in (soft, pixels)]
        assert np.abs(coarse[0] - coarse[1]).mean() < 0.1


def test_a_step_of_training_lowers_the_loss(sprites):
    composers = [Composer(sprites[style], MADE, "train") for style in ("fluent", "google")]
    torch.manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        images, *targets = make_batch(composers, np.random.default_rng(0))
        model = Scorer(LABELS, 16)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        losses = []
        for _ in range(6):
            loss = loss_of(model(images.clone()), [t.clone() for t in targets])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3


def test_keys_are_what_their_names_say():
    assert spec_of("causal-4") == KeySpec()
    assert spec_of("causal-12 zero codebook place 2") == KeySpec("causal-12", "zero", "codebook", 2)
    assert len({spec_of(name) for name in KEYS}) == len(KEYS)


def test_sweeps_change_one_thing_at_a_time():
    labels = [label for label, _, _ in bit_settings()]
    assert len(labels) == len(set(labels))
    masked = use_of(CONCEPT, ANY_ORDER)
    for use, order in ((GENERAL, RASTER), (CONCEPTS, RASTER), (masked, ANY_ORDER)):
        variants = draw_variants(use, order)
        assert ("border keys out" in variants) == (order is ANY_ORDER)
        assert variants["as set"] == use
        values = list(variants.values())
        assert all(values.count(variant) == 1 for variant in values)


def test_settings_are_what_their_names_say():
    assert sampling_of("1.5/0.2") == Sampling(1.5, 0.2)
    assert sampling_of("2/0.8/0.95") == Sampling(2, 0.8, top_p=0.95)
    assert retrieval_of("1/0.05/16") == RetrievalOptions(1, 0.05, 16)
    around = use_of(CONCEPT, ANY_ORDER).options
    assert retrieval_of("1/0.05/16", around).distances == around.distances == "mean"
    assert retrieval_of("0.9/0.2/4/sum/0.9") == RetrievalOptions(0.9, 0.2, 4, "sum", 0.9)


def test_a_schedule_is_what_its_name_says():
    base = Schedule(confidence="model")
    assert schedule_of("8", base) == replace(base, steps=8)
    assert schedule_of("32/0.5/linear", base) == Schedule(32, 0.5, "linear", confidence="model")
    assert schedule_of("4/0/cosine/mixture/grow", base) == Schedule(4, 0.0, grow=True)
    assert not schedule_of("4/0/cosine/mixture/no", Schedule(grow=True)).grow
    use = use_of(CONCEPT, ANY_ORDER)
    told = with_settings(use, "2/1", "8/0.5", None)
    assert (told.sampling.cfg, told.schedule.steps, told.options) == (2, 8, use.options)


@pytest.fixture
def tiny_bench(tmp_path):
    """A tiny model, an index of pictures of cars under `unseen/`, and a detector."""
    checkpoint = load_checkpoint(write_tiny(tmp_path / "model.safetensors"), torch.float32)
    index = tiny_index(checkpoint.model, images=3)
    sources = [replace(s, name=f"unseen/{s.name}", caption="a car") for s in index.sources]
    index = replace(index, sources=type(index.sources).from_sources(sources))
    torch.manual_seed(0)
    return Bench(checkpoint, Library(checkpoint, index), Scorer(LABELS, 8).eval())


def sampled(bench, **flags):
    told = {"kinds": "concept", "sampling": "1/1", "retrieval": None, "keys": None, "limit": None}
    told |= {"schedule": None, "temperature": None, "seeds": 3, "first_seed": 1} | flags
    prompts = [
        BenchPrompt(kind, "a car", (Wanted("car"),)) for kind in ("concept", "single_object")
    ]
    return list(sweep_sampling(bench, prompts, argparse.Namespace(**told)))


def test_sampling_reports_every_setting_seed_by_seed(tiny_bench):
    rows = sampled(tiny_bench, sampling="1/1,1/0", kinds="concept,single_object")
    assert [row["kind"] for row in rows] == ["concept", "single_object", "all"] * 2
    assert all(len(row["right"]) == len(row["variety"]) == 3 for row in rows)
    assert min(rows[0]["variety"]) > 0.5
    assert rows[3]["variety"] == [0, 0, 0]  # temperature 0 is the same picture for every seed
    for first in (0, 3):
        one, two, both = (np.array(row["off ground"]) for row in rows[first : first + 3])
        assert both == pytest.approx((one + two) / 2)
    assert all(row["method"] == "plain" and row["copied"] is None for row in rows)


def test_sampling_draws_with_the_retrieval_and_the_adapter_told(tiny_bench):
    [near], [far] = (sampled(tiny_bench, retrieval=f"1/{tau}/64") for tau in (0.0001, 1000))
    assert near["method"] == "daid"
    assert near["copied"] > far["copied"]
    adapter = Faid(tiny_adapter(tiny_bench.checkpoint.model))
    adapted = replace(tiny_bench, faid=adapter)
    [alone], [both] = (sampled(adapted, retrieval=told) for told in (None, "1/0.0001/64"))
    assert (alone["method"], both["method"]) == ("faid", "faid+daid")
    assert both["copied"] > alone["copied"]
