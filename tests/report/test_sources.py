"""What a picture owes to its sources, against counting."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.index import SourceTable
from arrag_engine.report import heat_map, influence, make_report, make_view, source_sheet
from arrag_engine.report.pictures import RAMP
from arrag_engine.report.sources import CELL, cells
from arrag_engine.report.view import CANDIDATES
from arrag_engine.retrieval import Steering, copied_regions, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from tests.tiny import BLANK, PROMPT, tiny_index

SIDE = 6
HOSTILE = "<img src=x onerror=alert(1)>\n\u202e.png"


def trace_of(model, *layers, seed=7):
    """A drawing with layers (index, weight, options of make_retriever)."""
    codebook = model.vq.quantize.rows(torch.device("cpu")).numpy()
    retrievers = [
        make_retriever(
            index, model.config.grid, codebook, RetrievalOptions(weight, neighbours=12), **more
        )
        for index, weight, more in layers
    ]
    recipe = Recipe(PROMPT, BLANK, Sampling(cfg=3.0), retrievers)
    return draw_pictures(model, recipe, [seed]).traces[0]


@pytest.fixture(scope="module")
def trace(model):
    lower = {"steering": Steering(region=np.array([[0.0], [1.0]]))}
    return trace_of(
        model, (tiny_index(model, 5, 0), 0.5, {}), (tiny_index(model, 4, 1), 0.4, lower)
    )


@pytest.fixture(scope="module")
def copied(model):
    """A picture that retrieval draws alone from an index of one."""
    return trace_of(model, (tiny_index(model, 1, 0), 1.0, {}))


@pytest.fixture(scope="module")
def picture():
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_shares_are_those_of_the_trace(trace, picture):
    report = make_report(trace, 3, picture)
    for j in range(2):
        shares = trace.source_shares(j)
        mine = {row.number: row.share for row in report.rows if row.layer == j and row.share}
        assert mine == {i: shares[i] for i in np.flatnonzero(shares)}
    assert report.retrieved == pytest.approx(trace.responsibility.mean())
    assert [row.share for row in report.rows] == sorted(
        (r.share for r in report.rows), reverse=True
    )


@pytest.mark.parametrize("larger_than", [0, 2, 5, 35])
def test_the_score_counts_positions_of_large_regions(trace, picture, larger_than):
    report, inside = make_report(trace, larger_than, picture), set()
    largest = {}
    for j, layer in enumerate(trace.layers):
        among = set(layer.hits.sources[layer.hits.found()].tolist())
        tokens = layer.source.tokens
        for one in copied_regions(trace.grid, tokens, trace.tokens, sorted(among), larger_than):
            inside |= set(one.positions.tolist())
            key = (j, one.source)
            largest[key] = max(largest.get(key, 0), len(one.positions))
    assert report.score == pytest.approx(len(inside) / SIDE**2)
    assert {(r.layer, r.number): r.largest for r in report.rows if r.largest} == largest


def test_a_source_that_is_no_candidate_is_not_looked_at(copied, picture):
    """Another picture of the index with the same tokens."""
    [layer] = copied.layers
    index = layer.source
    twice = replace(
        index,
        tokens=np.concatenate([index.tokens, index.tokens]),
        sources=SourceTable.from_sources([index.sources[0], index.sources[0]]),
    )
    more = replace(copied, layers=(replace(layer, source=twice),))
    assert [row.number for row in make_report(more, 3, picture).rows] == [0]


def test_the_distance_is_that_of_the_pixels_beside_each_other(copied, picture):
    """Of one region, by plain loops."""
    [row] = make_report(copied, 3, picture).rows
    [layer] = copied.layers
    its = cells(Image.open(io.BytesIO(row.source.thumbnail)), copied.grid)
    mine = np.asarray(picture.resize((SIDE * CELL, SIDE * CELL), Image.Resampling.BOX)) / 255
    squares = []
    for one in copied_regions(copied.grid, layer.source.tokens, copied.tokens, [0], 3):
        for p in one.positions.tolist():
            r, c = divmod(p, SIDE)
            here = mine[r * CELL : (r + 1) * CELL, c * CELL : (c + 1) * CELL].reshape(-1)
            squares.append(((here - its[(r + one.down) * SIDE + c + one.right]) ** 2).mean())
    assert row.distance == pytest.approx(np.sqrt(np.mean(squares)))


def test_a_source_without_thumbnail_has_no_distance(copied, picture):
    [layer] = copied.layers
    bare = replace(layer.source, sources=SourceTable.unknown(1))
    report = make_report(replace(copied, layers=(replace(layer, source=bare),)), 3, picture)
    assert report.rows[0].distance is None
    assert report.distance is None
    assert report.score > 0


def test_the_text_is_one_line_a_source(copied, picture):
    [layer] = copied.layers
    named = replace(layer.source.sources[0], name=HOSTILE, licence="CC0")
    index = replace(layer.source, sources=SourceTable.from_sources([named]))
    text = make_report(replace(copied, layers=(replace(layer, source=index),)), 3, picture).text()
    [line] = [line for line in text.splitlines() if "CC0" in line]
    assert line.endswith("CC0: <img src=x onerror=alert(1)> \\u202e.png")
    assert text.startswith(f"{copied.responsibility.mean():.1%} of the picture is owed to")


def test_a_picture_without_retrieval(model, picture):
    trace = trace_of(model)
    report = make_report(trace, 16, picture)
    assert (report.rows, report.score, report.retrieved) == ((), 0, 0)
    assert "Nothing is owed to a source." in report.text()
    view = make_view(trace, report)
    assert view.data["sources"] == []
    assert view.data["candidates"] == [[]] * SIDE**2
    assert source_sheet(report).size[0] > 0


@pytest.mark.parametrize("value", [-1, 10**9, 1.5])
def test_a_size_out_of_range_is_refused(copied, picture, value):
    with pytest.raises(InputError, match="larger_than is"):
        make_report(copied, value, picture)


def test_a_heat_map_shows_each_cell_in_its_colour(trace):
    shares = influence(trace)
    assert shares.shape == (SIDE, SIDE)
    black = Image.new("RGB", (60, 60))
    map_ = np.asarray(heat_map(black, np.round(shares), 1.0))
    for row, column in np.ndindex(SIDE, SIDE):
        wanted = RAMP[-1] if shares[row, column] > 0.5 else RAMP[0]
        assert (map_[row * 10 : row * 10 + 10, column * 10 : column * 10 + 10] == wanted).all()
    assert not np.asarray(heat_map(black, shares, 0.0)).any()
    with pytest.raises(InputError, match="opacity is 2"):
        heat_map(black, shares, 2)


def test_the_view_lists_the_candidates_with_the_largest_shares(trace, picture):
    view = make_view(trace, make_report(trace, 3, picture))
    data = view.data
    for position, listed in enumerate(data["candidates"]):
        every = [
            (round(float(layer.weight[position] * share), 4), j, int(source))
            for j, layer in enumerate(trace.layers)
            for share, source in zip(
                layer.shares[position], layer.hits.sources[position], strict=True
            )
            if source >= 0
        ]
        shares = sorted((share for share, _, _ in every), reverse=True)[:CANDIDATES]
        assert [one[3] for one in listed] == shares
        for number, place, _, share, same in listed:
            source = data["sources"][number]
            index = trace.layers[source["layer"]].source
            [image] = index.sources.named(source["name"])
            assert (share, source["layer"], image) in every
            assert same == (index.tokens[image, place] == trace.tokens[position])


def test_kept_tokens_come_first_in_the_drawing_order(trace, picture):
    kept = replace(trace, component=np.where(np.arange(36) % 2, -2, trace.component))
    order = make_view(kept, make_report(kept, 3, picture)).data["order"]
    assert order[1::2] == [0] * 18
    assert order[::2] == list(range(1, 19))


def test_names_of_strangers_are_texts_and_their_thumbnails_are_drawn_anew(copied, picture):
    [layer] = copied.layers
    good = layer.source.sources[0].thumbnail
    for thumbnail in (good, good + b"<script>", b"<svg onload=alert(1)>", b""):
        source = replace(layer.source.sources[0], name=HOSTILE, thumbnail=thumbnail)
        index = replace(layer.source, sources=SourceTable.from_sources([source]))
        changed = replace(copied, layers=(replace(layer, source=index),))
        view = make_view(changed, make_report(changed, 3, picture))
        [shown] = view.data["sources"]
        assert shown["name"] == "<img src=x onerror=alert(1)> \\u202e.png"
        assert shown["exclude"] == "=" + " ".join(HOSTILE.split())
        assert index.sources.any_of([shown["exclude"]]).tolist() == [0]
        assert view.thumbnails.size == (64, 64)
        assert view.thumbnails.info == {}
