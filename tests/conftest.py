"""Fixtures and options shared by all tests of the engine."""

import pytest
import torch

from tests.tiny import tiny_index, tiny_model, write_tiny


def pytest_addoption(parser):
    parser.addoption(
        "--mutations", type=int, default=200, help="damaged variants of each file to try"
    )


@pytest.fixture(scope="session")
def model():
    """A model nobody may change."""
    return tiny_model()


@pytest.fixture(scope="session")
def index(model):
    """An index of random pictures for `model`."""
    return tiny_index(model)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory, model):
    """`model` as our single file."""
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors", model)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield
