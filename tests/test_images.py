"""Pictures in and out."""

import io

import numpy as np
import pytest
from PIL import Image

from arrag_engine import images
from arrag_engine.errors import InputError
from arrag_engine.images import (
    fit,
    list_pictures,
    open_picture,
    save_png,
    thumbnail,
    tile,
    to_tensor,
)

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


def test_a_decompression_bomb_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 50)
    with pytest.raises(InputError, match="9x6 pixels, the most is 50"):
        open_picture(saved(tmp_path / "a.png"))


def test_pictures_are_listed_in_order_from_all_folders(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "a.jpeg", "c.webp", "sub/d.jpg", "notes.txt", "a.txt", "e.gif"):
        (tmp_path / name).touch()
    names = [p.relative_to(tmp_path).as_posix() for p in list_pictures(tmp_path)]
    assert names == ["a.jpeg", "b.PNG", "c.webp", "sub/d.jpg"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*none"):
        list_pictures(tmp_path / "none")


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
