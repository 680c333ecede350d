"""Pictures in and out."""

import contextlib
import io
import math
import os
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from arrag_engine import images
from arrag_engine.errors import InputError
from arrag_engine.images import (
    Frame,
    crop_boxes,
    cut,
    fit,
    from_floats,
    looks_like_picture,
    open_picture,
    save_png,
    thumbnail,
    tile,
    to_tensor,
)
from tests.pictures import png_16_bit

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(path, array=PIXELS, mode=None, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_lossless_pictures_keep_their_pixels(tmp_path, name):
    image = open_picture(saved(tmp_path / name, lossless=True))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), PIXELS)


def test_jpeg_pictures_are_close(tmp_path):
    smooth = np.full((16, 24, 3), (200, 40, 90), np.uint8)
    image = open_picture(saved(tmp_path / "a.jpg", smooth))
    assert np.abs(np.asarray(image).astype(int) - smooth).max() < 8


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    image = open_picture(saved(tmp_path / name, mode=mode))
    assert (image.mode, image.size) == ("RGB", (9, 6))


def test_sixteen_bit_greyscale_is_scaled_not_clipped(tmp_path):
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(8, 32)
    image = open_picture(saved(tmp_path / "a.png", grey))
    assert np.array_equal(np.asarray(image)[..., 0], grey >> 8)


GREY = np.array([[[0], [300], [40_000], [65_535]]])


def test_sixteen_bit_grey_with_a_transparent_value(tmp_path):
    """The value has 16 bits: another one with the same upper half is opaque."""
    image = open_picture(png_16_bit(tmp_path / "a.png", [[[40_000], [40_001]]], (40_000,)))
    assert np.asarray(image)[0, :, 0].tolist() == [255, 156]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_pictures_keep_their_upper_half(tmp_path, channels):
    color = np.repeat(GREY, 3 if channels > 2 else 1, axis=-1)
    opaque = np.full((1, 4, 1), 65_535)
    pixels = color if channels % 2 else np.concatenate((color, opaque), axis=-1)
    image = open_picture(png_16_bit(tmp_path / "a.png", pixels))
    assert np.asarray(image).tolist() == [[[v >> 8] * 3 for v in GREY.flatten().tolist()]]


def test_inks_become_colours(tmp_path):
    """Adobe's programs store CMYK upside down, and so does Pillow."""
    saved(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    assert np.asarray(open_picture(tmp_path / "a.jpg"))[4, 4].tolist() == [255, 0, 0]


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (0, 128, 255)
    image = open_picture(saved(tmp_path / "a.png", rgba))
    assert np.asarray(image)[0, :, 0].tolist() == [255, 127, 0]


def test_a_transparent_palette_is_laid_on_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    saved(tmp_path / "a.png", image, transparency=1)
    assert np.asarray(open_picture(tmp_path / "a.png")).tolist() == [[[10, 20, 30], [255] * 3]]


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_camera_held_sideways_gives_an_upright_picture(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_picture(saved(tmp_path / "a.png", exif=exif))
    assert np.array_equal(np.asarray(image), np.rot90(PIXELS, turned))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("keep", [0, 10, 0.6])
def test_a_damaged_picture_is_refused(tmp_path, name, keep):
    path = saved(tmp_path / name, RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep < 1 else keep])
    with pytest.raises(InputError, match="not a readable picture"):
        open_picture(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
@given(data=st.data())
def test_no_damage_raises_anything_else(name, data):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, name)
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        assert open_picture(bytes(content)).mode == "RGB"


def test_a_decompression_bomb_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 50)
    with pytest.raises(InputError, match="9x6 pixels, at most 50"):
        open_picture(saved(tmp_path / "a.png"))


def test_a_picture_named_like_another_format_is_read(tmp_path):
    data = io.BytesIO()
    Image.fromarray(PIXELS).save(data, "WEBP", lossless=True)
    (tmp_path / "a.jpg").write_bytes(data.getvalue())
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.jpg")), PIXELS)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICNS", "XBM"])
def test_other_decoders_are_never_called(tmp_path, kind):
    """A PostScript file named .png would start an interpreter."""
    data = io.BytesIO()
    Image.new("1" if kind == "XBM" else "RGB", (16, 16)).save(data, kind)
    (tmp_path / "a.png").write_bytes(data.getvalue())
    with pytest.raises(InputError, match="unknown format"):
        open_picture(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF", "AVIF", "PPM", "JPEG2000", "TGA", "PCX"])
@pytest.mark.parametrize("name", ["right", "a.png"])
def test_other_formats_of_pillow_are_read(tmp_path, kind, name):
    """Under any name, but for those that begin as anything may."""
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    data = io.BytesIO()
    Image.new("RGB", (16, 12), (200, 40, 90)).save(data, kind)
    suffix = next(s for s, k in Image.registered_extensions().items() if k == kind)
    path = tmp_path / (f"a{suffix}" if name == "right" else name)
    path.write_bytes(data.getvalue())
    if kind in images.UNSIGNED and name != "right":
        with pytest.raises(InputError, match="unknown format"):
            open_picture(path)
        return
    image = open_picture(path)
    assert (image.mode, image.size) == ("RGB", (16, 12))
    assert np.abs(np.asarray(image).astype(int) - (200, 40, 90)).max() < 8


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_known_range_are_refused(tmp_path, mode):
    Image.new(mode, (9, 6), 70_000).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="save it with 8 or 16 bits"):
        open_picture(tmp_path / "a.tif")


def big_text():
    info = PngInfo()
    info.add_text("workflow", "x" * (2 << 20), zip=True)
    return info


@pytest.mark.parametrize("options", [{"pnginfo": big_text()}, {"icc_profile": bytes(2 << 20)}])
def test_metadata_that_is_too_large_is_skipped(tmp_path, options):
    turned = Image.Exif()
    turned[0x0112] = 6
    image = open_picture(saved(tmp_path / "a.png", exif=turned, **options))
    assert np.array_equal(np.asarray(image), np.rot90(PIXELS, 3))


@pytest.mark.parametrize("kind", [b"tEXt", b"iCCP", b"eXIf"])
def test_a_damaged_chunk_of_metadata_is_skipped(tmp_path, kind):
    data = saved(tmp_path / "a.png").read_bytes()
    chunk = struct.pack(">I4s4sI", 4, kind, b"junk", 0)  # its checksum is wrong
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])  # after the header
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png")), PIXELS)


@pytest.mark.parametrize("body", [b"ICC_PROFILE\0", b"Photoshop 3.0\08BIM\1"])
@pytest.mark.parametrize("marker", [0xE2, 0xED])
def test_a_damaged_segment_of_metadata_is_skipped(tmp_path, marker, body):
    data = saved(tmp_path / "a.jpg", quality=100, subsampling=0).read_bytes()
    segment = struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
    wanted = open_picture(data)
    assert np.array_equal(np.asarray(open_picture(data[:2] + segment + data[2:])), wanted)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif"])
def test_files_without_a_suffix_are_known_by_how_they_begin(tmp_path, name):
    path = saved(tmp_path / name)
    assert looks_like_picture(str(path))
    path.write_bytes(b"text" + path.read_bytes())
    assert not looks_like_picture(str(path))
    assert not looks_like_picture(str(tmp_path))


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_the_first_picture_of_an_animation_is_taken(tmp_path, name):
    others = [Image.new("RGB", (9, 6), color) for color in ("red", "blue")]
    first = Image.fromarray(PIXELS)
    first.save(tmp_path / name, save_all=True, append_images=others, lossless=True)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 3
    assert np.array_equal(np.asarray(open_picture(tmp_path / name)), PIXELS)


def test_the_first_picture_of_a_phone_s_double_picture_is_taken(tmp_path):
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    red.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[blue])
    assert open_picture(tmp_path / "a.jpg").getpixel((4, 4)) == (254, 0, 0)


def test_damaged_camera_data_does_not_spoil_the_picture(tmp_path):
    saved(tmp_path / "a.jpg", exif=b"Exif\0\0garbage", quality=100, subsampling=0)
    assert open_picture(tmp_path / "a.jpg").size == (9, 6)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="not a file"):
        open_picture(tmp_path / "a.png")


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(InputError, match=r"\d+ bytes, at most"):
        open_picture(path)


SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(size=SIZES, target=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_the_centre_crop_is_pillow_s(size, target):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    wanted = ImageOps.fit(image, target[::-1], Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(fit(image, *target)), np.asarray(wanted))


@given(size=SIZES, target=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_crops_that_cover_see_every_pixel(size, target):
    (across, down), (height, width) = size, target
    try:
        boxes = crop_boxes(size, height, width, "cover")
    except InputError:
        needed = max(across * height / (down * width), down * width / (across * height))
        assert needed > images.MAX_CROPS - 1
        return
    seen = np.zeros((down, across), bool)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= across + 1e-9
        assert 0 <= top < bottom <= down + 1e-9
        assert (right - left) * height == pytest.approx((bottom - top) * width)
        seen[
            math.floor(top + 1e-6) : math.ceil(bottom - 1e-6),
            math.floor(left + 1e-6) : math.ceil(right - 1e-6),
        ] = True
        cut(Image.new("RGB", size), (left, top, right, bottom), height, width)
    assert seen.all()
    corners = np.array(boxes)[:, :2]
    steps = np.diff(corners, axis=0)
    assert np.allclose(steps, steps[:1])  # evenly spaced
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    assert area - across * down < (boxes[0][2] - boxes[0][0]) * (boxes[0][3] - boxes[0][1]) + 1e-6


def test_pictures_of_floats_are_rounded_and_laid_on_white():
    pixels = torch.tensor([[[0.0, 0.5, 1.0, 1.0], [0.2, 0.2, 0.2, 0.0], [2.0, -1.0, 0.1, 0.5]]])
    image = from_floats(pixels)
    assert image.mode == "RGB"
    assert np.asarray(image).tolist() == [[[0, 128, 255], [255, 255, 255], [255, 127, 140]]]
    assert np.asarray(from_floats(pixels[..., :3])).tolist()[0][1] == [51, 51, 51]
    assert np.asarray(from_floats(pixels[..., 2:3])).tolist()[0][0] == [255, 255, 255]
    assert np.asarray(from_floats(torch.full((1, 1, 3), float("nan")))).tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("size", [(40, 10), (10, 40), (1, 1), (12, 12), (500, 3)])
def test_a_picture_is_resized_and_cropped_around_its_centre(size):
    assert fit(Image.new("RGB", size), 12, 20).size == (20, 12)


def test_cropping_keeps_the_centre():
    striped = np.zeros((10, 30, 3), np.uint8)
    striped[:, 10:20] = 255
    assert np.asarray(fit(Image.fromarray(striped), 10, 10)).min() == 255


def test_tensors_are_channels_first_from_minus_one_to_one():
    white, black = Image.new("RGB", (3, 2), "white"), Image.new("RGB", (3, 2))
    black.putpixel((2, 1), (0, 255, 0))
    tensor = to_tensor([white, black])
    assert tensor.shape == (2, 3, 2, 3)
    assert tensor[0].unique().tolist() == [1]
    assert tensor[1].sum() == -3 * 6 + 2
    assert tensor[1, 1, 1, 2] == 1


def test_a_thumbnail_is_a_small_jpeg_of_the_same_shape():
    with Image.open(io.BytesIO(thumbnail(Image.new("RGB", (400, 200))))) as small:
        assert (small.format, small.size) == ("JPEG", (64, 32))


def test_a_png_carries_its_text(tmp_path):
    image = Image.fromarray(PIXELS)
    save_png(image, tmp_path / "a.png", {"arrag": '{"prompt": "日本 🍎"}'})
    with Image.open(tmp_path / "a.png") as found:
        assert found.text == {"arrag": '{"prompt": "日本 🍎"}'}
        assert np.array_equal(np.asarray(found), PIXELS)


@pytest.mark.parametrize(
    ("count", "size"), [(1, (9, 6)), (2, (18, 6)), (3, (18, 12)), (5, (27, 12))]
)
def test_a_sheet_is_near_square(count, size):
    assert tile([Image.fromarray(PIXELS)] * count).size == size


def test_a_frame_cuts_and_resizes_with_its_own_filter():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8))
    for whole in (False, True):
        frame = Frame(12, 12, Image.Resampling.BICUBIC, whole)
        boxes, parts = zip(*frame.cuts(image, "cover"), strict=True)
        assert list(boxes) == crop_boxes(image.size, 12, 12, "cover")
        wanted = image.resize((12, 12), Image.Resampling.BICUBIC, box=boxes[1])
        assert np.array_equal(np.asarray(parts[1]), np.asarray(wanted))
    plain = Frame(12, 12).fit(image)
    assert np.array_equal(np.asarray(plain), np.asarray(fit(image, 12, 12)))


def test_a_frame_of_whole_pixels_is_cut_out_of_the_resized_picture():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 70, 3), np.uint8))
    framed = Frame(12, 12, Image.Resampling.BICUBIC, whole=True).fit(image)
    resized = np.asarray(image.resize((25, 12), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(framed), resized[:, 6:18])  # 6.5 goes to the even number


def test_a_picture_like_a_thread_is_refused_before_it_is_resized():
    frame = Frame(256, 256, Image.Resampling.BICUBIC, whole=True)
    with pytest.raises(InputError, match="1x90000 pixels would be resized to 256x23040000, at"):
        frame.fit(Image.new("RGB", (1, 90_000)))
