"""What an adapter is before its first update."""

from dataclasses import replace

import pytest
import torch

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.errors import InputError
from arrag_engine.faid import PatchBlender
from arrag_engine.train import TrainSettings
from arrag_engine.train.begin import hidden_of_codes, new_adapter, normalise, set_centre
from arrag_engine.train.data import Batches
from tests.train.test_data import examples_of

SETTINGS = TrainSettings(rank=4, blender_every=1, candidates=4, batch=4)


def fresh(base, settings):
    return new_adapter(base.model, settings, Batches(examples_of(8), base.prompt_encoder, settings))


@pytest.fixture
def base(model_file):
    return load_checkpoint(model_file, torch.float32)


@pytest.mark.parametrize("hops", [(1,), (2,), (1, 2)])
def test_a_copying_blender_is_its_matrix(hops):
    torch.manual_seed(0)
    blender = PatchBlender(8, hops)
    weight = torch.randn(8, 8)
    set_centre(blender, weight)
    around, candidates = torch.zeros(5, 8 * (4 if max(hops) == 1 else 12)), torch.randn(5, 3, 8)
    with torch.no_grad():
        found = blender(around, candidates)
    wanted = candidates @ weight.T
    assert (found - wanted).norm() < 0.15 * wanted.norm()


@pytest.mark.parametrize("every", [0, 1])
def test_blenders_that_copy_lead_from_a_code_to_where_the_base_predicts_it(base, every):
    """Every blender of the chain, as well as one matrix on the codes' embeddings can."""
    settings = replace(SETTINGS, init="copy", blender_every=every)
    batches = Batches(examples_of(8), base.prompt_encoder, settings)
    with torch.no_grad():
        codes, states = hidden_of_codes(base.model, batches, settings)
        assert len(codes) > 8
        adapter = new_adapter(base.model, settings, batches)
        features = normalise(base.model.embed_codes(codes))
        for layer in adapter.by_layer.values():
            if layer.blender is None:
                continue
            _, centre, _ = layer.blender.fold()
            reached = features @ centre.T / 2
            angle = torch.cosine_similarity(reached, states, dim=1)
            assert angle.mean() > 0.5
            features = normalise(reached)


def test_a_base_that_expects_nothing_cannot_be_copied_from(base, monkeypatch):
    monkeypatch.setattr("arrag_engine.train.begin.EXPECTED", 1e6)
    with pytest.raises(InputError, match=r"none of the codes of 8 pictures.* init random"):
        fresh(base, replace(SETTINGS, init="copy"))


def test_gain_scales_what_copying_blenders_begin_with(base):
    one, two = (
        fresh(base, replace(SETTINGS, init="copy", blender_every=0, gain=gain)).state_dict()
        for gain in (1.0, 2.0)
    )
    name = "layers.0.blender.conv12.weight"
    torch.testing.assert_close(two[name][..., 0, 0], 2 * one[name][..., 0, 0])


def test_gain_scales_random_blenders_too(base):
    one, two = (fresh(base, replace(SETTINGS, gain=g)).state_dict() for g in (1.0, 5.0))
    name = "layers.1.blender.conv12.weight"
    torch.testing.assert_close(two[name], 5 * one[name])


def test_blenders_begin_at_the_layer_asked_for(base):
    adapter = fresh(base, replace(SETTINGS, blender_from=1, blender_every=0))
    assert adapter.config.blender_layers == (1,)
    with pytest.raises(InputError, match="blender from is 2, the decoder has 2 layers"):
        fresh(base, replace(SETTINGS, blender_from=2))
