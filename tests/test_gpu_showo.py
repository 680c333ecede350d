"""What Show-o is measured against on a GPU, and its checks, at tiny shapes on a CPU."""

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch

from arrag_engine.decode import draw_pictures
from arrag_engine.retrieval.device_bits import DeviceBits
from scripts import check_gpu, gpu, gpu_showo, gpu_showo_checks
from scripts.gpu_showo import SMALL, TransformersPhi, Uncached
from tests.models.slow_showo import slow_logits

CPU = torch.device("cpu")
HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None


@pytest.fixture(scope="module")
def subject():
    return gpu_showo_checks.tiny_subject(torch.float32, CPU)


def logits_of(model, subject):
    """Of both streams of a picture of which some is known; the second prompt has pads."""
    recipe = SMALL[0].recipe()
    known = torch.from_numpy(subject.kept.mask).expand(2, -1)
    tokens = torch.from_numpy(subject.kept.tokens).expand(2, -1)
    ids = torch.tensor(recipe.streams)
    with torch.inference_mode():
        return model.masked_logits(model.open(ids), tokens, known)


def test_the_uncached_pass_is_the_official_one(subject):
    found = logits_of(Uncached(subject.model), subject)
    streams = SMALL[0].recipe().streams
    pad = subject.model.config.vocabulary.special("pad")
    assert sum(i == pad for i in streams[1]) > 0
    for row, ids in zip(found, streams, strict=True):
        one = subject.kept.tokens[0], subject.kept.mask[0]
        wanted = slow_logits(subject.model, ids, *map(torch.from_numpy, one))
        assert torch.allclose(row, wanted, atol=1e-4)
    assert torch.allclose(found, logits_of(subject.model, subject), atol=1e-4)


@pytest.mark.skipif(not HAS_TRANSFORMERS, reason="transformers is not installed")
def test_the_pass_of_transformers_is_the_same(subject):
    found = logits_of(TransformersPhi(subject.model), subject)
    assert torch.allclose(found, logits_of(subject.model, subject), atol=1e-3)


def test_batches_have_a_prompt_a_stream(subject):
    recipe = replace(SMALL[0].recipe(), schedule=gpu_showo.Schedule(4))
    uncached: Any = Uncached(subject.model)
    wanted = draw_pictures(subject.model, recipe, [1, 2]).tokens
    assert torch.equal(draw_pictures(uncached, recipe, [1, 2]).tokens, wanted)


def test_shapes_are_the_real_ones():
    assert [one.config.length for one in gpu_showo.REAL] == [387, 1155]
    assert gpu.SHOWO_256.vocabulary.text == 50295
    assert [one.config.image_size for one in gpu_showo.REAL] == [(256, 256), (512, 512)]


def checks_of(monkeypatch):
    names = ("plain", "DAiD 0.5", "inpainting")
    wishes = {name: gpu_showo_checks.WISHES[name] for name in names}
    monkeypatch.setattr(gpu_showo_checks, "WISHES", wishes)
    monkeypatch.setattr(gpu_showo_checks, "REPEATED", names[:2])
    monkeypatch.setattr(gpu_showo_checks, "SEEDS", (7, 8))
    monkeypatch.setattr(gpu_showo_checks, "POSITIONS", 40)
    monkeypatch.setattr(check_gpu, "HALVES", {"bf16": torch.bfloat16})
    return {check.name: check for check in check_gpu.all_checks(CPU, None, ["showo"])}


def test_a_cpu_passes_every_check(monkeypatch):
    found = checks_of(monkeypatch)
    assert [check for check in found.values() if not check.ok] == []
    for wanted in (
        *("Show-o, draws given equal p", "Show-o, search by bits, unknown ignored"),
        *("Show-o, inpainting, kept tokens stand", "Show-o, DAiD 0.5, device = host"),
        *("Show-o, full pass a step = kept text", "Show-o, bf16, plain"),
    ):
        assert wanted in found


def test_a_search_that_finds_others_is_found(monkeypatch):
    ranks = DeviceBits._ranks
    monkeypatch.setattr(DeviceBits, "_ranks", lambda self, q, *rest: ranks(self, -q, *rest))
    failed = {name for name, check in checks_of(monkeypatch).items() if not check.ok}
    assert "Show-o, DAiD 0.5, device = host" in failed
    assert "Show-o, search by bits, unknown zero" in failed
    assert "Show-o, plain, device = host" not in failed
