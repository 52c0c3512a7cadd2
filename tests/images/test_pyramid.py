"""Windows of slides against the arrays they were written from, and against OpenSlide."""

import pickle

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tiny_slides import halved, picture, write_pyramid

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import pyramid, vendor_slides
from nnunet_octreenca.images.pyramid import SlideRegions
from nnunet_octreenca.octree import image_pyramid

# Rows and columns that meet tiles' borders, lie within one, and reach the image's end.
WINDOWS = [(0, 0, 97, 141), (31, 30, 35, 40), (5, 100, 3, 41), (96, 140, 1, 1), (32, 64, 32, 32)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib", "predictor": True},
        {"compression": "jpeg2000", "compressionargs": {"reversible": True}},
        {"tile": None, "rowsperstrip": 16},
        {"planarconfig": "separate"},
        {"sub_ifds": False},
        {"sub_ifds": False, "reduced": False},
    ],
    ids=["plain", "zlib", "jpeg2000", "strips", "planes", "reduced pages", "pages"],
)
def test_windows_are_the_arrays(tmp_path, options):
    image = picture(97, 141)
    write_pyramid(tmp_path / "slide.tif", [image, halved(image), halved(image, 2)], **options)
    slide = SlideRegions(tmp_path / "slide.tif")
    levels = [image, halved(image), halved(image, 2)]
    if options.get("tile", 32):
        assert slide.shapes == [(97, 141), (49, 71), (25, 36)]
        assert slide.downsamples == pytest.approx([1, 2, 4], rel=0.03)
    for y, x, height, width in WINDOWS:
        assert np.array_equal(
            slide.region(0, y, x, height, width), image[y : y + height, x:][:, :width]
        )
    for level in range(1, len(slide.shapes)):
        assert np.array_equal(slide.region(level, 3, 7, 20, 25), levels[level][3:23, 7:32])


def test_jpeg_tiles_as_tifffile_decodes_them(tmp_path):
    write_pyramid(tmp_path / "slide.tif", [picture(97, 141)], compression="jpeg")
    whole = tifffile.imread(tmp_path / "slide.tif")
    slide = SlideRegions(tmp_path / "slide.tif")
    assert np.array_equal(slide.region(0, 20, 30, 70, 80), whole[20:90, 30:110])


def test_only_the_tiles_touched_are_decoded(tmp_path, monkeypatch):
    write_pyramid(tmp_path / "slide.tif", [picture(97, 141)])
    seen = []
    stock = slide_files._Tiff._segment
    monkeypatch.setattr(
        XX, lambda self, page, n: seen.append(n) or stock(self, page, n)
    )
    SlideRegions(tmp_path / "slide.tif").region(0, 33, 60, 30, 10)
    assert seen == [1 * 5 + 1, 1 * 5 + 2]


def test_one_channel_and_sixteen_bits(tmp_path):
    mask = np.arange(97 * 141, dtype=np.uint16).reshape(97, 141)
    write_pyramid(tmp_path / "mask.tif", [mask])
    slide = SlideRegions(tmp_path / "mask.tif")
    assert (slide.channels, slide.dtype) == (1, np.uint16)
    assert np.array_equal(slide.region(0, 10, 20, 30, 40)[..., 0], mask[10:40, 20:60])


def test_openslide_sees_the_same(tmp_path):
    image = picture(300, 280)
    write_pyramid(
        tmp_path / "slide.tif", [image, halved(image)], compression="zlib", sub_ifds=False, mpp=0.5
    )
    ours, theirs = (
        SlideRegions(tmp_path / "slide.tif"),
        vendor_slides.OpenSlideReader(tmp_path / "slide.tif"),
    )
    assert ours.shapes == theirs.shapes == [(300, 280), (150, 140)]
    assert ours.mpp == pytest.approx(0.5)
    for level in (0, 1):
        assert np.array_equal(
            ours.region(level, 40, 52, 60, 70), theirs.region(level, 40, 52, 60, 70)
        )
    theirs.close()


def test_aperio_slide(data_folder):
    path = next(data_folder("wsi_unlabelled").glob("*.svs"))
    ours, theirs = SlideRegions(path), vendor_slides.OpenSlideReader(path)
    assert ours.shapes == theirs.shapes
    assert ours.mpp == pytest.approx(theirs.mpp)
    window = ours.region(0, 1000, 700, 300, 400)
    assert np.array_equal(window, theirs.region(0, 1000, 700, 300, 400))
    theirs.close()


@pytest.mark.parametrize("ending", [".png", ".bmp"])
def test_a_picture_is_a_slide_of_one_level(tmp_path, ending):
    image = picture(50, 61)
    Image.fromarray(image).save(tmp_path / f"slide{ending}")
    slide = SlideRegions(tmp_path / f"slide{ending}")
    assert (slide.shapes, slide.mpp) == ([(50, 61)], None)
    assert np.array_equal(slide.region(0, 5, 6, 40, 50), image[5:45, 6:56])


def test_resolution_of_ome_and_of_screens(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        picture(40, 40),
        metadata={"PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "axes": "YXS"},
    )
    write_pyramid(
        tmp_path / "b.tif", [picture(40, 40)], resolution=(300, 300), resolutionunit="INCH"
    )
    assert SlideRegions(tmp_path / "a.ome.tif").mpp == pytest.approx(0.25)
    assert SlideRegions(tmp_path / "b.tif").mpp is None


@pytest.mark.parametrize("shape", [(96, 128), (97, 141), (140, 203)])
def test_averages_are_the_octrees(tmp_path, shape):
    """Of a slide of one level, `scaled` makes the levels of `image_pyramid`, borders too."""
    image = picture(*shape)
    write_pyramid(tmp_path / "slide.tif", [image])
    slide = SlideRegions(tmp_path / "slide.tif")
    expected = image_pyramid(torch.from_numpy(image).movedim(-1, 0)[None].float(), [(2, 2)] * 4)
    for level, one in enumerate(expected):
        rows, columns = one.shape[2:]
        scaled = slide.scaled(2**level, 0, 0, rows, columns)
        assert np.allclose(np.moveaxis(scaled, -1, 0), one[0].numpy(), atol=1e-4)
        part = slide.scaled(2**level, 1, 2, rows - 1, columns - 2)
        assert np.array_equal(part, scaled[1:, 2:])


@pytest.mark.parametrize("pixels", [1, 700])
def test_rows_are_averaged_some_at_a_time(tmp_path, monkeypatch, pixels):
    image = picture(97, 141)
    write_pyramid(tmp_path / "slide.tif", [image])
    slide = SlideRegions(tmp_path / "slide.tif")
    whole = slide.scaled(4, 1, 2, 24, 34)
    monkeypatch.setattr(pyramid, "_PIXELS", pixels)
    assert np.array_equal(slide.scaled(4, 1, 2, 24, 34), whole)


def test_the_nearest_finer_level_is_averaged(tmp_path):
    image = picture(128, 192)
    fourth = 255 - halved(image, 2)  # unlike level 0, to see which is read
    write_pyramid(tmp_path / "slide.tif", [image, fourth])
    slide = SlideRegions(tmp_path / "slide.tif")
    assert [slide.source_level(d) for d in (1, 2, 4, 8, 16, 12)] == [
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
        (1, 4),
        (1, 3),
    ]
    blocks = fourth.reshape(16, 2, 24, 2, 3).mean((1, 3))
    assert np.allclose(slide.scaled(8, 2, 3, 10, 12), blocks[2:12, 3:15])


def test_a_level_that_lost_its_last_pixels_repeats_them(tmp_path):
    image = picture(129, 130)
    write_pyramid(tmp_path / "slide.tif", [image, image[:128:4, :128:4].copy()])
    slide = SlideRegions(tmp_path / "slide.tif")
    window = slide.scaled(4, 30, 30, 3, 3)  # level 2 of the octree has 33 cells, the file's 32
    stored = image[:128:4, :128:4]
    assert np.array_equal(window[:2, :2], stored[30:, 30:])
    assert np.array_equal(window[2, 2], stored[31, 31])


def test_other_processes_open_their_own(tmp_path):
    image = write_pyramid(tmp_path / "slide.tif", [picture(40, 40)])[0]
    slide = SlideRegions(tmp_path / "slide.tif")
    slide.region(0, 0, 0, 1, 1)
    copy = pickle.loads(pickle.dumps(slide))
    assert copy._opened is None
    assert np.array_equal(copy.region(0, 3, 4, 5, 6), image[3:8, 4:10])


def test_bad_slides(tmp_path):
    with pytest.raises(InputError, match=r"none\.tif does not exist"):
        _ = SlideRegions(tmp_path / "none.tif").shapes
    (tmp_path / "text.svs").write_text("this is no slide")
    with pytest.raises(InputError, match=r"text\.svs cannot be read"):
        _ = SlideRegions(tmp_path / "text.svs").shapes
    write_pyramid(tmp_path / "whole.tif", [picture(300, 300)])
    data = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "half.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"half\.tif"):
        SlideRegions(tmp_path / "half.tif").region(0, 0, 0, 300, 300)
    with pytest.raises(ValueError, match="rows 290 to 309"):
        SlideRegions(tmp_path / "whole.tif").region(0, 290, 0, 20, 10)
    with pytest.raises(InputError, match="is not a multiple"):
        SlideRegions(tmp_path / "whole.tif").source_level(0.5)
