"""Pictures that viewers show turned: EXIF's and TIFF's orientation, against Pillow."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from helpers.bands import check_bands
from helpers.closed import closed_afterwards
from helpers.tiny_slides import picture, write_pyramid
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import open_image as module
from nnunet_octreenca.images import orientation
from nnunet_octreenca.images.pyramid import SlideRegions
from nnunet_octreenca.images.slide_reader import orientation_of, read_whole

CODES = range(1, 9)
RGB = picture(61, 83)
GREY16 = np.random.default_rng(0).integers(0, 2**16, (61, 83), np.uint16)


@pytest.fixture
def open_image():
    with closed_afterwards(module.open_image) as function:
        yield function


def exif(code) -> Image.Exif:
    tags = Image.Exif()
    tags[orientation.TAG] = code
    return tags


def shown(pixels: np.ndarray, code: int) -> np.ndarray:
    """By Pillow, and channels first."""
    image = Image.fromarray(pixels)
    image.getexif()[orientation.TAG] = code
    turned = np.asarray(ImageOps.exif_transpose(image))
    return turned[None] if turned.ndim == 2 else np.moveaxis(turned, -1, 0)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_pictures(tmp_path, open_image, code, ending):
    path = tmp_path / f"a.{ending}"
    more = {"quality": 100, "subsampling": 0} if ending == "jpg" else {}
    Image.fromarray(RGB).save(path, exif=exif(code), **more)
    with Image.open(path) as image:
        whole = np.moveaxis(np.asarray(ImageOps.exif_transpose(image)), -1, 0)
    source = open_image(path)
    check_bands(source, whole)
    assert source.info.base_shape == whole.shape[1:]
    assert len(source.info.notes) == (code != 1)
    assert all(f"the EXIF orientation {code} says" in note for note in source.info.notes)
    assert orientation_of(path) == code
    np.testing.assert_array_equal(np.moveaxis(read_whole(path), -1, 0), whole)
    with SlideRegions(path) as slide:
        y, x = (n // 3 for n in whole.shape[1:])
        np.testing.assert_array_equal(
            slide.region(0, y, x, 17, 23), np.moveaxis(whole[:, y : y + 17, x : x + 23], 0, -1)
        )


@pytest.mark.parametrize("code", [3, 5, 6])
@pytest.mark.parametrize("kind", ["grey", "grey16", "bilevel", "palette", "alpha"])
def test_all_kinds_of_samples(tmp_path, open_image, code, kind):
    path = tmp_path / "a.png"
    values = {"grey": RGB[..., 0], "grey16": GREY16, "bilevel": RGB[..., 0] > 99}.get(kind)
    image = Image.fromarray(RGB if values is None else values)
    if kind == "palette":
        image = image.quantize(16)
    if kind == "alpha":
        image.putalpha(255)
    image.save(path, exif=exif(code))
    expected = RGB if kind == "alpha" else np.asarray(image.convert("RGB"))
    if values is not None:
        expected = values.astype(values.dtype if values.dtype.kind == "u" else np.uint8)
    check_bands(open_image(path, channels=1 if values is not None else 3), shown(expected, code))


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "deflate"},
        {"compression": "deflate", "rowsperstrip": 7},
        {"tile": (16, 32), "compression": "deflate"},
        {"tile": (16, 32)},
        {"planarconfig": "separate", "tile": (32, 16), "compression": "deflate"},
        {"byteorder": ">"},
        {"bigtiff": True},
    ],
)
def test_tiff(tmp_path, open_image, code, options):
    path = tmp_path / "a.tif"
    pixels = np.moveaxis(RGB, -1, 0) if "planarconfig" in options else RGB
    order = {k: options[k] for k in ("byteorder", "bigtiff") if k in options}
    rest = {k: v for k, v in options.items() if k not in order}
    tags = [(orientation.TAG, "H", 1, code, True)]
    with tifffile.TiffWriter(path, **order) as file:
        file.write(pixels, photometric="rgb", metadata=None, extratags=tags, **rest)
    source = open_image(path)
    check_bands(source, shown(RGB, code))
    assert len(source.info.notes) == (code != 1)
    assert all(f"the TIFF orientation {code} says" in note for note in source.info.notes)
    if "tile" not in options:  # of tiles Pillow takes no odd sizes
        with Image.open(path) as image:
            image.load()
            np.testing.assert_array_equal(np.moveaxis(np.asarray(image), -1, 0), shown(RGB, code))


@pytest.mark.parametrize("code", [2, 6, 7])
def test_levels_and_resolution_of_a_tiff(tmp_path, open_image, code):
    levels = [picture(128, 192), picture(64, 96, seed=1)]
    tags = [(orientation.TAG, "H", 1, code, True)]
    resolution = {"resolution": (20_000, 10_000), "resolutionunit": "CENTIMETER"}  # x, y
    write_pyramid(tmp_path / "a.tif", levels, extratags=tags, **resolution)
    with SlideRegions(tmp_path / "a.tif") as slide:
        assert slide.orientation == code
        assert slide.shapes == [shown(level, code).shape[1:] for level in levels]
        for number, level in enumerate(levels):
            np.testing.assert_array_equal(
                slide.region(number, 10, 20, 40, 30),
                np.moveaxis(shown(level, code), 0, -1)[10:50, 20:50],
            )
    source = open_image(tmp_path / "a.tif")
    pair = (0.001, 0.0005)
    assert source.spacing == pytest.approx(pair[::-1] if code > 4 else pair)
    coarse = open_image(tmp_path / "a.tif", mpp=1.5)
    check_bands(coarse, shown(levels[1], code))
    assert coarse.info.base_shape == source.shape


def test_tiles_that_were_never_written_lie_where_they_are_shown(tmp_path, open_image):
    path = tmp_path / "a.tif"
    tags = [(orientation.TAG, "H", 1, 6, True)]
    more = {"shape": (128, 192, 3), "dtype": np.uint8, "photometric": "rgb", "metadata": None}
    block = np.full((128, 192, 3), 255, np.uint8)
    block[:64, :64] = picture(64, 64)
    tiles = (picture(64, 64) if n == 0 else None for n in range(6))
    more |= {"tile": (64, 64), "compression": "deflate", "extratags": tags}
    tifffile.imwrite(path, tiles, **more)
    check_bands(open_image(path), shown(block, 6))


def test_stacks_stay_as_nnunet_reads_them(tmp_path, open_image):
    tags = [(orientation.TAG, "H", 1, 6, True)]
    stack = GREY16[:60].reshape(3, 20, 83)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", extratags=tags)
    source = open_image(tmp_path / "a.tif")
    check_bands(source, stack[None], heights=(1, 2))
    assert source.info.notes == ()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_exif_behind_the_pixels_of_a_png(tmp_path, open_image):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    data, tags = path.read_bytes(), exif(8).tobytes().removeprefix(b"Exif\0\0")
    path.write_bytes(data[:-12] + chunk(b"eXIf", tags) + data[-12:])
    with Image.open(path) as image:
        assert image.getexif()[orientation.TAG] == 8
    check_bands(open_image(path), shown(RGB, 8))


def test_orientation_in_xmp(tmp_path, open_image):
    """Where EXIF says nothing; Pillow looks there too."""
    text = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    more = PngInfo()
    more.add_itxt("XML:com.adobe.xmp", text)
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=more)
    check_bands(open_image(tmp_path / "a.png"), shown(RGB, 6))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's, on opening a JPEG
@pytest.mark.parametrize("data", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"no EXIF at all"])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_damaged_exif_turns_nothing(tmp_path, open_image, data, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(RGB).save(path, exif=data)
    source = open_image(path)
    assert source.shape == RGB.shape[:2]
    assert source.info.notes == ()


@pytest.mark.parametrize("code", [0, 9, 256])
def test_other_numbers_turn_nothing(tmp_path, open_image, code):
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif(code))
    tags = [(orientation.TAG, "H", 1, code, True)]
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", extratags=tags)
    for name in ("a.png", "a.tif"):
        check_bands(open_image(tmp_path / name), np.moveaxis(RGB, -1, 0))


def test_a_damaged_picture_is_still_told(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path, exif=exif(6))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(InputError, match=r"a\.png cannot be decoded"):
        read_whole(path)


def test_frames_of_a_folder(tmp_path, open_image):
    for number, code in enumerate((6, 6, 8)):
        Image.fromarray(RGB).save(tmp_path / f"f{number}.jpg", exif=exif(code), quality=100)
    Image.fromarray(np.rot90(RGB).copy()).save(tmp_path / "f3.jpg", quality=100)
    source = open_image(tmp_path)
    assert source.shape == (4, 83, 61)
    for number, code in enumerate((6, 6, 8, 8)):
        difference = source.read(number, number + 1)[:, 0].astype(int) - shown(RGB, code)
        assert np.abs(difference).mean() < 20
    beginnings = [note.partition(",")[0] for note in source.info.notes]
    name = tmp_path.name
    assert beginnings == [
        f"2 of 4 frames of {name}: rotated by 90° clockwise",
        f"1 of 4 frames of {name}: rotated by 90° counterclockwise",
    ]


@pytest.mark.parametrize("code", CODES)
def test_windows_and_pixels_go_together(code):
    stored = np.arange(35).reshape(1, 5, 7)
    whole = orientation.turned(stored, code)
    assert whole.shape[1:] == orientation.shown_pair((5, 7), code)
    window = (1, 2, 3, 2)
    y, x, height, width = orientation.stored_window(window, whole.shape[1:], code)
    cut = orientation.turned(stored[:, y : y + height, x : x + width], code)
    np.testing.assert_array_equal(cut, whole[:, 1:4, 2:4])
