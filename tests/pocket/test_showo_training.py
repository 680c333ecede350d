"""What pocket-o learns from: pools of scenes, losses, and a training that goes on."""

import json
import math
from argparse import Namespace

import numpy as np
import pool
import pytest
import showo_decoder
import showo_vq
import torch
import training
from backgrounds import SIZE, STEP
from patches import patch_contents
from torch import nn

from arrag_engine.models.showo.model import ShowO

WIDTH = SIZE // STEP


@pytest.fixture
def drawn(monkeypatch, tmp_path, composer):
    """A pool of five scenes, drawn in two parts."""
    monkeypatch.setattr(pool, "composers", lambda *_: [(composer, 1.0)])
    monkeypatch.setattr(pool, "CHUNK", 2)
    shapes = {pool.PIXELS: (5, 3, SIZE, SIZE), pool.CONTENTS: (5, WIDTH**2)}
    for file, dtype in ((pool.PIXELS, np.uint8), (pool.CONTENTS, np.int64)):
        np.lib.format.open_memmap(tmp_path / file, "w+", dtype, shapes[file])
    captions = [
        caption
        for seed, rows in ((0, slice(0, 3)), (1, slice(3, 5)))
        for caption in pool.draw_part("vq", tmp_path, tmp_path, (7, seed), rows)
    ]
    (tmp_path / pool.CAPTIONS).write_text(json.dumps(captions))
    return pool.Pool.load(tmp_path)


def test_a_pool_has_the_scenes_of_its_generators(drawn, composer):
    rng = np.random.default_rng((7, 1))
    rng.choice(1, 2, p=[1.0])
    scenes = [composer.scene(rng) for _ in range(2)]
    assert drawn.captions[3:] == [scene.caption for scene in scenes]
    for row, scene in zip(drawn.pixels[3:], scenes, strict=True):
        assert np.array_equal(row.numpy().transpose(1, 2, 0), scene.pixels)


def test_a_pool_says_what_each_patch_shows(drawn):
    pixels = drawn.pixels.numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(drawn.contents.numpy().view(np.uint64), patch_contents(pixels))
    assert len(drawn) == len(drawn.pixels) == 5


def test_a_pool_that_is_complete_is_not_drawn_again(drawn, tmp_path):
    before = (tmp_path / pool.PIXELS).read_bytes()
    (tmp_path / "pool-vq").mkdir()
    for file in (pool.CAPTIONS, pool.PIXELS, pool.CONTENTS):
        (tmp_path / file).rename(tmp_path / "pool-vq" / file)
    folder = pool.draw_pool("vq", tmp_path, tmp_path, 99, seed=1, workers=1)
    assert (folder / pool.PIXELS).read_bytes() == before


def test_pixels_become_images_between_minus_one_and_one():
    images = pool.to_images(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
    assert images.flatten().tolist() == [-1.0, 1.0]


def test_halves_of_two_scenes_are_put_together():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    contents = torch.arange(5 * WIDTH**2).view(5, -1)
    more, shown = showo_vq.mixed(images, contents, 2)
    assert torch.equal(more[:5], images)
    assert torch.equal(shown[:5], contents)
    for new, (left, right) in enumerate([(0, 1), (2, 3)], start=5):
        for x in range(SIZE):
            of = left if x < SIZE // 2 else right
            assert torch.equal(more[new, :, :, x], images[of, :, :, x])
        for place in range(WIDTH**2):
            of = left if place % WIDTH < WIDTH // 2 else right
            assert shown[new, place] == contents[of, place]


def test_numbers_are_averaged_over_patches_that_show_the_same():
    z = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    contents = torch.tensor([4, -7, 4, 9, 9, 4, -7, 1, 9])
    mean, number = showo_vq.contents_mean(z, contents)
    for patch in range(9):
        expected = z[contents == contents[patch]].mean(0)
        assert torch.allclose(mean[number[patch]], expected, atol=1e-6)


def test_code_entropy_is_the_sum_over_all_codes():
    z = 0.3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    entropy = 0.0
    for code in range(2**4):
        share = 0.0
        for row in z.tolist():
            chance = 1.0
            for bit, value in enumerate(row):
                is_set = 1 / (1 + math.exp(-showo_vq.SHARPNESS * value))
                chance *= is_set if code >> (3 - bit) & 1 else 1 - is_set
            share += chance / len(z)
        entropy -= share * math.log(share)
    assert math.isclose(float(showo_vq.code_entropy(z)), entropy, rel_tol=1e-6)


def test_bit_entropy_is_the_mean_over_patches_of_the_sum_over_bits():
    z = torch.tensor([[0.0, 0.0], [0.5, -20.0]], dtype=torch.float64)
    p = 1 / (1 + math.exp(-showo_vq.SHARPNESS * 0.5))
    expected = (2 * math.log(2) - p * math.log(p) - (1 - p) * math.log(1 - p)) / 2
    assert math.isclose(float(showo_vq.bit_entropy(z)), expected, rel_tol=1e-6)


def test_agreement_counts_the_commonest_code_of_what_comes_again():
    contents = torch.tensor([5, 5, 5, 8, 8, 3])  # 3 comes once: it does not count
    codes = torch.tensor([1, 1, 2, 0, 4, 9])
    assert math.isclose(showo_vq.agreement(codes, contents), (2 + 1) / 5, rel_tol=1e-6)


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    model = ShowO(showo_decoder.CONFIG).eval()
    showo_decoder.initialize(model)
    return model


def test_the_loss_is_that_of_the_passes_which_draw(decoder):
    """Cross-entropy of the unknown codes, by the logits of the drawing loop."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(showo_decoder.VQ.codebook_size, (2, 144), generator=generator)
    known = torch.rand(2, 144, generator=generator) < 0.5
    pad = decoder.config.vocabulary.special("pad")
    texts = torch.tensor([[pad, pad, 20, 21], [20, 30, 40, 50]])
    loss = showo_decoder.masked_loss(decoder, texts, codes, known)
    logits = decoder.masked_logits(decoder.open(texts), codes, known)
    chances = logits.double().log_softmax(-1)
    wanted = -chances.gather(-1, codes[..., None])[..., 0][~known].mean()
    assert math.isclose(float(loss), float(wanted), rel_tol=1e-4)


def test_as_many_tokens_are_masked_as_the_cosine_schedule_has():
    cpu, size = torch.device("cpu"), showo_decoder.GRID.size
    known = showo_decoder.random_known(4000, torch.Generator().manual_seed(3), cpu)
    times = torch.rand(4000, 1, generator=torch.Generator().manual_seed(3))[:, 0].tolist()
    masked = (~known).sum(1).tolist()
    assert masked == [max(1, round(size * math.cos(t * math.pi / 2))) for t in times]
    assert abs((~known).float().mean(0) - 2 / math.pi).max() < 0.03  # every position alike


class Line(training.Trainer):
    """A trainer of one matrix, whose loss depends on the generator of its step."""

    def __init__(self, work, minutes):
        torch.manual_seed(0)
        model = nn.Linear(3, 3)
        args = Namespace(work=work, seed=5, device="cpu", minutes=minutes)
        super().__init__("line", training.Team(), args, model, [model.weight], (0.1, 0.1), 0.9)

    def loss(self, rng, progress):
        given = torch.from_numpy(rng.standard_normal((4, 3))).float()
        return (self.model(given) - given.flip(1)).square().mean()

    def measure(self, last):
        return {}


@torch.inference_mode(False)
def test_a_training_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(training.Budget, "progress", 0.3)  # time does not matter here
    whole = Line(tmp_path, 1)
    for _ in range(6):
        whole.step()
    first = Line(tmp_path, 1)
    for _ in range(3):
        first.step()
    first.save()
    again = Line(tmp_path, 1)
    again.resume()
    assert again.steps == 3
    for _ in range(3):
        again.step()
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, value in whole.average.weights.items():
        assert torch.equal(again.average.weights[name], value)
    assert again.average.steps == whole.average.steps == 6


@torch.inference_mode(False)
def test_a_training_whose_time_is_used_up_returns_at_once(tmp_path):
    first = Line(tmp_path, 1 / 60_000)
    first.run()
    assert first.steps >= 1
    again = Line(tmp_path, 1 / 60_000)
    again.resume()
    again.run()
    assert again.steps == first.steps
