"""The look-up-free picture tokenizer."""

import numpy as np
import pytest
import torch

from arrag_engine.models.showo.vq import VQConfig
from tests.tiny_showo import crooked_showo_config, tiny_showo


@pytest.fixture(scope="module")
def vq():
    return tiny_showo(0, crooked_showo_config()).vq


def test_a_code_is_the_signs_of_its_vector_the_first_number_counts_most(vq):
    rows = vq.codebook(torch.device("cpu"))
    assert rows.shape == (32, 5)
    for code, row in enumerate(rows):
        assert list(row) == [1.0 if digit == "1" else -1.0 for digit in f"{code:05b}"]


def test_vectors_are_apart_by_four_times_the_bits_that_differ(vq):
    rows = vq.codebook(torch.device("cpu"))
    squared = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    differing = [[(a ^ b).bit_count() for b in range(32)] for a in range(32)]
    assert np.array_equal(squared, 4.0 * np.array(differing))


class Given(torch.nn.Module):
    """An encoder whose result is known."""

    def forward(self, images):
        return torch.tensor([1e-9, 0.0, -3.0, 2.0, -0.0]).view(1, 5, 1, 1)


def test_encoding_takes_signs_and_zero_is_a_minus():
    vq = tiny_showo(0, crooked_showo_config()).vq
    vq.encoder = Given()
    codes, vectors = vq.encode(torch.zeros(1, 3, 4, 4))
    assert codes.tolist() == [[[0b10010]]]
    assert vectors.flatten().tolist() == [1, -1, -1, 1, -1]
    assert torch.equal(vq.vectors(codes), vectors)


def test_pictures_of_any_shape_pass_through_both_ways():
    vq = tiny_showo(0, crooked_showo_config()).vq
    assert vq.config.patch_size == 4
    images = torch.rand(2, 3, 12, 20) * 2 - 1
    codes, vectors = vq.encode(images)
    assert codes.shape == (2, 3, 5)
    assert vectors.shape == (2, 3, 5, 5)
    decoded = vq.decode(codes)
    assert decoded.shape == images.shape
    assert decoded.std() > 0


def test_the_released_sizes_are_the_defaults():
    config = VQConfig()
    assert (config.codebook_size, config.codebook_dim, config.patch_size) == (8192, 13, 16)
