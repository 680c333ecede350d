"""Prompts in GenEval's format, and what makes a picture right."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrag_engine.errors import InputError
from scripts.pocket.bench import PROMPTS
from scripts.pocket.bench.prompts import (
    DIRECTIONS,
    KINDS,
    BenchPrompt,
    Wanted,
    from_record,
    judge,
    read_prompts,
    to_record,
    write_prompts,
)
from scripts.pocket.bench.scorer import Detection

words = st.sampled_from(["cat", "dog", "car"])
colors = st.none() | st.sampled_from(["red", "blue"])


def at(name, x=0.5, y=0.5, color=None, style="fluent"):
    return Detection(name, color, style, x, y, 0.9)


@st.composite
def prompts(draw):
    count = draw(st.integers(1, 3))
    include = [
        Wanted(
            draw(words),
            draw(st.integers(1, 4)),
            draw(colors),
            draw(st.none() | st.tuples(st.sampled_from(list(DIRECTIONS)), st.integers(0, i - 1)))
            if i
            else None,
        )
        for i in range(count)
    ]
    exclude = draw(st.lists(st.tuples(words, st.integers(1, 5)), max_size=2))
    style = draw(st.none() | st.just("google"))
    return BenchPrompt(draw(st.sampled_from(KINDS)), "text", tuple(include), tuple(exclude), style)


@given(prompts())
def test_prompts_survive_their_records(prompt):
    assert from_record(json.loads(json.dumps(to_record(prompt)))) == prompt


def test_prompts_survive_a_file(tmp_path):
    wanted = [
        BenchPrompt("counting", "two cats", (Wanted("cat", 2),), (("cat", 3),)),
        BenchPrompt("colors", "a red car", (Wanted("car", 1, "red"),)),
    ]
    write_prompts(wanted, tmp_path / "p.jsonl")
    assert read_prompts(tmp_path / "p.jsonl") == wanted


def test_geneval_records_are_read_as_they_are():
    record = {
        "tag": "position",
        "include": [
            {"class": "bench", "count": 1},
            {"class": "dog", "count": 1, "position": ["right of", 0]},
        ],
        "prompt": "a photo of a dog right of a bench",
    }
    prompt = from_record(record)
    assert prompt.include[1] == Wanted("dog", 1, None, ("right of", 0))
    assert to_record(prompt) == record


@pytest.mark.parametrize(
    "line",
    ["[]", "{", '{"tag": "x", "prompt": "y"}', '{"tag": "x", "prompt": "y", "include": [{}]}']
    + [
        '{"tag": "x", "prompt": "y", "include": [{"class": "a", "count": 1, "position": '
        f"{position}}}]}}"
        for position in ('["beside", 0]', '["above", 0]', '["above", 3]')
    ],
)
def test_other_lines_are_refused(tmp_path, line):
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"line 1 of .* is not a prompt"):
        read_prompts(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("prompt", "found", "right", "objects"),
    [
        ([Wanted("cat")], [], False, 0),
        ([Wanted("cat")], [at("dog")], False, 0),
        ([Wanted("cat")], [at("cat"), at("dog")], True, 1),
        ([Wanted("cat"), Wanted("dog")], [at("cat")], False, 0.5),
        ([Wanted("cat", 3)], [at("cat")] * 2, False, 2 / 3),
        ([Wanted("cat", 3)], [at("cat")] * 4, True, 1),
        ([Wanted("cat", 1, "red")], [at("cat")], False, 1),
        ([Wanted("cat", 1, "red")], [at("cat", color="red")], True, 1),
        ([Wanted("cat", 1, "red")], [at("cat", color="blue"), at("cat", color="red")], False, 1),
    ],
)
def test_pictures_are_right_when_all_asked_for_is_there(prompt, found, right, objects):
    verdict = judge(BenchPrompt("two_object", "", tuple(prompt)), found)
    assert verdict.right is right
    assert verdict.objects == pytest.approx(objects)


def test_too_many_are_wrong():
    prompt = BenchPrompt("counting", "", (Wanted("cat", 2),), (("cat", 3),))
    assert judge(prompt, [at("cat")] * 2).right
    assert not judge(prompt, [at("cat")] * 3).right


def test_another_style_is_wrong():
    prompt = BenchPrompt("style", "", (Wanted("cat"),), style="google")
    assert judge(prompt, [at("cat", style="google")]).right
    assert not judge(prompt, [at("cat")]).right


@pytest.mark.parametrize(("relation", "step"), DIRECTIONS.items())
def test_places_are_relative_to_the_earlier_thing(relation, step):
    include = (Wanted("cat"), Wanted("dog", 1, None, (relation, 0)))
    prompt = BenchPrompt("position", "", include)
    for other, (dx, dy) in DIRECTIONS.items():
        found = [at("cat"), at("dog", 0.5 + 0.3 * dx, 0.5 + 0.3 * dy)]
        assert judge(prompt, found).right == (other == relation)
    near = [at("cat"), at("dog", 0.5 + 0.05 * step[0], 0.5 + 0.05 * step[1])]
    assert not judge(prompt, near).right
    slanted = [at("cat"), at("dog", 0.5 + 0.3 * (step[0] or 0.9), 0.5 + 0.3 * (step[1] or 0.9))]
    assert judge(prompt, slanted).right  # less than 60 degrees off


def test_the_prompts_are_enough_of_every_kind():
    every = read_prompts(PROMPTS)
    for kind in (*KINDS, "concept", "style"):
        texts = [prompt.text for prompt in every if prompt.kind == kind]
        assert len(set(texts)) == len(texts) >= 50
    for prompt in every:
        told = {"counting": prompt.exclude, "colors": prompt.include[0].color}
        assert told.get(prompt.kind, True)
        assert all(wanted.name in prompt.text or wanted.count > 1 for wanted in prompt.include)
