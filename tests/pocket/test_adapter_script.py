"""What the pocket model's adapter is trained on."""

import argparse
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import train_adapter
from concepts import LEARNT, UNSEEN
from data import Composer
from PIL import Image
from showo_decoder import CONFIG as SHOW_O
from train_adapter import (
    MASKED,
    OTHER,
    POSTER,
    SETTINGS,
    Shown,
    chosen_settings,
    draw_scenes,
    make_examples,
    make_library,
    posterise,
)

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.checkpoints.adapter import open_adapter
from arrag_engine.faid import FaidAdapter
from arrag_engine.index import save_index
from arrag_engine.train import RunFolder, Team
from tests.pocket.made import NAMES
from tests.tiny_showo import showo_folder, tiny_showo


@pytest.fixture
def composers(sprites, monkeypatch):
    monkeypatch.setattr(train_adapter, "OTHER", NAMES)
    composer = Composer(sprites["fluent"], NAMES, "train")
    return {"known": composer, "other": composer, "poster": composer}


def test_it_learns_from_nothing_that_it_is_tested_on():
    assert not set(OTHER) & set(LEARNT)
    assert not set(OTHER) & set(UNSEEN)
    assert len(OTHER) == 186


def test_scenes_are_as_many_as_asked_and_the_same_every_time(composers):
    counts = {"known": 5, "other": 2 * len(NAMES), "poster": 3}
    scenes = draw_scenes(composers, counts, (0, 1))
    assert scenes == draw_scenes(composers, counts, (0, 1))
    assert scenes != draw_scenes(composers, counts, (0, 2))
    other = scenes[5:-3]
    assert Counter(scene.things[0].name for scene in other) == dict.fromkeys(NAMES, 2)
    assert all(len(scene.things) == 1 for scene in other)
    assert [POSTER in scene.caption for scene in scenes] == [False] * (len(scenes) - 3) + [True] * 3
    assert {scene.style for scene in scenes} == {"fluent"}


def test_the_command_line_takes_a_share_of_the_pictures_to_train_on(tmp_path, monkeypatch):
    facts = {}

    def begin(_, found):
        facts.update(found)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "begin", begin)
    checkpoint = argparse.Namespace(fingerprint="a")
    args = argparse.Namespace(work=tmp_path, scale=0.5, pictures=0.2, data_seed=0)
    with pytest.raises(KeyboardInterrupt):
        train_adapter.prepare(checkpoint, args, 4)
    assert facts["pictures"] == {"known": 300, "other": 149, "poster": 51}
    assert facts["library"] == {"known": 150, "other": 465, "poster": 135}


def test_posters_have_four_steps_of_each_colour():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 4), dtype=np.uint8)
    found = np.asarray(posterise(Image.fromarray(pixels, "RGBA")))
    assert len(np.unique(found[..., 0])) == 4
    assert (found[..., 3] == pixels[..., 3]).all()


def test_each_family_has_settings_of_its_own_that_the_command_line_changes():
    nothing = dict.fromkeys((*train_adapter.FLAGS, "hops"))
    args = argparse.Namespace(**nothing, seed=3, scale=1.0)
    assert chosen_settings(args, MASKED) == replace(MASKED, seed=3)
    args = argparse.Namespace(**nothing | {"lr": 1.0, "hops": "1,2"}, seed=0, scale=0.5)
    half = replace(SETTINGS, lr=1.0, hops=(1, 2), steps=SETTINGS.steps // 2)
    assert chosen_settings(args, SETTINGS) == half


def test_the_adapter_of_pocket_o_is_small():
    with torch.device("meta"):
        config = MASKED.adapter(SHOW_O.phi.num_layers, "masked")
        adapter = FaidAdapter(SHOW_O, config)
    assert sum(p.numel() for p in adapter.parameters()) * 2 < 2_000_000


def test_a_model_in_any_order_trains_adapter_and_control_in_the_same_way(tmp_path, composer):
    folder = showo_folder(tmp_path / "models" / "tiny-o", tiny_showo())
    rng = np.random.default_rng(0)
    scenes = [composer.scene(rng) for _ in range(8)]
    base, tokens = load_checkpoint(folder, torch.float32), rng.integers(0, 64, (8, 36))
    shown = Shown(scenes, tokens, np.empty(0))
    index = make_library(base, shown)
    assert (index.searcher.kind, index.spec.neighborhood) == ("bits", "ring-8")
    data = RunFolder(tmp_path / train_adapter.DATA)
    data.begin({})
    captions = [scene.caption for scene in scenes]
    data.save_examples(make_examples(base, index, tokens, captions, shown.digests, 4))
    save_index(index, data.folder / train_adapter.LIBRARY_FILE)
    args = argparse.Namespace(
        model=folder, work=tmp_path, out=tmp_path / "o.safetensors", device="cpu"
    )
    settings = replace(MASKED, steps=2, every=1, batch=2, rank=2, blender_from=1)
    for retrieval in (True, False):
        run = RunFolder(tmp_path / f"run {retrieval}")
        with torch.inference_mode(False), torch.enable_grad():
            train_adapter.train(Team(), args, replace(settings, retrieval=retrieval), run)
    paths = (args.out, tmp_path / "control.safetensors")
    configs = [open_adapter(path).info.config for path in paths]
    assert [config.blender_layers for config in configs] == [(1,), ()]
    assert {config.order for config in configs} == {"masked"}
