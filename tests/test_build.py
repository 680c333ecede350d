"""Indexes from folders of pictures."""

import hashlib
import io
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from arrag_engine.build import BATCH, build_index
from arrag_engine.errors import InputError
from arrag_engine.images import fit, open_picture, to_tensor
from arrag_engine.index import KeySpec, load_index, save_index


def picture(path, seed=0, size=(20, 15), mode="RGB", **options):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)


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
    (place / "a.txt").write_text(" a red car\n", encoding="utf-8")
    (place / "sub" / "a.txt").write_bytes(b"caf\xe9")
    return place


READABLE = ["a.png", "b.jpg", "c.webp", "d.png", "e.png", "f.jpg", "g.png", "sub/a.png"]


def test_every_readable_picture_is_in_and_the_others_are_reported(model, folder):
    built = build_index(model, folder)
    assert [source.name for source in built.index.sources] == READABLE
    assert sorted(path.name for path, _ in built.skipped) == ["broken.png", "folder.png"]
    assert all("not a readable picture" in why for _, why in built.skipped)


def test_tokens_and_vectors_are_the_models_own(model, folder):
    index = build_index(model, folder).index
    for i, name in enumerate(READABLE):
        image = fit(open_picture(folder / name), *model.config.image_size)
        codes, vectors = model.vq.encode(to_tensor([image]))
        assert np.array_equal(index.tokens[i], codes.flatten().numpy())
        np.testing.assert_allclose(index.vectors[i], vectors.view(36, 8).numpy(), atol=1e-5)
    rows = model.vq.quantize.rows(torch.device("cpu"))
    assert np.array_equal(index.codebook, rows.numpy())


def test_sources_tell_where_patches_come_from(model, folder):
    sources = {s.name: s for s in build_index(model, folder, licence="CC0").index.sources}
    first = sources["a.png"]
    assert (first.width, first.height, first.licence) == (20, 15, "CC0")
    assert (sources["f.jpg"].width, sources["f.jpg"].height) == (15, 20)  # upright
    assert first.sha256 == hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()
    with Image.open(io.BytesIO(first.thumbnail)) as small:
        assert small.size == (20, 15)


def test_captions_lie_beside_their_pictures(model, folder):
    captions = {s.name: s.caption for s in build_index(model, folder).index.sources}
    assert captions["a.png"] == "a red car"
    assert captions["b.jpg"] == ""
    assert captions["sub/a.png"] == "caf\ufffd"


@pytest.mark.parametrize(
    "spec", [KeySpec(), KeySpec("causal-8", "zero"), KeySpec(space="codebook")], ids=str
)
def test_a_built_index_is_saved_and_read_back(model, folder, tmp_path, spec):
    index = build_index(model, folder, spec).index
    save_index(index, tmp_path / "a.safetensors")
    read = load_index(tmp_path / "a.safetensors")
    assert (read.spec, read.sources) == (index.spec, index.sources)
    assert (read.vectors is None) == (spec.space == "codebook")


def test_building_twice_gives_the_same_file_contents(model, folder, tmp_path):
    one, two = build_index(model, folder).index, build_index(model, folder).index
    assert np.array_equal(one.tokens, two.tokens)
    assert np.array_equal(one.vectors, two.vectors)


def test_progress_counts_all_pictures(model, tmp_path):
    count = BATCH + 3
    for i in range(count):
        picture(tmp_path / f"{i:02}.png", i)
    seen = []
    index = build_index(model, tmp_path, progress=lambda *p: seen.append(p)).index
    assert seen == [(BATCH, count), (count, count)]
    assert len(index.tokens) == count


def test_a_whole_batch_of_damaged_pictures_does_not_stop_the_rest(model, tmp_path):
    for i in range(BATCH):
        (tmp_path / f"{i}.png").write_bytes(b"damaged")
    picture(tmp_path / "z.png")
    built = build_index(model, tmp_path)
    assert (len(built.index.sources), len(built.skipped)) == (1, BATCH)


def test_a_folder_without_readable_pictures_is_refused_with_reasons(model, tmp_path):
    with pytest.raises(InputError, match="holds no readable PNG, JPEG or WebP picture; choose"):
        build_index(model, tmp_path)
    (tmp_path / "a.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"; a\.png: not a readable picture .*; choose another"):
        build_index(model, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_a_file_name_that_is_no_text_does_not_spoil_the_index(model, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(folder) + b"/caf\xe9.png")
    index = build_index(model, folder).index
    save_index(index, tmp_path / "a.safetensors")
    assert load_index(tmp_path / "a.safetensors").sources[0].name == "caf?.png"
