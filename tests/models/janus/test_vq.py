"""The picture tokenizer."""

import numpy as np
import pytest
import torch

from arrag_engine.codebook import codebook_agreement
from arrag_engine.models.janus.vq import VQConfig, VQModel
from arrag_engine.models.pixels import to_uint8
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def vq(model):
    return model.vq


def rows_of(vq):
    return vq.quantize.rows(torch.device("cpu"))


def test_codes_are_the_nearest_rows_of_the_codebook(vq):
    vectors = torch.nn.functional.normalize(torch.randn(2, 5, 3, 8), dim=-1)
    distances = (vectors[..., None, :] - rows_of(vq)).pow(2).sum(-1)
    assert torch.equal(vq.nearest(vectors), distances.argmin(-1))


def test_every_code_is_nearest_to_itself(vq):
    assert vq.nearest(rows_of(vq)).tolist() == list(range(64))


def test_vectors_and_rows_have_unit_length_whatever_is_stored(vq):
    assert not torch.allclose(vq.quantize.embedding.weight.norm(dim=-1), torch.ones(64), atol=0.1)
    _, vectors = vq.encode(torch.rand(2, 3, 12, 12) * 2 - 1)
    for unit in (rows_of(vq), vectors):
        torch.testing.assert_close(unit.norm(dim=-1), torch.ones(unit.shape[:-1]))


@pytest.mark.parametrize(("height", "width"), [(12, 12), (8, 20)])
def test_shapes_follow_the_picture(vq, height, width):
    codes, vectors = vq.encode(torch.rand(3, 3, height, width))
    assert codes.shape == (3, height // 2, width // 2)
    assert vectors.shape == (3, height // 2, width // 2, 8)
    assert vq.decode(codes).shape == (3, 3, height, width)


def test_a_picture_does_not_depend_on_its_batch(vq):
    images = torch.rand(3, 3, 12, 12)
    together = vq.encode(images)[1]
    alone = torch.cat([vq.encode(image[None])[1] for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("multiplier", "patch"), [((1,), 1), ((1, 1, 2), 4), ((1, 1, 2, 2, 4), 16)]
)
def test_every_level_but_the_last_halves_the_picture(multiplier, patch):
    config = VQConfig(32, multiplier, 1, 32, 16, 4)
    assert config.patch_size == patch
    vq = VQModel(config).eval()
    codes, _ = vq.encode(torch.rand(1, 3, patch * 2, patch * 3))
    assert codes.shape == (1, 2, 3)
    assert vq.decode(codes).shape == (1, 3, patch * 2, patch * 3)


@pytest.mark.parametrize(
    ("value", "pixel"),
    [(-1, 0), (-3, 0), (1, 255), (7, 255), (0, 127), (0.999, 254), (-0.993, 0), (-0.992, 1)],
)
def test_pixels_are_clipped_and_truncated(value, pixel):
    assert to_uint8(torch.full((1, 3, 1, 1), float(value))).flatten().tolist() == [pixel] * 3


def test_pixels_are_rows_columns_channels():
    image = torch.full((1, 3, 2, 4), -1.0)
    image[0, 2, 1, 3] = 1
    assert to_uint8(image).shape == (1, 2, 4, 3)
    assert to_uint8(image)[0, 1, 3].tolist() == [0, 0, 255]


def test_a_codebook_agrees_with_itself_in_half_precision(vq):
    rows = rows_of(vq)
    half = torch.nn.functional.normalize(rows.bfloat16().float(), dim=-1)
    assert codebook_agreement(rows.numpy(), half.numpy()).same


def test_one_other_row_is_another_codebook(vq):
    rows = rows_of(vq).numpy()
    other = rows.copy()
    other[40] = rows[41]
    assert not codebook_agreement(rows, other).same
    assert not codebook_agreement(rows, np.full_like(rows, np.nan)).same
    assert not codebook_agreement(rows, rows_of(tiny_model(1).vq).numpy()).same


def test_codebooks_of_other_sizes_do_not_agree_and_say_so(vq):
    rows = rows_of(vq).numpy()
    agreement = codebook_agreement(rows, rows[:10])
    assert not agreement.same
    assert str(agreement) == "10 codes of 8 numbers, the model has 64 of 8"
