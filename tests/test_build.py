"""Indexes from folders of pictures and from pictures in memory."""

import hashlib
import io
import os
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from arrag_engine import images
from arrag_engine.build import (
    BuildOptions,
    ReadSettings,
    build_from_images,
    build_index,
    building,
    encode_folder,
    encode_images,
)
from arrag_engine.build.reading import BATCH, Unreadable, read_ahead
from arrag_engine.errors import InputError
from arrag_engine.images import crop_boxes, cut, fit, open_picture, square, to_tensor
from arrag_engine.index import KeySpec, create_index, load_index
from arrag_engine.models.showo.pixels import to_pixels
from tests.pictures import picture
from tests.tiny_showo import tiny_showo

READABLE = ["a.png", "b.jpg", "c.webp", "d.png", "e.png", "f.jpg", "g.png", "sub/a.png"]
COVER = BuildOptions(read=ReadSettings(crops="cover"))


@pytest.fixture
def folder(tmp_path):
    """Every kind of picture, and everything that is none."""
    place = tmp_path / "pictures"
    (place / "sub").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(place / "a.png")
    picture(place / "b.jpg", 1, quality=95)
    picture(place / "c.webp", 2)
    picture(place / "d.png", 3, mode="L")
    picture(place / "e.png", 4, mode="RGBA")
    picture(place / "f.jpg", 5, exif=turned)
    Image.fromarray(np.full((15, 20), 40_000, np.uint16)).save(place / "g.png")
    picture(place / "sub" / "a.png", 6)
    (place / "broken.png").write_bytes((place / "a.png").read_bytes()[:200])
    (place / "folder.png").mkdir()
    (place / "notes.md").write_text("no picture")
    return place


@pytest.fixture
def out(tmp_path):
    """Where an index is written; nothing else may be left beside it."""
    place = tmp_path / "out"
    place.mkdir()
    yield place / "a.safetensors"
    assert {p.name for p in place.iterdir()} <= {"a.safetensors"}


def test_every_readable_picture_is_in_and_the_others_are_reported(model, folder, out):
    built = build_index(model, folder, out)
    assert [source.name for source in built.index.sources] == READABLE
    assert built.report.pictures == len(built.index.tokens) == len(READABLE)
    assert sorted(name for name, _ in built.report.unreadable) == ["broken.png", "folder.png"]
    assert all("not a readable picture" in why for _, why in built.report.unreadable)
    assert built.report.duplicates == []
    assert built.report.notes == ["left out because no pictures: 1 .md"]


def test_tokens_and_vectors_are_the_models_own(model, folder, out):
    index = build_index(model, folder, out).index
    for i, name in enumerate(READABLE):
        image = fit(open_picture(folder / name), *model.config.image_size)
        codes, vectors = model.vq.encode(to_tensor([image]))
        assert np.array_equal(index.tokens[i], codes.flatten().numpy())
        assert np.array_equal(index.vectors[i], vectors.view(36, 8).numpy())
    rows = model.vq.quantize.rows(torch.device("cpu"))
    assert np.array_equal(index.codebook, rows.numpy())


def test_what_a_picture_gives_does_not_depend_on_its_neighbours(model):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), np.uint8)
    some = [Image.fromarray(p) for p in pixels]
    together = encode_images(model, some, torch.device("cpu"))
    for i, image in enumerate(some):
        alone = encode_images(model, [image], torch.device("cpu"))
        assert all(np.array_equal(a[i], b[0]) for a, b in zip(together, alone, strict=True))


def test_sources_tell_where_patches_come_from(model, folder, out):
    options = BuildOptions(read=ReadSettings("CC0", "https://example.org"))
    sources = {s.name: s for s in build_index(model, folder, out, options).index.sources}
    first = sources["a.png"]
    assert (first.width, first.height) == (20, 15)
    assert (first.licence, first.origin) == ("CC0", "https://example.org")
    assert first.crop == (2, 0, 18, 15)  # the middle 15x15, from 2.5 to 17.5
    assert (sources["f.jpg"].width, sources["f.jpg"].height) == (15, 20)  # upright
    assert first.sha256 == hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()
    with Image.open(io.BytesIO(first.thumbnail)) as small:
        assert small.size == (12, 12)  # of what the patches come from


@pytest.mark.parametrize(
    "spec",
    [KeySpec(), KeySpec("causal-8", "zero", position_weight=0.5), KeySpec(space="codebook")],
    ids=str,
)
def test_the_file_holds_what_is_returned(model, folder, out, spec):
    index = build_index(model, folder, out, BuildOptions(spec)).index
    read = load_index(out)
    assert read.spec == index.spec == spec
    assert list(read.sources) == list(index.sources)
    assert np.array_equal(read.tokens, index.tokens)
    assert (read.vectors is None) == (spec.space == "codebook")


def test_a_grid_without_a_place_for_the_neighbourhood_is_refused_at_once(model, tmp_path, out):
    options = BuildOptions(KeySpec("causal-24"))
    with pytest.raises(
        InputError, match=r"no position of a 6x6 grid .* causal-24 .* choose borders"
    ):
        build_index(model, tmp_path / "nowhere", out, options)
    with pytest.raises(InputError, match="no position of a 6x6 grid"):
        build_from_images(model, [], [], out, options)
    assert not out.exists()


def test_settings_of_the_search_reach_it(model, folder, out, monkeypatch):
    given = []

    def create(*arguments):
        given.append(arguments[-3:-1])
        return create_index(*arguments)

    monkeypatch.setattr(building, "create_index", create)
    build_index(model, folder, out, BuildOptions(structure="flat", recall_target=0.9))
    assert given == [("flat", 0.9)]


def test_building_twice_gives_the_same_bytes(model, folder, out):
    files = []
    for _ in range(2):
        build_index(model, folder, out)
        files.append(out.read_bytes())
    assert files[0] == files[1]


def test_progress_counts_every_picture_once(model, tmp_path, out):
    count = BATCH + 3
    for i in range(count):
        picture(tmp_path / f"{i:02}.png", i)
    seen = []
    build_index(model, tmp_path, out, progress=lambda *p: seen.append(p))
    pictures = [done for unit, done, total in seen if (unit, total) == ("picture", count)]
    assert pictures == sorted(pictures)
    assert set(pictures) == set(range(count + 1))


def test_the_next_batch_is_read_while_one_is_encoded(tmp_path):
    (tmp_path / "a.png").touch()
    reading = threading.Event()

    def prepare(number):
        if number == BATCH:
            reading.set()
        return Unreadable(str(number), "")

    batches = read_ahead(tmp_path, range(3 * BATCH), prepare)
    first = next(batches)
    assert reading.wait(10)
    names = [picture.name for batch in [first, *batches] for picture in batch]
    assert names == [str(number) for number in range(3 * BATCH)]


def test_a_whole_batch_of_damaged_pictures_does_not_stop_the_rest(model, tmp_path, out):
    for i in range(BATCH):
        (tmp_path / f"{i}.png").write_bytes(b"damaged")
    picture(tmp_path / "z.png")
    built = build_index(model, tmp_path, out)
    assert (len(built.index.sources), len(built.report.unreadable)) == (1, BATCH)


def test_a_bomb_is_reported_and_the_rest_is_built(model, folder, out, monkeypatch):
    picture(folder / "bomb.png", 9, size=(90, 90))
    monkeypatch.setattr(images, "MAX_PIXELS", 90 * 90 - 1)
    built = build_index(model, folder, out)
    assert ("bomb.png", "90x90 pixels, at most 8099 are allowed") in built.report.unreadable
    assert built.report.pictures == len(READABLE)


def test_a_folder_without_readable_pictures_is_refused_with_reasons(model, tmp_path, out):
    place = tmp_path / "pictures"
    place.mkdir()
    with pytest.raises(InputError, match="holds no readable picture; choose"):
        build_index(model, place, out)
    (place / "a.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"; a\.png: not a readable picture .*; choose another"):
        build_index(model, place, out)
    with pytest.raises(InputError, match="there is no folder"):
        build_index(model, tmp_path / "none", out)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_a_file_name_that_is_no_text_does_not_spoil_the_index(model, tmp_path, out):
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(folder) + b"/caf\xe9.png")
    build_index(model, folder, out)
    assert load_index(out).sources[0].name == "caf?.png"


def test_the_same_bytes_are_taken_once(model, folder, out):
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    for i in range(BATCH):  # into another batch than the first one's
        picture(folder / f"m{i}.png", 20 + i)
    (folder / "z.jpg").write_bytes((folder / "b.jpg").read_bytes())
    built = build_index(model, folder, out)
    assert built.report.duplicates == [("copy.png", "a.png"), ("z.jpg", "b.jpg")]
    assert len(built.index.tokens) == built.report.pictures == len(READABLE) + BATCH


def test_cover_takes_several_crops_of_a_wide_picture(model, tmp_path, out):
    place = tmp_path / "pictures"
    place.mkdir()
    picture(place / "square.png", 0, (14, 14))
    picture(place / "wide.png", 1, (50, 20))
    picture(place / "tall.png", 2, (10, 31))
    built = build_index(model, place, out, COVER)
    names = [source.name for source in built.index.sources]
    assert names == ["square.png"] + ["tall.png"] * 4 + ["wide.png"] * 3
    assert built.report.pictures == 3
    crops = [s.crop for s in built.index.sources if s.name == "wide.png"]
    assert crops == [(0, 0, 20, 20), (15, 0, 35, 20), (30, 0, 50, 20)]
    image = open_picture(place / "wide.png")
    last = cut(image, crop_boxes(image.size, 12, 12, "cover")[2], 12, 12)
    assert np.array_equal(built.index.tokens[-1], model.vq.encode(to_tensor([last]))[0].flatten())


def test_a_picture_that_needs_too_many_crops_is_reported(model, tmp_path, out):
    picture(tmp_path / "strip.png", 0, (900, 2))
    picture(tmp_path / "good.png", 1)
    built = build_index(model, tmp_path, out, COVER)
    [(name, reason)] = built.report.unreadable
    assert name == "strip.png"
    assert reason.startswith("900x2 pixels need 450 crops, at most 64")


def test_pictures_to_add_leave_out_what_is_known(model, folder):
    known = {hashlib.sha256((folder / "c.webp").read_bytes()).hexdigest(): "old/c.webp"}
    seen = []
    encoded = encode_folder(model, folder, known=known, progress=lambda *p: seen.append(p))
    wanted = [name for name in READABLE if name != "c.webp"]
    assert [source.name for source in encoded.sources] == wanted
    assert encoded.tokens.shape == (7, 36)
    assert encoded.vectors.shape == (7, 36, 8)
    assert encoded.report.duplicates == [("c.webp", "old/c.webp")]
    assert seen[-1] == (10, 10)
    assert encode_folder(model, folder, keep_vectors=False).vectors is None


def test_adding_from_a_folder_without_pictures_gives_none(model, tmp_path):
    encoded = encode_folder(model, tmp_path)
    assert (encoded.tokens.shape, encoded.vectors.shape) == ((0, 36), (0, 36, 8))
    assert list(encoded.sources) == []


def test_pictures_in_memory_give_what_their_files_give(model, tmp_path, out):
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(3):
        picture(place / f"{i}.png", i)
    from_files = build_index(model, place, out).index
    loaded = [open_picture(place / f"{i}.png") for i in (0, 1, 2, 1)]
    captions = ["one", " two ", "", "two again"]
    options = BuildOptions(read=ReadSettings("CC0", "mine"))
    built = build_from_images(model, loaded, captions, out, options)
    assert np.array_equal(built.index.tokens, from_files.tokens)
    assert np.array_equal(built.index.vectors, from_files.vectors)
    assert [s.caption for s in built.index.sources] == ["one", "two", ""]
    assert {(s.licence, s.origin) for s in built.index.sources} == {("CC0", "mine")}
    assert built.report.duplicates == [("picture 4", "picture 2")]
    assert [s.name for s in load_index(out).sources] == ["picture 1", "picture 2", "picture 3"]


def test_another_number_of_captions_is_refused(model, out):
    some = [Image.new("RGB", (9, 9))] * 3
    with pytest.raises(InputError, match="there are 2 captions for 3 pictures"):
        build_from_images(model, some, ["a", "b"], out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: ReadSettings(crops="all"), "crops is 'all'; choose one of center, cover"),
        (lambda: BuildOptions(structure="tree"), "structure is 'tree'; choose one of auto, flat"),
        (
            lambda: BuildOptions(recall_target=0),
            "recall target is 0; choose more than 0, at most 1",
        ),
        (lambda: BuildOptions(recall_target=float("nan")), "recall target is nan"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        options()


def test_show_o_reads_pictures_as_its_own_programs_do(tmp_path):
    model = tiny_showo()
    noise = np.random.default_rng(0).integers(0, 256, (17, 31, 3), np.uint8)
    image = Image.fromarray(noise)
    built = build_from_images(model, [image], [], tmp_path / "a.safetensors")
    pixels = to_pixels(square(image, 12, Image.Resampling.BICUBIC))
    codes, _ = model.vq.encode(pixels[None])
    assert np.array_equal(built.index.tokens[0], codes.flatten())
