"""The table of sources against a plain list of them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrag_engine.index import Source, SourceTable, load_index, save_index
from arrag_engine.index.blobs import Blobs, BlobWriter
from arrag_engine.index.container import Stream
from tests.tiny import tiny_source

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SIDES = st.integers(0, 2**31 - 1)


@st.composite
def sources(draw):
    width, height = draw(SIDES), draw(SIDES)
    left, right = sorted((draw(st.integers(0, width)), draw(st.integers(0, width))))
    top, bottom = sorted((draw(st.integers(0, height)), draw(st.integers(0, height))))
    return Source(
        draw(TEXT),
        draw(TEXT),
        width,
        height,
        draw(st.one_of(st.just(""), st.integers(1, 2**256 - 1).map("{:064x}".format))),
        draw(st.sampled_from(["CC0", "", "CC-BY ä"])),
        draw(st.binary(max_size=9)),
        draw(TEXT),
        (left, top, right, bottom),
    )


LISTS = st.lists(sources(), max_size=6)


def whole(tensor):
    if isinstance(tensor, Stream):
        return np.concatenate([np.zeros(0, tensor.dtype), *tensor.chunks])
    return tensor


def read_back(table):
    arrays = {name: whole(tensor) for name, tensor in table.arrays().items()}
    return SourceTable.from_arrays(arrays, len(table))


@given(LISTS)
def test_a_table_is_the_list_it_was_made_from(rows):
    table = SourceTable.from_sources(rows)
    assert list(table) == rows
    assert list(read_back(table)) == rows
    assert list(table[1:3]) == rows[1:3]


@given(LISTS, LISTS, st.data())
def test_taking_and_joining_are_those_of_lists(a, b, data):
    joined = SourceTable.concat([SourceTable.from_sources(a), SourceTable.from_sources(b)])
    assert list(joined) == a + b
    numbers = st.lists(st.integers(0, len(a + b) - 1)) if a + b else st.just([])
    rows = data.draw(numbers)
    taken = joined.take(np.array(rows, dtype=int))
    assert list(taken) == [(a + b)[i] for i in rows]
    assert list(read_back(taken)) == list(taken)


@given(st.lists(st.binary(max_size=5)), st.data())
def test_a_stream_of_byte_strings_is_their_concatenation(items, data):
    writer = BlobWriter()
    for item in items:
        writer.append(item)
    blobs = writer.blobs()
    rows = data.draw(st.lists(st.integers(0, len(items) - 1)) if items else st.just([]))
    taken = Blobs.concat([blobs.take(np.array(rows, dtype=int)), blobs])
    wanted = [items[i] for i in rows] + items
    stream = taken.stream()
    assert whole(stream).tobytes() == b"".join(wanted)
    assert stream.shape == (len(b"".join(wanted)),)
    assert taken.ends.tolist() == np.cumsum([len(w) for w in wanted], dtype=int).tolist()


def test_taking_copies_no_bytes():
    table = SourceTable.from_sources(tiny_source(i) for i in range(4))
    joined = SourceTable.concat([table.take(np.array([2, 0])), table])
    for part in joined.thumbnails.parts:
        assert np.shares_memory(part, table.thumbnails.parts[0])


def test_names_and_captions_of_all_kinds_are_read_back(tmp_path, index):
    rows = [
        replace(s, name=f"ä/{i} \n.png", caption="日本 \0 🍎" * i, thumbnail=b"\xff" * (i % 3))
        for i, s in enumerate(index.sources)
    ]
    odd = replace(index, sources=SourceTable.from_sources(rows))
    save_index(odd, tmp_path / "a.safetensors")
    assert list(load_index(tmp_path / "a.safetensors").sources) == rows


def test_text_that_no_file_can_hold_is_replaced():
    table = SourceTable.from_sources([replace(tiny_source(0), name="\ud800.png", licence="\udcff")])
    assert (table[0].name, table[0].licence) == ("?.png", "?")


def test_bytes_that_are_no_text_are_shown_as_such_and_do_not_stop_the_rest():
    table = SourceTable.from_sources([tiny_source(0), tiny_source(1)])
    arrays = {name: whole(tensor).copy() for name, tensor in table.arrays().items()}
    arrays["names"][0] = 255
    assert [s.name for s in SourceTable.from_arrays(arrays, 2)] == ["\ufffd.png", "1.png"]


def test_licences_are_counted_most_frequent_first():
    names = ["", "CC0", "CC0", "MIT", "CC0", "MIT"]
    table = SourceTable.from_sources(
        replace(tiny_source(i), licence=name) for i, name in enumerate(names)
    )
    assert list(table.licence_counts().items()) == [("CC0", 3), ("MIT", 2), ("", 1)]
    assert table.take(np.array([1, 3])).licence_counts() == {"CC0": 1, "MIT": 1}


@pytest.mark.parametrize(
    ("pattern", "fields", "wanted"),
    [
        ("RED", ["caption"], [0, 2]),
        ("red*", ["caption"], [2]),
        ("*red*", ["caption"], [0, 2]),
        ("a ??? car", ["caption"], [0]),
        ("[rs]*", ["caption"], [2, 3]),
        ("straße", ["caption"], [3]),
        ("STRASSE", ["caption"], [3]),
        ("1.png", ["name"], [1]),
        ("example.org/3", ["origin"], [3]),
        ("1", ["name", "caption", "origin"], [1]),
        ("cc", ["licence"], [0, 1, 2, 3]),
        ("(a+)+$", ["caption"], []),
        ("", ["caption"], [0, 1, 2, 3]),
    ],
)
def test_patterns_are_looked_for_whatever_the_case(pattern, fields, wanted):
    captions = ["a red car", "", "Red\nhat", "Straße"]
    table = SourceTable.from_sources(
        replace(tiny_source(i), caption=caption) for i, caption in enumerate(captions)
    )
    assert table.matching(pattern, fields).tolist() == wanted


def test_a_pattern_made_to_take_for_ever_does_not():
    table = SourceTable.from_sources([replace(tiny_source(0), caption="a" * 2000)])
    assert table.matching("*a" * 30 + "*b", ["caption"]).tolist() == []


@given(st.lists(st.tuples(st.sampled_from(["", "1" * 64, "2" * 64]), st.sampled_from([0, 3]))))
def test_duplicates_are_the_same_part_of_the_same_file(rows):
    table = SourceTable.from_sources(
        replace(tiny_source(0), sha256=sha256, crop=(left, 0, 5, 5)) for sha256, left in rows
    )
    wanted = [i for i, row in enumerate(rows) if not row[0] or row not in rows[:i]]
    assert table.without_duplicates().tolist() == wanted


def test_a_table_of_unknown_sources_can_be_kept():
    table = SourceTable.unknown(3)
    assert list(read_back(table)) == [Source("", "", 0, 0, "", "", b"")] * 3
    assert table.without_duplicates().tolist() == [0, 1, 2]
