"""What a drawing uses when something, or nothing, is chosen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from arrag_engine import recommended as table
from arrag_engine import session, threads
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.errors import InputError
from arrag_engine.faid import Faid
from arrag_engine.index import Calibration, KeySpec, SourceTable, load_index
from arrag_engine.layers import KeyChoice, Layer, select
from arrag_engine.recommended import JANUS_PRO, MEASURED, POCKET, POCKET_O, recommended
from arrag_engine.session import draw, plan
from arrag_engine.settings import (
    AS_BUILT,
    PROMPT,
    RetrievalOptions,
    Sampling,
    SamplingChoice,
    ScheduleChoice,
)
from arrag_engine.shipped import INDEXES, MODELS
from tests.tiny import tiny_adapter, tiny_index, tiny_source

CAPTIONS = ["a red car", "a panda", "two pandas on a car", "apples", "a lamp"]
CALIBRATION = Calibration((0.0,) * 6, 0.5, 0.2, 8, "first", 1.0)


@pytest.fixture(scope="module")
def checkpoint(model_file):
    return load_checkpoint(model_file, torch.float32)


@pytest.fixture
def measured(checkpoint, monkeypatch):
    """The tiny model as if somebody had measured it."""
    values = replace(POCKET, sampling=Sampling(2.0, 0.5, 0, 0.9), faid_weight=0.25)
    monkeypatch.setitem(table.MEASURED, checkpoint.fingerprint, values)
    return values


def captioned(index, captions=CAPTIONS):
    sources = [replace(tiny_source(i), caption=text) for i, text in enumerate(captions)]
    return replace(index, sources=SourceTable.from_sources(sources))


@pytest.fixture
def pandas(index):
    return captioned(index)


def images_of(planned):
    return planned.recipe.layers[0].source.images.tolist()


@pytest.mark.parametrize(("name", "values"), [("pocket", POCKET), ("pocket-o", POCKET_O)])
def test_the_shipped_models_have_measured_values(name, values):
    shipped = load_checkpoint(MODELS / f"{name}.safetensors", torch.float32)
    assert recommended(shipped) is values
    half = load_checkpoint(MODELS / f"{name}.safetensors", torch.bfloat16)
    assert half.fingerprint in MEASURED


def test_growing_is_recommended_with_retrieval_only():
    shipped = load_checkpoint(MODELS / "pocket-o.safetensors", torch.float32)
    index = load_index(INDEXES / "pocket-o.safetensors")

    def grows(*layers, **chosen):
        return plan(shipped, "a flamingo", layers=layers, **chosen).recipe.schedule.grow

    assert grows(Layer(index))
    assert not grows()
    assert not grows(Layer(index, weight=0.0))
    assert grows(schedule=ScheduleChoice(grow=True))
    assert not grows(Layer(index), schedule=ScheduleChoice(grow=False))


def test_other_models_have_their_own_sampling_and_the_papers_retrieval(checkpoint):
    own = replace(checkpoint, config={"generation_config": {"guidance_scale": 3}})
    assert recommended(own) == replace(JANUS_PRO, sampling=Sampling(cfg=3))
    assert (JANUS_PRO.retrieval.neighbours, JANUS_PRO.retrieval.temperature) == (2048, 1.0)


def test_untouched_means_recommended(checkpoint, measured, pandas):
    planned = plan(checkpoint, "a panda", layers=[Layer(pandas)])
    assert planned.recipe.sampling == measured.sampling
    assert planned.recipe.layers[0].options == measured.retrieval
    assert planned.recipe.layers[0].source.spec == measured.keys
    assert images_of(planned) == [1, 2]
    text = "\n".join(planned.notes)
    assert "does not know: panda" in text
    assert "cfg 2, temperature 0.5, top_p 0.9 (cfg, temperature, top_p: measured" in text
    assert "'panda'; 2 pictures" in text
    assert "weight 1, temperature 0.1, 16 neighbours, keys causal-24" in text


def test_what_is_chosen_counts(checkpoint, measured, pandas):
    layer = Layer(
        pandas, "a*", KeyChoice("causal-8", "zero", AS_BUILT, 0.5), 0.3, 0.7, 5, "sum", 0.9
    )
    planned = plan(checkpoint, "a panda", SamplingChoice(1.0, 0.0, 4, 0.8), [layer])
    assert planned.recipe.sampling == Sampling(1.0, 0.0, 4, 0.8)
    assert planned.recipe.layers[0].options == RetrievalOptions(0.3, 0.7, 5, "sum", 0.9)
    assert planned.recipe.layers[0].source.spec == KeySpec("causal-8", "zero", "encoder", 0.5)
    assert images_of(planned) == [0, 1, 3, 4]
    assert "Sampling: cfg 1, temperature 0, top_p 0.8." in planned.notes


def test_the_own_top_p_belongs_to_the_own_temperature(checkpoint, measured):
    assert plan(checkpoint, "a car").recipe.sampling.top_p == 0.9
    assert plan(checkpoint, "a car", SamplingChoice(cfg=1.0)).recipe.sampling.top_p == 0.9
    assert plan(checkpoint, "a car", SamplingChoice(temperature=0.3)).recipe.sampling.top_p == 1.0


def test_an_adapter_has_a_weight_of_its_own(checkpoint, measured, model, pandas):
    faid = Faid(tiny_adapter(model))
    assert (
        plan(checkpoint, "panda", layers=[Layer(pandas)], faid=faid).recipe.layers[0].options.weight
        == 0.25
    )
    layer = Layer(pandas, weight=0.5)
    assert (
        plan(checkpoint, "panda", layers=[layer], faid=faid).recipe.layers[0].options.weight == 0.5
    )


@pytest.mark.parametrize(
    ("prompt", "only", "images", "note"),
    [
        ("a panda", PROMPT, [1, 2], "'panda'; 2 pictures"),
        ("a red car", PROMPT, None, "knows every word"),
        ("a zebra", PROMPT, None, "No caption of the index has 'zebra'"),
        ("a red car", f"{PROMPT} lamp", [4], "'lamp'; 1 picture of"),
        ("a panda", f"{PROMPT} car", [2], "1 picture of the index"),
        ("a panda", "*car*", [0, 2], "2 pictures match '*car*'"),
        ("a red car", "car", [0, 2], "2 pictures match 'car'"),
        ("a panda", "", [0, 1, 2, 3, 4], None),
        ("a red car", "  ", [0, 1, 2, 3, 4], None),
    ],
)
def test_the_prompt_chooses_the_pictures(checkpoint, pandas, prompt, only, images, note):
    encoded = checkpoint.prompt_encoder.encode(prompt)
    index, notes = select(Layer(pandas, only), encoded, has_unknown=True)
    assert (note is None) == (notes == [])
    assert note is None or note in notes[0]
    found = index if index is None else index.images
    if images is None:
        assert index is None
    else:
        assert (list(range(5)) if found is None else found.tolist()) == images


def test_a_model_that_knows_every_word_is_asked_with_all_words(checkpoint, pandas):
    prompt = checkpoint.prompt_encoder.encode("two red pandas on a car")
    index, _ = select(Layer(pandas), replace(prompt, unknown=[]), has_unknown=False)
    assert index.images.tolist() == [2]


def test_an_index_without_captions_is_used_as_a_whole(checkpoint, index):
    bare = captioned(index, [""] * 5)
    planned = plan(checkpoint, "a panda", layers=[Layer(bare)])
    assert planned.recipe.layers[0].source.images is None
    assert any("no captions" in note for note in planned.notes)


def test_the_subject_is_found_once(checkpoint, pandas, monkeypatch):
    plan(checkpoint, "a panda", layers=[Layer(pandas)])
    monkeypatch.setattr("arrag_engine.index.sources.find_subject", None)
    assert images_of(plan(checkpoint, "a panda", layers=[Layer(pandas)])) == [1, 2]


@pytest.mark.parametrize("structure", ["ivf", "compact"])
def test_recommended_keys_stay_as_built_where_they_are_fixed(model, checkpoint, structure):
    spec = KeySpec(space="codebook" if structure == "compact" else "encoder")
    fixed = tiny_index(model, 30, spec=spec, structure=structure)
    planned = plan(checkpoint, "car", layers=[Layer(fixed, only="")])
    assert planned.recipe.layers[0].source.spec == spec
    assert any("as built" in note for note in planned.notes)
    with pytest.raises(InputError, match="are fixed"):
        plan(checkpoint, "car", layers=[Layer(fixed, "", KeyChoice("causal-8"))])


def test_an_index_of_codes_has_the_recommended_keys_of_codes(model, checkpoint, measured):
    codes = tiny_index(model, spec=KeySpec(space="codebook"))
    planned = plan(checkpoint, "car", layers=[Layer(codes, only="")])
    assert planned.recipe.layers[0].source.spec == replace(measured.keys, space="codebook")


def test_auto_takes_the_index_as_it_was_calibrated(checkpoint, measured, pandas):
    calibrated = replace(pandas, calibration=CALIBRATION)
    planned = plan(checkpoint, "a panda", layers=[Layer(calibrated, weight="auto")])
    used = planned.recipe.layers[0].source
    assert (used.spec, used.images) == (pandas.spec, None)
    assert planned.recipe.layers[0].options == RetrievalOptions("auto", 0.2, 8)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"only": "panda"}, "with all of its 5 pictures, not with 2"),
        ({"keys": KeyChoice("causal-8", AS_BUILT, AS_BUILT)}, "with the keys causal-4"),
    ],
)
def test_auto_names_the_true_reason(checkpoint, pandas, layer, message):
    calibrated = replace(pandas, calibration=CALIBRATION)
    with pytest.raises(InputError, match=message):
        plan(checkpoint, "a panda", layers=[Layer(calibrated, weight="auto", **layer)])
    with pytest.raises(InputError, match="it is not calibrated; run"):
        plan(checkpoint, "a panda", layers=[Layer(pandas, weight="auto", **layer)])


def test_a_weight_that_hides_an_unknown_subject_is_named(checkpoint, measured, pandas):
    notes = plan(checkpoint, "a panda", layers=[Layer(pandas, weight=0.1)]).notes
    assert "2 pictures of 'panda', but a weight of 0.1 is too low to show it; 1 is" in notes[-1]
    assert (
        "too low" not in plan(checkpoint, "a panda", layers=[Layer(pandas, weight=0.9)]).notes[-1]
    )
    assert (
        "too low" not in plan(checkpoint, "a car", layers=[Layer(pandas, "", weight=0.1)]).notes[-1]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda index: Layer(index, weight=1.5),
        lambda index: Layer(index, neighbours=0),
        lambda _: SamplingChoice(cfg=-1.0),
        lambda _: SamplingChoice(top_p=0.0),
    ],
)
def test_values_out_of_range_are_refused_at_once(index, wrong):
    with pytest.raises(InputError, match="choose"):
        wrong(index)


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_no_negative_prompt_is_the_attended_pads(checkpoint, blank):
    planned = plan(checkpoint, "a red car", negative=blank)
    assert planned.recipe.unconditional == [1, *[2] * 7, 4]
    assert planned.notes == plan(checkpoint, "a red car").notes


def test_a_negative_prompt_is_encoded_as_a_prompt_is(checkpoint):
    planned = plan(checkpoint, "a red car", negative="two purple apples")
    encoded = checkpoint.prompt_encoder.encode("two purple apples")
    assert planned.recipe.prompt == checkpoint.prompt_encoder.encode("a red car").ids
    assert planned.recipe.unconditional == encoded.ids
    assert planned.notes[0] == "The model does not know, of the negative prompt: purple."
    assert planned.prompt.unknown == []
    pictures = {
        tuple(draw(checkpoint, plan(checkpoint, "a red car", negative=text), [3]).tokens.flatten())
        for text in ("", "two purple apples", "apples")
    }
    assert len(pictures) == 3


def test_at_guidance_1_a_negative_prompt_does_nothing_and_the_note_says_so(checkpoint):
    choice = SamplingChoice(cfg=1.0)
    with_one = plan(checkpoint, "a red car", choice, negative="purple apples")
    without = plan(checkpoint, "a red car", choice)
    said = [note for note in with_one.notes if note not in without.notes]
    assert said == ["The negative prompt has no effect: guidance (cfg) is 1."]
    assert with_one.recipe.streams == without.recipe.streams
    assert torch.equal(
        draw(checkpoint, with_one, [3]).tokens, draw(checkpoint, without, [3]).tokens
    )


@pytest.mark.parametrize(
    ("negative", "message"),
    [
        (
            "red " * 500,
            r"^the negative prompt has 506 tokens, at most 476 are allowed; shorten it$",
        ),
        ("x" * 20_001, r"^the negative prompt has 20001 characters"),
        ("\ud800", "^the negative prompt contains an incomplete character"),
        (7, "^the negative prompt is 7; write"),
    ],
)
def test_an_impossible_negative_prompt_is_refused_in_the_plan(checkpoint, negative, message):
    for cfg in (None, 1.0):
        with pytest.raises(InputError, match=message):
            plan(checkpoint, "a red car", SamplingChoice(cfg=cfg), negative=negative)


def test_nothing_to_retrieve_draws_what_the_model_draws(checkpoint, pandas):
    alone = plan(checkpoint, "a red car")
    nothing = plan(checkpoint, "a red car", layers=[Layer(pandas)])
    assert not nothing.recipe.layers
    pictures = [draw(checkpoint, planned, [3]).tokens for planned in (alone, nothing)]
    assert torch.equal(*pictures)


def test_a_small_model_draws_on_one_thread_and_gives_the_others_back(checkpoint, monkeypatch):
    before = torch.get_num_threads()
    seen = []
    torch.set_num_threads(2)
    try:
        planned = plan(checkpoint, "a red car")
        draw(checkpoint, planned, [3], progress=lambda *_: seen.append(torch.get_num_threads()))
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
        seen.clear()
        monkeypatch.setattr(threads, "SMALL", 10)
        draw(checkpoint, planned, [3], progress=lambda *_: seen.append(torch.get_num_threads()))
        assert set(seen) == {2}

        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.undo()
        with pytest.raises(KeyboardInterrupt):
            draw(checkpoint, planned, [3], progress=stop)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_images_are_numbers_of_the_whole_index(pandas):
    """A view of all pictures is the index itself, with its calibration."""
    calibrated = replace(pandas, calibration=CALIBRATION)
    assert calibrated.restricted(np.arange(5)) is calibrated
    assert calibrated.restricted(np.arange(4)).calibration is None


def test_an_exact_batch_is_drawn_picture_by_picture(model_file):
    """In 16 bit each picture is the one drawn alone; in float32 a batch is that anyway."""
    loaded = load_checkpoint(model_file, torch.bfloat16)
    layer = Layer(tiny_index(loaded.model), only="", weight=0.4)
    planned = session.plan(loaded, "red", layers=[layer])
    alone = [session.draw(loaded, planned, [seed]) for seed in (3, 4, 5)]
    seen = []
    batch = session.draw(
        loaded,
        planned,
        [3, 4, 5],
        progress=lambda done, tokens: seen.append((done, tokens.copy())),
        exact_batch=True,
    )
    assert torch.equal(batch.tokens, torch.cat([one.tokens for one in alone]))
    assert batch.passes == sum(one.passes for one in alone)
    assert len(batch.traces) == 3
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    for done, tokens in seen:
        drawn = (tokens >= 0).sum(axis=1)
        assert drawn.sum() // 3 == done
        assert sorted(drawn)[::-1] == list(drawn), "one picture after the other"
        assert np.array_equal(tokens[tokens >= 0], batch.tokens.flatten(1).numpy()[tokens >= 0])
    assert (seen[-1][1] >= 0).all()
    whole = load_checkpoint(model_file, torch.float32)
    planned = session.plan(whole, "red")
    one, other = (
        session.draw(whole, planned, [3, 4], exact_batch=exact) for exact in (False, True)
    )
    assert torch.equal(one.tokens, other.tokens)
    assert one.passes == other.passes  # together


def test_the_window_of_nobody_s_choice_is_the_device_s(model_file):
    assert session.device_window(torch.device("cpu")) == 1
    assert session.device_window(torch.device("cuda")) == 16
    loaded = load_checkpoint(model_file, torch.float32)
    planned = session.plan(loaded, "red")
    assert session.draw(loaded, planned, [3]).passes == 36
    assert session.draw(loaded, planned, [3], window=36).passes < 36
    with pytest.raises(InputError, match="window is -1; choose 0 to 4096"):
        session.draw(loaded, planned, [3], window=-1)
