"""Vendors' formats through OpenSlide."""

import numpy as np
import pytest
import tifffile
from helpers.bands import check_bands
from helpers.closed import closed_afterwards
from helpers.tiny_slides import picture, write_leica
from PIL import Image

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import slide_reader, slides
from nnunet_octreenca.images.pyramid import SlideRegions

openslide = pytest.importorskip("openslide")
RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (133, 95, 3), np.uint8)

VMS = """[Virtual Microscope Specimen]
NoLayers=1
NoJpegColumns=1
NoJpegRows=1
ImageFile=image.jpg
MapFile=map.jpg
MacroImage=map.jpg
PhysicalWidth=240000
PhysicalHeight=160000
"""


@pytest.fixture
def open_slide():
    with closed_afterwards(slides.open_slide) as function:
        yield function


@pytest.fixture
def vms(tmp_path):
    """A slide of 320 x 480 pixels of 0.5 microns as Hamamatsu's VMS: JPEG with restart markers."""
    image = RANDOM.integers(0, 256, (40, 60, 3), np.uint8)
    large = Image.fromarray(image.repeat(8, 0).repeat(8, 1))
    large.save(tmp_path / "image.jpg", quality=95, subsampling=0, restart_marker_blocks=10)
    Image.fromarray(image).save(tmp_path / "map.jpg", subsampling=0, restart_marker_blocks=4)
    (tmp_path / "slide.vms").write_text(VMS)
    return tmp_path / "slide.vms"


def tifffile_cannot(monkeypatch):
    monkeypatch.setattr(slide_reader, "openslide_knows_better", lambda path: True)


def test_a_vendors_format_is_read_by_openslide(vms, open_slide):
    source = open_slide(vms)
    assert source.info.mpp == 0.5
    assert source.spacing == (0.0005, 0.0005)
    assert source.info.base_shape == (320, 480)
    whole = np.moveaxis(np.asarray(Image.open(vms.with_name("image.jpg"))), -1, 0)
    check_bands(source, whole, heights=(7, 100))
    with SlideRegions(vms) as slide:
        assert slide.mpp == 0.5
        assert np.array_equal(
            slide.region(0, 5, 9, 200, 300), np.moveaxis(whole, 0, -1)[5:205, 9:309]
        )
    source.close()
    source.close()


@pytest.mark.parametrize(("mpp", "level"), [(1.0, 1), (4.1, 3), (33.0, 6)])
def test_its_levels_by_resolution(vms, open_slide, mpp, level):
    source = open_slide(vms, mpp=mpp)
    with openslide.OpenSlide(vms) as slide:
        size = slide.level_dimensions[level]
        region = slide.read_region((0, 0), level, size)
    white = Image.new("RGBA", size, "white")
    white.alpha_composite(region)
    check_bands(source, np.moveaxis(np.asarray(white)[..., :3], -1, 0))


def test_its_levels_averaged(vms, open_slide):
    source = open_slide(vms, mpp=1.3)
    assert source.shape == (123, 185)
    assert source.info.mpp == 1.3
    check_bands(source, source.read(0, 123))
    with openslide.OpenSlide(vms) as slide:
        level = np.asarray(slide.read_region((0, 0), 1, slide.level_dimensions[1]))[..., :3]
    assert np.abs(source.read(0, 123).mean((1, 2)) - level.mean((0, 1))).max() < 0.5


def test_a_finer_level_than_a_vendors_slide_has(vms):
    with pytest.raises(
        InputError, match=r"slide\.vms has no level as fine as 0\.2 .* have 0\.5, 1"
    ):
        slides.open_slide(vms, mpp=0.2)


def test_a_damaged_vendors_slide(vms, open_slide):
    data = bytearray(vms.with_name("image.jpg").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    vms.with_name("image.jpg").write_bytes(data)
    with pytest.raises(InputError, match=r"slide\.vms"):
        open_slide(vms).read(0, 320)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_vendors_slide(vms, open_slide, share):
    path = vms.with_name("image.jpg")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=r"slide\.vms cannot be"):
        open_slide(vms).read(0, 320)


@pytest.mark.parametrize("steps", [(1, 2, 4), (1, 3)])
def test_openslide_and_tifffile_agree_on_what_both_read(tmp_path, monkeypatch, open_slide, steps):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for step in steps:
            writer.write(
                RGB[::step, ::step],
                photometric="rgb",
                subfiletype=int(step > 1),
                tile=(16, 16),
                compression="deflate",
                metadata=None,
                resolution=(40000, 40000),
                resolutionunit="CENTIMETER",
            )
    both = []
    for tool in ("tifffile", "openslide"):
        if tool == "openslide":
            tifffile_cannot(monkeypatch)
        for step in steps:
            both.append(open_slide(path, mpp=0.25 * step))
            check_bands(both[-1], np.moveaxis(RGB[::step, ::step], -1, 0), heights=(9, 133))
    for one, other in zip(both, both[len(steps) :], strict=False):
        assert one.info.base_shape == other.info.base_shape
        assert one.spacing == pytest.approx(other.spacing, rel=0.02)


def test_transparent_parts_are_white(tmp_path, monkeypatch, open_slide):
    path = tmp_path / "a.tif"
    tiles = iter([RGB[:64, :64], None, None, None])
    tifffile.imwrite(
        path,
        tiles,
        shape=(128, 128, 3),
        dtype=np.uint8,
        tile=(64, 64),
        photometric="rgb",
        compression="deflate",
    )
    tifffile_cannot(monkeypatch)
    whole = np.full((3, 128, 128), 255, np.uint8)
    whole[:, :64, :64] = np.moveaxis(RGB[:64, :64], -1, 0)
    check_bands(open_slide(path), whole)


@pytest.mark.parametrize(("place", "whole"), [((64, 96), (480, 448)), ((0, 32), (256, 400))])
@pytest.mark.parametrize("mpp", [None, 1.3])
def test_bounds_of_what_was_scanned(tmp_path, open_slide, place, whole, mpp):
    write_leica(tmp_path / "a.scn", picture(256, 256), place, whole)
    source = open_slide(tmp_path / "a.scn", mpp=mpp)
    assert source.info.base_shape == whole[::-1]
    assert source.info.bounds == (*place, 256, 256)
    assert source.info.notes == (
        f"a.scn: 256 x 256 pixels from x {place[0]}, y {place[1]} were scanned. GeoJSON begins "
        f"there, as QuPath does; other results cover the whole slide",
    )
    with SlideRegions(tmp_path / "a.scn") as slide:
        assert slide.corner == place
        scanned = slide.region(0, place[1], place[0], 256, 256)
        assert np.abs(scanned.astype(int) - picture(256, 256)).mean() < 12


def test_a_slide_without_bounds(vms, open_slide):
    source = open_slide(vms)
    assert source.info.bounds is None
    assert source.info.notes == ()
    with SlideRegions(vms) as slide:
        assert slide.corner == (0, 0)
