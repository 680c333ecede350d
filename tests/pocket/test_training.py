"""What the training scripts start from and learn on."""

import math

import finish
import numpy as np
import pytest
import torch
import train_decoder
import train_vq
from backgrounds import SIZE
from patches import patch_contents
from refine_vq import seen_loss, target_codes
from tokens import Usage
from training import orthogonalize, schedule

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.models.janus.model import JanusPro
from arrag_engine.models.janus.vq import VQConfig, VQModel
from scripts.pocket.bench.scorer import Labels, Scorer

CODES = 16


def small_vq(codes: int) -> VQConfig:
    return VQConfig(32, (1, 1, 1, 1), 1, z_channels=32, codebook_size=codes, codebook_dim=8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model file of the pocket decoder's sizes with a small tokenizer."""
    torch.manual_seed(0)
    model = JanusPro(train_decoder.make_config(small_vq(CODES))).eval().requires_grad_(False)
    path = tmp_path_factory.mktemp("start") / "model.safetensors"
    finish.export_model(model, path)
    return path


def test_a_decoder_with_more_codes_starts_where_the_file_left_off(saved):
    old = load_checkpoint(saved, torch.float32).model
    new = JanusPro(train_decoder.make_config(small_vq(2 * CODES))).eval().requires_grad_(False)
    train_decoder.start_from(new, saved)
    text, codes = torch.tensor([[1, 5, 9]]), torch.arange(CODES)[None]
    for twin in (0, CODES):
        given = torch.cat((new.embed_text(text), new.embed_codes(codes + twin)), dim=1)
        expected = torch.cat((old.embed_text(text), old.embed_codes(codes)), dim=1)
        logits = new.logits(given).unflatten(-1, (2, CODES))
        wanted = old.logits(expected)[..., None, :].expand_as(logits)
        assert torch.allclose(logits, wanted, atol=1e-5)


def test_a_grown_codebook_has_twins_of_every_code(saved):
    old = load_checkpoint(saved, torch.float32).model.vq
    new = VQModel(small_vq(2 * CODES)).requires_grad_(False)
    train_vq.start_from(new, saved)
    nearest = new.nearest(old.quantize.rows(torch.device("cpu")))
    assert (nearest % CODES).tolist() == list(range(CODES))
    assert len(new.quantize.rows(torch.device("cpu")).unique(dim=0)) == 2 * CODES
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(new.features(images), old.features(images))


def test_mixed_pictures_are_halves_of_scenes(composer):
    mix = dict.fromkeys(train_vq.MIX, composer)
    pictures = train_vq.draw_batch(mix, np.random.default_rng(0))
    assert len(pictures) == train_vq.SCENES + train_vq.MIXES
    contents = patch_contents(np.stack(pictures)).reshape(len(pictures), -1, SIZE // 8)
    for number, mixed in enumerate(contents[train_vq.SCENES :]):
        half = mixed.shape[1] // 2
        assert np.array_equal(mixed[:, :half], contents[2 * number][:, :half])
        assert np.array_equal(mixed[:, half:], contents[2 * number + 1][:, half:])


def test_settled_targets_follow_the_usage(composer):
    torch.manual_seed(1)
    model = VQModel(small_vq(CODES)).eval().requires_grad_(False)
    pixels = [composer.scene(np.random.default_rng(n)).pixels for n in range(3)]
    images = train_vq.to_images(pixels)
    own, _ = model.encode(images)
    contents = np.unique(patch_contents(np.stack(pixels)))
    usage = Usage(contents, np.full(len(contents), 7, dtype=np.uint16))
    codes = target_codes(model, usage, images, np.array([False, True, False]))
    assert torch.equal(codes[::2], own[::2])
    assert (codes[1] == 7).all()


def test_eyes_see_what_is_blurred(composer):
    torch.manual_seed(0)
    eyes = Scorer(Labels(("car",), ("red",), ("fluent",)), 16).eval().requires_grad_(False).trunk
    sharp = train_vq.to_images([composer.scene(np.random.default_rng(0)).pixels])
    little, much = (torch.nn.functional.avg_pool2d(sharp, size, 1, size // 2) for size in (3, 9))
    assert seen_loss(eyes, sharp, sharp) == 0
    assert 0 < seen_loss(eyes, little, sharp) < seen_loss(eyes, much, sharp)


def test_the_loss_of_a_picture_does_not_hang_on_its_batch(saved):
    """Padding on the right of shorter prompts changes nothing."""
    model = load_checkpoint(saved, torch.float32).model
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(CODES, size=(2, 9)))
    prompts, lengths = torch.tensor([[3, 4, 5, 2, 2], [6, 7, 8, 9, 10]]), torch.tensor([3, 5])
    both = train_decoder.image_loss(model, prompts, lengths, codes)
    alone = [
        train_decoder.image_loss(model, prompts[n : n + 1, :length], lengths[n : n + 1], codes[[n]])
        for n, length in enumerate(lengths.tolist())
    ]
    assert math.isclose(both.item(), sum(alone).item() / 2, rel_tol=1e-5)


def test_orthogonalized_matrices_are_nearly_orthogonal():
    matrices = torch.randn(3, 24, 60, generator=torch.Generator().manual_seed(0))
    for x in (matrices, matrices.mT.contiguous()):
        values = torch.linalg.svdvals(orthogonalize(x, steps=6))
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_the_learning_rate_rises_and_falls_to_zero():
    rates = [schedule(share) for share in np.linspace(0, 1, 101)]
    peak = int(np.argmax(rates))
    assert 0 < rates[0] < rates[1]
    assert peak < 5
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-9
