"""The colours of TIFF files against Pillow, OpenSlide and the picture they were made from."""

import imagecodecs
import numpy as np
import pytest
import tifffile
from helpers.closed import closed_afterwards
from helpers.tiny_slides import halved, picture
from PIL import Image

from nnunet_octreenca.datasets.classes import Classes
from nnunet_octreenca.datasets.frames import Frame, read_frame
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import open_image as module
from nnunet_octreenca.images.pyramid import SlideRegions
from nnunet_octreenca.images.slide_reader import read_whole
from nnunet_octreenca.integration.image_reader import read_natural_images

RGB = picture(96, 128)
GREY = RGB[..., 1]
YCBCR = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
APERIO = "Aperio Image Library v12.0.0\r\n128x96 [0,0 128x96] (64x64) {}|AppMag = 40|MPP = 0.25"


@pytest.fixture
def open_image():
    with closed_afterwards(module.open_image) as function:
        yield function


def shown(path, channels, open_image):
    """(rows, columns, channels) as a prediction and a training see it, which must be the same."""
    whole = np.moveaxis(open_image(path, channels=channels).read(0, 96), 0, -1)
    with SlideRegions(path) as slide:
        assert np.array_equal(slide.region(0, 0, 0, 96, 128), whole)
    assert np.array_equal(read_whole(path), whole)
    return whole


def retagged(path, tag, value):
    """Overwrite a number that tifffile does not let one choose."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[tag].overwrite(value)


STORAGE = pytest.mark.parametrize(
    "storage",
    [
        {},
        {"rowsperstrip": 7, "compression": "lzw"},
        {"tile": (32, 48), "compression": "deflate"},
        {"tile": (64, 64), "compression": "zstd", "predictor": True},
        {"tile": (64, 64), "byteorder": ">"},
    ],
    ids=str,
)


@STORAGE
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero(tmp_path, dtype, storage, open_image):
    path = tmp_path / "a.tif"
    grey = GREY.astype(dtype) * (257 if dtype == np.uint16 else 1)
    tifffile.imwrite(path, np.iinfo(dtype).max - grey, photometric="miniswhite", **storage)
    assert np.array_equal(shown(path, 1, open_image)[..., 0], grey)
    assert np.array_equal(read_natural_images([str(path)])[0][0, 0], grey)
    if dtype == np.uint8 and "zstd" not in str(storage):
        assert np.array_equal(np.asarray(Image.open(path)), grey), "Pillow shows the same"


def test_white_is_zero_in_one_bit(tmp_path, open_image):
    tifffile.imwrite(tmp_path / "a.tif", GREY <= 128, photometric="miniswhite")
    assert np.array_equal(shown(tmp_path / "a.tif", 1, open_image)[..., 0], GREY > 128)


def test_white_is_zero_beside_alpha(tmp_path, open_image):
    path = tmp_path / "a.tif"
    opaque = np.stack([255 - GREY, np.full_like(GREY, 255)], -1)
    form = {"photometric": "miniswhite", "planarconfig": "contig", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(path, opaque, **form)
    assert np.array_equal(shown(path, 1, open_image)[..., 0], GREY)


def test_white_is_zero_in_pages_of_channels(tmp_path, open_image):
    path = tmp_path / "a.ome.tif"
    planes = np.moveaxis(RGB, -1, 0)
    tifffile.imwrite(path, 255 - planes, metadata={"axes": "CYX"}, photometric="miniswhite")
    assert np.array_equal(shown(path, 3, open_image), RGB)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_white_is_zero_of_what_has_no_largest_value(tmp_path, dtype, open_image):
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(dtype), photometric="miniswhite")
    with pytest.raises(InputError, match=r"a\.tif stores white as 0 in samples of"):
        open_image(tmp_path / "a.tif")


def test_a_mask_with_white_as_zero(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    inside = GREY > 128
    mask = np.where(inside, 0, 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "m.tif", mask, photometric="miniswhite")
    frame = Frame(0, tmp_path / "a.png", tmp_path / "m.tif")
    _, labels = read_frame(frame, Classes({"x": (255,)}))
    assert np.array_equal(labels == 1, inside)


def test_a_mask_of_one_bit_with_white_as_zero_is_doubtful(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", GREY > 128)  # which marks it so
    with pytest.raises(InputError, match=r"m\.tif is a mask of one bit .* 8 bits and black as 0"):
        read_whole(tmp_path / "m.tif", stored=True)
    tifffile.imwrite(tmp_path / "m.tif", GREY > 128, photometric="minisblack")
    assert np.array_equal(read_whole(tmp_path / "m.tif", stored=True)[..., 0], GREY > 128)


@STORAGE
@pytest.mark.parametrize("planar", [False, True])
def test_ycbcr_without_jpeg(tmp_path, storage, planar, open_image):
    path = tmp_path / "a.tif"
    image = np.moveaxis(YCBCR, -1, 0) if planar else YCBCR
    form = {"photometric": "ycbcr", "planarconfig": "separate" if planar else "contig"}
    tifffile.imwrite(path, image, subsampling=(1, 1), **form, **storage)
    got = shown(path, 3, open_image)
    theirs = np.asarray(Image.fromarray(YCBCR, "YCbCr").convert("RGB")).astype(int)
    assert np.abs(got - theirs).max() <= 1
    planes = read_natural_images([str(path)])[0][:, 0]
    assert np.array_equal(np.moveaxis(planes, 0, -1), got)


def test_ycbcr_of_a_studio(tmp_path, open_image):
    """ReferenceBlackWhite: brightness from 16 to 235, colours from 16 to 240."""
    path = tmp_path / "a.tif"
    span = np.array([219, 224, 224]) / 255
    studio = np.rint((YCBCR - [0.0, 128, 128]) * span + [16, 128, 128]).astype(np.uint8)
    limits = (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1)
    tag = (532, "2I", 6, limits, True)
    tifffile.imwrite(path, studio, photometric="ycbcr", subsampling=(1, 1), extratags=[tag])
    assert np.abs(shown(path, 3, open_image).astype(int) - RGB).max() <= 4


@pytest.mark.parametrize(
    ("space", "sampling"),
    [("RGB", (1, 1)), ("YCBCR", (1, 1)), ("YCBCR", (2, 1)), ("YCBCR", (2, 2))],
)
def test_jpeg(tmp_path, space, sampling, open_image):
    openslide = pytest.importorskip("openslide")
    path = tmp_path / "a.svs"
    tifffile.imwrite(
        path,
        RGB,
        photometric="rgb",
        tile=(32, 32),
        compression="jpeg",
        subsampling=sampling,
        compressionargs={"level": 95, "outcolorspace": space},
        description=APERIO.format("JPEG/RGB Q=95"),
        metadata=None,
    )
    with openslide.OpenSlide(path) as slide:
        theirs = np.asarray(slide.read_region((0, 0), 0, (128, 96)))[..., :3].astype(int)
    assert np.abs(shown(path, 3, open_image) - theirs).max() <= 3


@pytest.mark.parametrize(("compression", "space"), [(33003, YCBCR), (33005, RGB)])
@pytest.mark.parametrize("photometric", [2, 6])
@pytest.mark.parametrize("reversible", [True, False])
def test_aperios_jpeg2000(tmp_path, compression, space, photometric, reversible, open_image):
    openslide = pytest.importorskip("openslide")
    path = tmp_path / "a.svs"
    tiles = [
        imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(space[y : y + 32, x : x + 64]),
            level=0 if reversible else 45,
            reversible=reversible,
            codecformat="j2k",
            mct=False,
        )
        for y in (0, 32, 64)
        for x in (0, 64)
    ]
    tifffile.imwrite(
        path,
        iter(tiles),
        shape=(96, 128, 3),
        dtype=np.uint8,
        tile=(32, 64),
        photometric="rgb",
        compression=compression,
        description=APERIO.format("J2K"),
        metadata=None,
    )
    retagged(path, 262, photometric)
    with openslide.OpenSlide(path) as slide:
        theirs = np.asarray(slide.read_region((0, 0), 0, (128, 96)))[..., :3].astype(int)
    got = shown(path, 3, open_image).astype(int)
    assert np.abs(got - theirs).max() <= 2
    assert np.abs(got - RGB).mean() <= 3


@pytest.mark.parametrize("storage", [{}, {"tile": (32, 32), "compression": "deflate"}], ids=str)
def test_printers_colours(tmp_path, storage, open_image):
    path = tmp_path / "a.tif"
    cmyk = picture(96, 128, channels=4)
    tifffile.imwrite(path, cmyk, photometric="separated", **storage)
    theirs = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(shown(path, 3, open_image) - theirs).max() <= 1
    four = np.moveaxis(open_image(path, channels=4).read(0, 96), 0, -1)
    assert np.array_equal(four, cmyk), "of a model that takes all four"


def packs_bits() -> bool:
    """Whether imagecodecs can write what this test reads; older ones only read it."""
    try:
        imagecodecs.packints_encode(np.zeros(4, np.uint8), 2)
    except NotImplementedError:
        return False
    return True


@pytest.mark.skipif(not packs_bits(), reason="this imagecodecs writes no samples of few bits")
@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits(tmp_path, bits, open_image):
    path = tmp_path / "a.tif"
    few = GREY >> (8 - bits)
    tifffile.imwrite(path, few, bitspersample=bits, photometric="minisblack")
    got = shown(path, 1, open_image)[..., 0]
    assert np.array_equal(got, np.asarray(Image.open(path)))
    assert np.array_equal(got, few * (255 // (2**bits - 1)))
    assert np.array_equal(read_whole(path, stored=True)[..., 0], few), "of a mask"


@pytest.mark.parametrize("shift", [0, 8])
def test_palettes_of_8_and_of_16_bits(tmp_path, shift, open_image):
    path = tmp_path / "a.tif"
    colours = np.random.default_rng(0).integers(0, 256, (3, 256), np.uint16)
    tifffile.imwrite(path, GREY, photometric="palette", colormap=colours << shift, tile=(32, 32))
    assert np.array_equal(shown(path, 3, open_image), np.moveaxis(colours[:, GREY], 0, -1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", [False, True])
def test_colours_of_8_and_16_bits(tmp_path, dtype, planar, open_image):
    path = tmp_path / "a.tif"
    image = RGB.astype(dtype) * (257 if dtype == np.uint16 else 1)
    stored = np.moveaxis(image, -1, 0) if planar else image
    config = "separate" if planar else "contig"
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=config, tile=(32, 48))
    assert np.array_equal(shown(path, 3, open_image), image)


def write_ycbcr(path, **options):
    tifffile.imwrite(path, YCBCR, photometric="ycbcr", subsampling=(1, 1), **options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((262, 8), "stores its colours as CIELAB"),
        ((262, 9), "stores its colours as ICC L"),
        ((262, 34892), "a camera's linear raw values"),
        ((530, (2, 2)), r"at a lower resolution than brightness \(YCbCr, 2 x 2\)"),
        ((259, 34712), "marked as YCbCr and compressed by JPEG2000"),
    ],
    ids=str,
)
def test_what_is_refused(tmp_path, change, said):
    path = tmp_path / "a.tif"
    tag = (530, "H", 2, (1, 1), True)
    tifffile.imwrite(path, YCBCR, photometric="ycbcr", tile=(32, 32), extratags=[tag])
    retagged(path, *change)
    for read in (
        lambda: module.open_image(path, channels=3),
        lambda: SlideRegions(path).shapes,
        lambda: read_whole(path),
        lambda: read_whole(path, stored=True),
        lambda: read_natural_images([str(path)]),
    ):
        with pytest.raises(InputError, match=rf"a\.tif .*{said}.* save it as RGB"):
            read()


def sparse(path, image, missing, **options):
    """A tiled file of which some tiles were never written."""
    rows, columns = options["tile"]
    tiles = [
        None if (y, x) in missing else image[y : y + rows, x : x + columns]
        for y in range(0, image.shape[0], rows)
        for x in range(0, image.shape[1], columns)
    ]
    tifffile.imwrite(path, iter(tiles), shape=image.shape, dtype=image.dtype, **options)


TILED = {"tile": (32, 32), "compression": "deflate"}


@pytest.mark.parametrize(
    ("image", "options", "background"),
    [
        (RGB, {"photometric": "rgb"}, 255),
        (RGB, {"photometric": "rgb", "compression": "jpeg"}, 255),
        (RGB.astype(np.uint16) * 257, {"photometric": "rgb"}, 65535),
        (YCBCR, {"photometric": "ycbcr", "subsampling": (1, 1)}, 255),
        (np.dstack([RGB, 0 * GREY + 255]), {"photometric": "rgb", "extrasamples": [2]}, 255),
        (picture(96, 128, channels=4), {"photometric": "separated"}, 255),
        (GREY, {"photometric": "minisblack"}, 0),
        (GREY, {"photometric": "miniswhite"}, 255),
        (RGB, {"photometric": "rgb", "extratags": [(42113, "s", 0, "7", True)]}, 7),
    ],
    ids=["rgb", "jpeg", "16 bits", "ycbcr", "alpha", "cmyk", "grey", "white is 0", "no data"],
)
def test_what_was_never_scanned(tmp_path, image, options, background, open_image):
    path = tmp_path / "a.tif"
    missing = [(0, 32), (64, 96)]
    sparse(path, image, missing, **{**TILED, **options})
    tifffile.imwrite(tmp_path / "whole.tif", image, **{**TILED, **options})
    channels = 1 if image.ndim == 2 else 3
    expected = shown(tmp_path / "whole.tif", channels, open_image).copy()
    for y, x in missing:
        expected[y : y + 32, x : x + 32] = background
    assert np.array_equal(shown(path, channels, open_image), expected)


def test_a_mask_that_was_not_written_everywhere(tmp_path):
    for image, options in ((RGB, {"photometric": "rgb"}), (GREY, {})):
        sparse(tmp_path / "a.tif", image, [(0, 32)], **TILED, **options)
        assert not read_whole(tmp_path / "a.tif", stored=True)[:32, 32:64].any()


@pytest.mark.parametrize("finest_too", [False, True])
def test_aperios_coarse_levels_are_filled_from_the_finer(tmp_path, finest_too, open_image):
    openslide = pytest.importorskip("openslide")
    path = tmp_path / "a.svs"
    smooth = np.asarray(Image.fromarray(picture(8, 8)).resize((512, 512)))
    levels = [(smooth, [(256, 256)] if finest_too else []), (halved(smooth), [(128, 128)])]
    with tifffile.TiffWriter(path) as writer:
        for image, missing in levels:
            tiles = [
                None if (y, x) in missing else image[y : y + 128, x : x + 128]
                for y in range(0, len(image), 128)
                for x in range(0, len(image), 128)
            ]
            writer.write(
                iter(tiles),
                shape=image.shape,
                dtype=np.uint8,
                tile=(128, 128),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 95},
                description=APERIO.format("JPEG"),
                metadata=None,
            )
    with openslide.OpenSlide(path) as slide:
        assert slide.level_count == 2
        region = slide.read_region((0, 0), 1, (256, 256))
    white = Image.new("RGBA", region.size, "white")
    theirs = np.asarray(Image.alpha_composite(white, region))[..., :3].astype(int)
    got = np.moveaxis(open_image(path, mpp=0.5).read(0, 256), 0, -1)
    assert np.abs(got - theirs).max() <= 12
    assert np.abs(got - theirs).mean() <= 1
    with SlideRegions(path) as one:
        assert np.array_equal(one.region(1, 0, 0, 256, 256), got)
