"""The scorer: right about real scenes, silent about noise, refused when damaged."""

import numpy as np
import pytest
import torch

from arrag_engine.errors import InputError
from scripts.pocket.bench import DATA, SCORER
from scripts.pocket.bench.benchmark import judged_scenes
from scripts.pocket.bench.prompts import judge
from scripts.pocket.bench.scenes import BenchScene, read_scenes, write_scenes
from scripts.pocket.bench.scorer import Labels, Scorer, load_scorer, save_scorer


@pytest.fixture(scope="module")
def scorer():
    return load_scorer(SCORER)


@pytest.fixture(scope="module")
def scenes():
    return read_scenes(DATA)


@pytest.fixture(scope="module")
def found(scorer, scenes):
    return scorer.detect(np.stack([scene.pixels for scene in scenes]))


@pytest.mark.parametrize("split", ["seen", "unseen", "style"])
def test_ground_truth_gets_its_due(scenes, found, split):
    """On real scenes that it was not trained on; the splits' sizes allow for one or two slips."""
    pairs = [(s, d) for s, d in zip(scenes, found, strict=True) if s.split == split]
    verdicts = [judge(scene.truth, things) for scene, things in pairs]
    assert np.mean([v.objects for v in verdicts]) >= 0.97
    counts = [len(things) == len(scene.boxes) for scene, things in pairs]
    assert np.mean(counts) >= 0.95


def test_things_are_where_they_are(scenes, found):
    for scene, things in zip(scenes, found, strict=True):
        if len(scene.boxes) == len(things) == 1:
            left, top, right, bottom = scene.boxes[0]
            height, width = scene.pixels.shape[:2]
            assert things[0].x == pytest.approx((left + right) / 2 / width, abs=0.1)
            assert things[0].y == pytest.approx((top + bottom) / 2 / height, abs=0.1)


def test_noise_gets_what_chance_gives(scorer, scenes):
    rng = np.random.default_rng(0)
    shape = (40, *scenes[0].pixels.shape)
    flat = np.broadcast_to(rng.integers(0, 256, (40, 1, 1, 3)), shape).astype(np.uint8)
    noise = rng.integers(0, 256, shape).astype(np.uint8)
    for pixels in (flat, noise):
        things = scorer.detect(pixels)
        right = [judge(s.truth, d).right for s, d in zip(scenes, things, strict=False)]
        assert np.mean(right) <= 0.05


def test_wrong_captions_are_wrong(scenes, found):
    """The verdict follows the caption: with another scene's it is nearly always no."""
    shifted = zip(scenes[7:], found, strict=False)
    assert np.mean([judge(scene.truth, things).right for scene, things in shifted]) <= 0.05


def test_shares_are_told_by_split_kind_and_size(scorer, scenes):
    some = scenes[:8] + scenes[-4:]
    shares = judged_scenes(scorer, some, np.stack([scene.pixels for scene in some]))
    assert shares["seen"][1] == 8
    assert shares["style"][1] == 4
    assert shares["single_object"][1] == 8
    assert sum(count for name, (_, count) in shares.items() if name.startswith("things")) == 12
    gray = np.full((12, *scenes[0].pixels.shape), 128, np.uint8)
    assert all(share == 0 for share, _ in judged_scenes(scorer, some, gray).values())


def test_features_tell_pictures_apart(scorer, scenes):
    pixels = np.stack([scene.pixels for scene in scenes[:5]])
    features = scorer.features(pixels)
    assert len(np.unique(features.round(3), axis=0)) == 5
    assert np.allclose(features[2:3], scorer.features(pixels[2:3]), atol=1e-4)


def test_weights_survive_a_file(tmp_path):
    torch.manual_seed(0)
    made = Scorer(Labels(("cat", "dog"), ("red",), ("fluent", "google")), 16).eval()
    save_scorer(made, tmp_path / "s.safetensors")
    again = load_scorer(tmp_path / "s.safetensors")
    assert again.labels == made.labels
    images = torch.randn(2, 3, 32, 40)
    for a, b in zip(made(images), again(images), strict=True):
        assert a.shape[2:] == (4, 5)
        assert torch.allclose(a, b, atol=1e-2)


def test_damaged_weights_are_refused(tmp_path):
    data = SCORER.read_bytes()
    for name, bad in (("cut", data[:-100]), ("text", b"hello"), ("empty", b"")):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(InputError, match="is not a scorer"):
            load_scorer(tmp_path / name)
    with pytest.raises(InputError, match="is not a scorer"):
        load_scorer(tmp_path / "missing")


def test_scenes_survive_their_files(tmp_path, scenes):
    write_scenes(scenes[:5], tmp_path)
    for number, (a, b) in enumerate(zip(scenes[:5], read_scenes(tmp_path), strict=True)):
        assert (a.split, a.truth, a.boxes) == (b.split, b.truth, b.boxes)
        assert np.array_equal(a.pixels, b.pixels)
        assert b.number == number


def test_tokens_that_a_thing_covers():
    pixels = np.zeros((32, 32, 3), np.uint8)
    scene = BenchScene(pixels, "seen", None, ((8, 0, 17, 9),))
    assert scene.covers(4, 4).reshape(4, 4).tolist() == [
        [False, True, True, False],
        [False, True, True, False],
        [False] * 4,
        [False] * 4,
    ]
