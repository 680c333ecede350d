"""Lists of prompts: what is read, and what is refused with its line."""

import json
import os
import re
from pathlib import Path

import pytest

from arrag_engine.errors import InputError
from arrag_engine.evaluate.prompt_lists import read_dpg, read_geneval, read_prompts
from scripts.comfyui import ROOT

BENCHMARKS = Path(os.environ.get("ARRAG_BENCHMARKS", ROOT.parent / "shared" / "benchmarks"))
STRANGE = [
    'a "red" car, the owner\'s',
    "une voiture rouge d’été",
    "一辆红色的汽车",
    "سيارة حمراء",
    "🚗 on grass\u2028and on",  # a line separator ends no line of a file
    " ".join(["car"] * 2000),
]


def write(path, text):
    path.write_bytes(text.encode())
    return path


def texts(prompts):
    return [entry.text for entry in prompts.entries]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_a_text_are_prompts(tmp_path, end):
    path = write(tmp_path / "p.txt", end.join([*STRANGE, "", ""]))
    found = read_prompts(path)
    assert texts(found) == STRANGE
    assert [entry.number for entry in found.entries] == list(range(len(STRANGE)))


def test_a_byte_order_mark_belongs_to_no_prompt(tmp_path):
    assert texts(read_prompts(write(tmp_path / "p.txt", "\ufeffa car\n"))) == ["a car"]
    assert texts(read_prompts(write(tmp_path / "p.csv", "\ufeffprompt\na car\n"))) == ["a car"]
    (tmp_path / "w.txt").write_bytes("a car\n".encode("utf-16"))
    assert texts(read_prompts(tmp_path / "w.txt")) == ["a car"]


def test_jsonl_and_csv_hold_line_breaks_and_quotes(tmp_path):
    wanted = [*STRANGE, 'a car\nand a "house",\r\nboth red']
    lines = [json.dumps({"id": i, "Caption": text}) for i, text in enumerate(wanted)]
    assert texts(read_prompts(write(tmp_path / "p.jsonl", "\n".join(lines)))) == wanted
    lines = [json.dumps(text, ensure_ascii=False) for text in wanted]
    assert texts(read_prompts(write(tmp_path / "q.jsonl", "\n".join(lines)))) == wanted
    rows = ["id,text,x", *('{},"{}",'.format(1, text.replace('"', '""')) for text in wanted)]
    assert texts(read_prompts(write(tmp_path / "p.csv", "\n".join(rows)))) == wanted


def test_a_column_can_be_chosen(tmp_path):
    path = write(tmp_path / "p.tsv", "prompt\tlong one\na\ta car\n")
    assert texts(read_prompts(path)) == ["a"]
    assert texts(read_prompts(path, "long one")) == ["a car"]
    path = write(tmp_path / "p.jsonl", '{"prompt": "a", "other": "b"}\n')
    assert texts(read_prompts(path, "other")) == ["b"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "a car\n\na house\n", "line 2 of .*p.txt is empty; remove it"),
        ("p.txt", "\n\n", "holds no prompt; write one a line"),
        ("p.txt", "a\n" + "b" * 30_000, "line 2 of .*: the prompt has 30000 characters, at most"),
        ("p.jsonl", '"a"\n{"prompt": 3}', "line 2 of .*: the prompt is 3; write what to draw"),
        ("p.jsonl", '"a"\n{"x": "b"}', "line 2 of .* has none of prompt, caption, text, it names"),
        ("p.jsonl", '"a"\n"b', "line 2 of .* is not JSON"),
        ("p.jsonl", '"a"\n' + "[" * 99_999, "line 2 of .* is not JSON"),
        ("p.jsonl", '"a"\n"\\ud800"', "line 2 of .* incomplete character"),
        ("p.csv", "id,x\n1,a\n", "the first row of p.csv has none of prompt, caption, text"),
        ("p.csv", 'prompt,x\n"a\nb",1\n,2\n', "line 4 of .*: the prompt is empty"),
        ("p.csv", "prompt\na\n\nb\n", "line 3 of .* is empty; remove it"),
        ("p.csv", 'prompt\na\n"b', "line 3 of .* is not a row"),
        ("p.csv", "", "the first row of p.csv has none of prompt.*it names nothing"),
        ("p.csv", "prompt\n", "holds no prompt"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_line(tmp_path, name, text, message):
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)) as refused:
        read_prompts(write(tmp_path / name, text))
    assert len(str(refused.value)) < 600


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as text"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(InputError, match="there is no file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(InputError, match="is text without columns; omit the column 'x'"):
        read_prompts(write(tmp_path / "p.txt", "a"), "x")


def test_geneval_keeps_what_its_scorer_needs(tmp_path):
    record = {"tag": "counting", "include": [{"class": "bus", "count": 2}], "prompt": "two buses"}
    path = write(tmp_path / "m.jsonl", json.dumps(record) + "\n" + json.dumps(record) + "\n")
    entries = read_geneval(path).entries
    assert [entry.record for entry in entries] == [record, record]
    assert [entry.number for entry in entries] == [0, 1]
    for line, message in (
        ('{"prompt": "a"}', "line 3 of .* is not an object with 'tag' and 'prompt'"),
        ('{"tag": "x", "prompt": " "}', "line 3 of .*: the prompt is empty"),
        ("7", "line 3 of .* is not an object"),
    ):
        changed = write(tmp_path / "n.jsonl", path.read_text() + line)
        with pytest.raises(InputError, match=message):
            read_geneval(changed)


def test_dpg_is_a_folder_of_texts(tmp_path):
    for name, text in (("10", "ten"), ("9", "nine\n"), ("coco2", "two\nlines"), ("coco10", "x")):
        write(tmp_path / f"{name}.txt", text)
    write(tmp_path / "notes.md", "")
    found = read_dpg(tmp_path)
    assert [entry.name for entry in found.entries] == ["9", "10", "coco2", "coco10"]
    assert texts(found) == ["nine", "ten", "two\nlines", "x"]
    write(tmp_path / "11.txt", " ")
    with pytest.raises(InputError, match=r"11\.txt: the prompt is empty"):
        read_dpg(tmp_path)
    (tmp_path / "11.txt").rename(tmp_path / "1.1.txt")
    with pytest.raises(InputError, match="has a dot in its name"):
        read_dpg(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"has no \.txt files"):
        read_dpg(tmp_path / "none")


def test_the_digest_follows_every_prompt(tmp_path):
    one = read_prompts(write(tmp_path / "a.txt", "a\nb"))
    assert one.digest == read_prompts(write(tmp_path / "b.txt", "a\r\nb\n\n")).digest
    assert one.digest != read_prompts(write(tmp_path / "c.txt", "b\na")).digest


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not here")
def test_the_official_lists_are_read():
    found = read_geneval(BENCHMARKS / "geneval/evaluation_metadata.jsonl").entries
    assert len(found) == 553
    assert found[0].text == "a photo of a bench"
    assert len(read_dpg(BENCHMARKS / "dpg/dpg_bench/prompts").entries) == 1065
