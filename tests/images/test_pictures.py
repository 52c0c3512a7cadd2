import struct
import zlib

import numpy as np
import pytest
from helpers.bands import check_bands
from helpers.closed import closed_afterwards
from PIL import Image

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import header_checks, pictures
from nnunet_octreenca.integration.image_reader import read_natural_images

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (61, 83, 3), np.uint8)
GREY16 = RANDOM.integers(0, 2**16, (61, 83), np.uint16)


@pytest.fixture
def PictureSource():
    with closed_afterwards(pictures.PictureSource) as function:
        yield function


def channels_first(image):
    return np.moveaxis(image, -1, 0)


@pytest.mark.parametrize("ending", ["png", "bmp", "jpg"])
def test_colours(tmp_path, ending, PictureSource):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(RGB).save(path)
    with Image.open(path) as image:
        whole = channels_first(np.asarray(image))
    source = PictureSource(path)
    check_bands(source, whole)
    assert source.spacing == (1.0, 1.0)
    if ending != "jpg":
        np.testing.assert_array_equal(whole, channels_first(RGB))
    source.close()
    source.close()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_values_keep_their_type(tmp_path, dtype, PictureSource):
    path = tmp_path / "a.png"
    grey = (GREY16 >> (16 - 8 * np.dtype(dtype).itemsize)).astype(dtype)
    Image.fromarray(grey).save(path)
    check_bands(PictureSource(path), grey[None])


def test_bilevel_is_0_and_1(tmp_path, PictureSource):
    path = tmp_path / "a.png"
    Image.fromarray(GREY16 > 9000).save(path)
    check_bands(PictureSource(path), (GREY16 > 9000).astype(np.uint8)[None])


def test_a_palette_is_its_colours(tmp_path, PictureSource):
    path = tmp_path / "a.png"
    colours = RANDOM.integers(0, 256, (256, 3), np.uint8)
    picture = Image.fromarray(RGB[..., 0], "P")
    picture.putpalette(colours.tobytes())
    picture.save(path)
    check_bands(PictureSource(path), channels_first(colours[RGB[..., 0]]))


def test_a_palette_with_a_transparent_colour(tmp_path, PictureSource):
    path = tmp_path / "a.png"
    colours = RANDOM.integers(0, 256, (256, 3), np.uint8)
    picture = Image.fromarray(RGB[..., 0] % 8, "P")
    picture.putpalette(colours.tobytes())
    picture.save(path, transparency=5)
    colours[5] = 255
    check_bands(PictureSource(path), channels_first(colours[RGB[..., 0] % 8]))


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGBA", 4)])
def test_transparency_goes_unless_the_model_takes_it(tmp_path, mode, channels, PictureSource):
    path = tmp_path / "a.png"
    alpha = RANDOM.integers(0, 256, RGB.shape[:2], np.uint8)
    image = np.dstack([RGB[..., : channels - 1], alpha])
    Image.fromarray(image, mode).save(path)
    share = alpha[..., None] / 255.0
    white = np.rint(image[..., :-1] * share + 255 * (1 - share)).astype(np.uint8)
    for wanted in (None, channels - 1):
        check_bands(PictureSource(path, channels=wanted), channels_first(white))
    check_bands(PictureSource(path, channels=channels), channels_first(image))


def test_print_colours_become_red_green_blue(tmp_path, PictureSource):
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).convert("CMYK").save(path)
    with Image.open(path) as image:
        whole = np.asarray(image.convert("RGB"))
    check_bands(PictureSource(path), channels_first(whole))


def test_pillows_limit_is_lifted_for_us_and_nobody_else(tmp_path, monkeypatch, PictureSource):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    check_bands(PictureSource(path), channels_first(RGB))
    assert Image.MAX_IMAGE_PIXELS == 100


def test_bands_are_cut_from_one_buffer(tmp_path, PictureSource):
    import tracemalloc

    path = tmp_path / "a.png"
    Image.new("RGB", (1000, 2000), "red").save(path)
    source = PictureSource(path)
    assert source.info.kept_bytes == 4 * 1000 * 2000
    source.read(0, 1)
    tracemalloc.start()  # counts NumPy's and Python's memory, not Pillow's buffer
    for first in range(0, 2000, 20):
        source.read(first, first + 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 20 * 1000 * 3


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.97])
@pytest.mark.parametrize("ending", ["png", "bmp", "jpg"])
def test_a_truncated_file_is_named(tmp_path, ending, share, PictureSource):
    path = tmp_path / f"cut.{ending}"
    Image.fromarray(RGB).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    def read():
        PictureSource(path).read(0, 1)

    with pytest.raises(InputError, match=rf"cut\.{ending} cannot be (read|decoded)"):
        read()


def test_a_damaged_png_is_named(tmp_path, PictureSource):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20] = bytes(20)
    path.write_bytes(data)
    source = PictureSource(path)
    with pytest.raises(InputError, match=r"a\.png cannot be decoded .*damaged"):
        source.read(60, 61)


def png_of(width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("first", "end", "said"),
    [(-16, -12, "checksum of its chunk IDAT at byte 33 differs"), (-4, None, "chunk at byte")],
)
def test_checksums_that_pillow_does_not_compare(tmp_path, first, end, said, PictureSource):
    """The pixels' own, and the end chunk's."""
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    data = bytearray(path.read_bytes())
    if end is None:
        del data[first:]
    else:
        data[first:end] = b"\x01\x02\x03\x04"
    path.write_bytes(data)
    with Image.open(path) as image:
        image.load()
    with pytest.raises(InputError, match=rf"a\.png cannot be decoded .*{said}"):
        PictureSource(path).read(0, 4)
    with pytest.raises(InputError, match=rf"a\.png cannot be decoded .*{said}"):
        read_natural_images((str(path),))


def test_what_follows_a_png(tmp_path, PictureSource):
    path = tmp_path / "a.png"
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes() + b"appended")
    np.testing.assert_array_equal(PictureSource(path).read(0, 4), np.moveaxis(pixels, -1, 0))


def test_headers_that_promise_too_much(tmp_path, monkeypatch, PictureSource):
    path = tmp_path / "a.png"
    path.write_bytes(png_of(3000, 3000))
    with pytest.raises(InputError, match=r"a\.png promises 3,375,000 bytes"):
        PictureSource(path)
    monkeypatch.setattr(header_checks, "total_memory", lambda: 10**9)
    path.write_bytes(png_of(100_000, 100_000))
    with pytest.raises(InputError, match=r"a\.png needs 40\.0 GB .*has 1\.0 GB"):
        PictureSource(path)


def test_what_is_no_picture(tmp_path, PictureSource):
    with pytest.raises(InputError, match=r"no\.png does not exist"):
        PictureSource(tmp_path / "no.png")
    (tmp_path / "a.png").write_bytes(b"II*\0" + bytes(99))
    with pytest.raises(InputError, match=r"a\.png cannot be read as a picture"):
        PictureSource(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "b.png"])
def test_what_nnunet_reads_of_the_same_file(tmp_path, name, PictureSource):
    from skimage.io import imread

    image = RGB if name == "a.png" else GREY16
    Image.fromarray(image).save(tmp_path / name)
    stock = imread(tmp_path / name)
    check_bands(PictureSource(tmp_path / name), channels_first(np.atleast_3d(stock)))


def test_a_real_photograph(data_folder, PictureSource):
    path = sorted((data_folder("chase_db1") / "images").iterdir())[0]
    with Image.open(path) as image:
        whole = channels_first(np.asarray(image))
    check_bands(PictureSource(path, channels=3), whole, heights=(300,))
