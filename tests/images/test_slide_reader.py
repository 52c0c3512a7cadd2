"""What a slide is read as, in bands for a prediction and in windows for a training."""

import numpy as np
import pytest
import tifffile
from helpers.bands import check_bands
from helpers.closed import closed_afterwards
from helpers.tiny_slides import halved, picture, write_pyramid
from PIL import Image

from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.images import open_image as module
from nnunet_octreenca.images import slide_reader, stripes, vendor_slides
from nnunet_octreenca.images.pyramid import SlideRegions
from nnunet_octreenca.images.slide_reader import open_reader
from nnunet_octreenca.images.tiff_reader import TiffReader
from nnunet_octreenca.images.tiff_segments import TiffSegments

RANDOM = np.random.default_rng(0)
RGB = picture(133, 95)
ALPHA = RANDOM.integers(0, 256, (133, 95, 1), np.uint8)
RGBA = np.concatenate([RGB, ALPHA], -1)
GREY16 = RANDOM.integers(0, 2**16, (133, 95, 1), np.uint16)
BITS = RGB[..., :1] > 128
COLOURS = RANDOM.integers(0, 2**16, (3, 256), np.uint16)
# Rows and columns that meet tiles' borders, lie within one, and reach the image's end.
WINDOWS = [(0, 0, 133, 95), (31, 30, 35, 40), (5, 50, 3, 41), (132, 94, 1, 1), (32, 64, 32, 31)]


@pytest.fixture
def open_image():
    with closed_afterwards(module.open_image) as function:
        yield function


def over_white(share):
    return np.rint(RGB * share + 255 * (1 - share)).astype(np.uint8)


def tiff(image=RGB, **options):
    form = {"photometric": "rgb" if image.shape[-1] > 1 else "minisblack", **options}
    squeezed = image if image.shape[-1] > 1 else image[..., 0]
    return lambda path: tifffile.imwrite(path, squeezed, **form)


def planes(**options):
    return lambda path: tifffile.imwrite(
        path, np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate", **options
    )


def png(image, mode=None, **options):
    def write(path):
        one = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        (one.convert(mode) if mode else one).save(path, **options)

    return write


def pillow(mode):
    """What Pillow shows of the file."""

    def read(path):
        pixels = np.asarray(Image.open(path).convert(mode))
        return pixels if pixels.ndim == 3 else pixels[..., None]

    return read


# Name: how it is written, and the pixels (rows, columns, channels) or who else reads them.
FILES = {
    "plain.tif": (tiff(), RGB),
    "single rows.tif": (tiff(rowsperstrip=1), RGB),
    "strips.tif": (tiff(rowsperstrip=10, compression="deflate"), RGB),
    "one strip.tif": (tiff(rowsperstrip=133, compression="lzw", predictor=True), RGB),
    "tiles.tif": (tiff(tile=(16, 32)), RGB),
    "zstd.tif": (tiff(tile=(64, 64), compression="zstd"), RGB),
    "jpeg.tif": (tiff(tile=(32, 16), compression="jpeg"), tifffile.imread),
    "jpeg2000.tif": (
        tiff(tile=(256, 256), compression="jpeg2000", compressionargs={"reversible": True}),
        RGB,
    ),
    "big.btf": (tiff(tile=(64, 48), compression="deflate", bigtiff=True), RGB),
    "big endian.tif": (tiff(byteorder=">", tile=(64, 64)), RGB),
    "ome.tif": (tiff(ome=True, metadata={"axes": "YXS"}), RGB),
    "planes.tif": (planes(), RGB),
    "tiled planes.tif": (planes(tile=(32, 32), compression="deflate"), RGB),
    "16 bits.tif": (tiff(GREY16), GREY16),
    "16 bits, big endian.tif": (tiff(GREY16, byteorder=">", compression="zlib"), GREY16),
    "16 bits, predicted.tif": (
        tiff(GREY16, byteorder=">", compression="zlib", predictor=True),
        GREY16,
    ),
    "floats.tif": (tiff(GREY16.astype(np.float32), compression="zlib"), GREY16.astype(np.float32)),
    "bits.tif": (tiff(BITS), BITS.astype(np.uint8)),
    "alpha.tif": (tiff(RGBA, extrasamples=["unassalpha"], tile=(32, 32)), over_white(ALPHA / 255)),
    "multiplied.tif": (
        tiff(np.concatenate([np.minimum(RGB, ALPHA), ALPHA], -1), extrasamples=["assocalpha"]),
        np.minimum(RGB, ALPHA) + 255 - ALPHA,
    ),
    "palette.tif": (
        tiff(RGB[..., :1], photometric="palette", colormap=COLOURS, tile=(32, 32)),
        np.moveaxis((COLOURS >> 8).astype(np.uint8)[:, RGB[..., 0]], 0, -1),
    ),
    "rgb.png": (png(RGB), RGB),
    "rgb.bmp": (png(RGB), RGB),
    "alpha.png": (png(RGBA), over_white(ALPHA / 255)),
    "grey.png": (png(RGB[..., :1]), RGB[..., :1]),
    "16 bits.png": (png(GREY16), GREY16),
    "palette.png": (png(RGB, "P"), pillow("RGB")),
    "bits.png": (png(BITS), BITS.astype(np.uint8)),
    "photo.jpg": (png(RGB), pillow("RGB")),
    "printed.jpg": (png(RGB, "CMYK"), pillow("RGB")),
}


@pytest.mark.parametrize("name", FILES)
def test_bands_and_windows_are_the_image(tmp_path, name, open_image):
    write, expected = FILES[name]
    write(tmp_path / name)
    whole = expected(tmp_path / name) if callable(expected) else expected
    check_bands(open_image(tmp_path / name, channels=whole.shape[-1]), np.moveaxis(whole, -1, 0))
    with SlideRegions(tmp_path / name) as slide:
        assert (slide.shapes[0], slide.channels, slide.dtype) == (
            whole.shape[:2],
            whole.shape[2],
            whole.dtype,
        )
        for y, x, height, width in WINDOWS:
            window = slide.region(0, y, x, height, width)
            assert np.array_equal(window, whole[y : y + height, x : x + width])


@pytest.mark.parametrize("kind", ["LA", "clear palette"])
def test_transparency_of_pictures(tmp_path, kind, open_image):
    if kind == "LA":
        Image.fromarray(RGBA).convert("LA").save(tmp_path / "a.png")
    else:
        Image.fromarray(RGB).convert("P").save(tmp_path / "a.png", transparency=bytes(range(256)))
    with Image.open(tmp_path / "a.png") as image:
        shown = np.asarray(image.convert("RGBA")).astype(float)
    share = shown[..., 3:] / 255
    white = np.rint(shown[..., :3] * share + 255 * (1 - share)).astype(np.uint8)
    whole = white[..., :1] if kind == "LA" else white
    check_bands(open_image(tmp_path / "a.png"), np.moveaxis(whole, -1, 0))
    with SlideRegions(tmp_path / "a.png") as slide:
        assert np.array_equal(slide.region(0, 0, 0, 133, 95), whole)


def test_more_channels_where_the_model_takes_them(tmp_path, open_image):
    tiff(RGBA, extrasamples=["unassalpha"], tile=(32, 32))(tmp_path / "a.tif")
    check_bands(open_image(tmp_path / "a.tif", channels=4), np.moveaxis(RGBA, -1, 0))
    four = np.dstack([RGB, RGB[..., 0]])
    tiff(four, extrasamples=["unspecified"])(tmp_path / "b.tif")
    check_bands(open_image(tmp_path / "b.tif"), np.moveaxis(four, -1, 0))


@pytest.mark.parametrize(
    ("name", "expected"), [("palette.tif", RGB[..., :1]), ("alpha.tif", RGBA), ("alpha.png", RGBA)]
)
def test_masks_are_read_as_they_are_stored(tmp_path, name, expected):
    FILES[name][0](tmp_path / name)
    with SlideRegions(tmp_path / name, stored=True) as mask:
        assert np.array_equal(mask.region(0, 0, 0, 133, 95), expected)
    assert np.array_equal(slide_reader.read_whole(tmp_path / name, stored=True), expected)


def test_only_the_tiles_touched_are_decoded(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", tile=(32, 32))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        offsets = file.pages[0].dataoffsets
    read = spied(monkeypatch)
    SlideRegions(tmp_path / "a.tif").region(0, 33, 60, 30, 10)
    assert [at for at, _ in read] == [offsets[1 * 3 + 1], offsets[1 * 3 + 2]]


def test_ascending_bands_read_each_tile_once(tmp_path, monkeypatch, open_image):
    tiff(tile=(16, 16), compression="deflate")(tmp_path / "a.tif")
    monkeypatch.setattr(stripes, "KEPT_BYTES", 0)
    read = spied(monkeypatch)
    source = open_image(tmp_path / "a.tif")
    source.read(20, 30)
    assert len(read) == 8 * 6, "a stripe of 128 rows, no tile below it"
    for first in range(30, 133, 10):
        source.read(first - 5, min(first + 15, 133))
    assert len(read) == len(set(read)) == 9 * 6


def spied(monkeypatch):
    """Collects what is read of files, (offset, bytes)."""
    read = []
    original = TiffSegments._bytes
    monkeypatch.setattr(
        TiffSegments, "_bytes", lambda *args: read.append(args[2:]) or original(*args)
    )
    return read


def test_memory_is_that_of_the_bands(tmp_path, monkeypatch, open_image):
    import tracemalloc

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, shape=(4096, 1024, 3), dtype=np.uint8, photometric="rgb", tile=(64, 64))
    monkeypatch.setattr(stripes, "KEPT_BYTES", 0)
    source = open_image(path)
    band = 1024 * 3 * 128
    tracemalloc.start()
    for first in range(0, 4096, 128):
        source.read(first, first + 128)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.info.kept_bytes == 2 * band
    assert 2 * band < peak < 6 * band, "of 32 bands in the image"


def test_openslide_reads_what_only_it_reads_rightly(tmp_path, monkeypatch):
    pytest.importorskip("openslide")
    tiff(tile=(64, 64))(tmp_path / "a.tif")
    for vendors, kind in ((False, TiffReader), (True, vendor_slides.OpenSlideReader)):
        monkeypatch.setattr(slide_reader, "openslide_knows_better", lambda path, v=vendors: v)
        reader = open_reader(tmp_path / "a.tif")
        assert isinstance(reader, kind)
        reader.close()


def test_without_openslide_tiff_is_read_and_vendors_formats_name_it(tmp_path, monkeypatch):
    def without(module, extra):
        if module == "openslide":
            raise EnvironmentMismatchError(f'run pip install "nnunet-octreenca[{extra}]"')
        return original(module, extra)

    original = slide_reader.import_optional
    for one in (slide_reader, vendor_slides):
        monkeypatch.setattr(one, "import_optional", without)
    tiff()(tmp_path / "a.tif")
    assert np.array_equal(slide_reader.read_whole(tmp_path / "a.tif"), RGB)
    tiff()(tmp_path / "a.scn")  # its tiles would lie scattered
    (tmp_path / "a.vms").write_text("[Virtual Microscope Specimen]")
    for name in ("a.scn", "a.vms"):
        with pytest.raises(EnvironmentMismatchError, match=r"nnunet-octreenca\[slides\]"):
            open_reader(tmp_path / name)


def test_openslide_sees_the_same(tmp_path):
    pytest.importorskip("openslide")
    path, image = tmp_path / "slide.tif", picture(300, 280)
    write_pyramid(path, [image, halved(image)], compression="zlib", sub_ifds=False, mpp=0.5)
    ours, theirs = TiffReader(path), vendor_slides.OpenSlideReader(path)
    assert [level.shape for level in ours.levels] == [(300, 280), (150, 140)]
    for level in (0, 1):
        assert ours.levels[level].shape == theirs.levels[level].shape
        assert ours.levels[level].mpp == pytest.approx(theirs.levels[level].mpp)
        window = (level, 40, 52, 60, 70)
        assert np.array_equal(ours.region(*window), theirs.region(*window))
    ours.close()
    theirs.close()


def test_the_real_slide(data_folder, open_image):
    pytest.importorskip("openslide")
    path = next(data_folder("wsi_unlabelled").glob("*.svs"))
    source = open_image(path, channels=3)
    assert source.info.mpp == 0.499
    whole = np.moveaxis(tifffile.imread(path, key=0), -1, 0)
    assert source.shape == whole.shape[1:] == (2967, 2220)
    for first, end in [(0, 500), (480, 1000), (2900, 2967), (1, 2)]:
        assert np.array_equal(source.read(first, end), whole[:, first:end])
    theirs = vendor_slides.OpenSlideReader(path)
    assert theirs.levels[0].mean_mpp == 0.499
    # two JPEG decoders, that may round differently
    other = theirs.region(0, 1000, 300, 300, 700).astype(int)
    assert np.abs(whole[:, 1000:1300, 300:1000] - other).max() <= 2
    theirs.close()
    averaged = open_image(path, mpp=0.998)
    blocks = whole[:, :2966].reshape(3, 1483, 2, 1110, 2)
    assert averaged.shape == (1483, 1110)
    assert np.abs(averaged.read(700, 750) - blocks.mean((2, 4))[:, 700:750]).max() < 0.51
