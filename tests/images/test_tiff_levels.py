"""The pyramid of a TIFF file: what is a level, and which one a resolution is read from."""

import numpy as np
import pytest
import tifffile
from helpers.bands import check_bands
from helpers.closed import closed_afterwards
from helpers.tiny_slides import halved, picture, write_pyramid

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import slides
from nnunet_octreenca.images.pyramid import SlideRegions

IMAGE = picture(256, 160)


@pytest.fixture
def open_slide():
    with closed_afterwards(slides.open_slide) as function:
        yield function


@pytest.mark.parametrize("steps", [(1, 2, 4), (1, 4, 16), (1, 8), (1, 3)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sub_ifds": False},
        {"sub_ifds": False, "reduced": False},
        {"planarconfig": "separate"},
        {"compression": "deflate", "predictor": True},
    ],
    ids=["sub-directories", "reduced pages", "unmarked pages", "planes", "deflated"],
)
def test_levels_however_they_are_marked(tmp_path, steps, options, open_slide):
    path = tmp_path / "a.tif"
    write_pyramid(path, [IMAGE[::step, ::step] for step in steps], mpp=0.25, **options)
    with SlideRegions(path) as slide:
        assert slide.downsamples == pytest.approx(steps, rel=0.02)
        for level, step in enumerate(steps):
            source = open_slide(path, mpp=0.25 * step * 1.04)
            assert source.info.mpp == pytest.approx(0.25 * step, rel=0.02)
            assert source.spacing == pytest.approx((0.00025 * step,) * 2, rel=0.02)
            assert source.info.base_shape == (256, 160)
            whole = IMAGE[::step, ::step]
            check_bands(source, np.moveaxis(whole, -1, 0))
            window = slide.region(level, 3, 2, 12, 7)
            assert np.array_equal(window, whole[3:15, 2:9])


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (IMAGE[:100, :100], {}),
        (IMAGE[:120, :80], {}),  # 6 % off the form of the whole
        (IMAGE[::8, ::8], {"tile": None}),  # a thumbnail
        (IMAGE[::2, ::2, 0], {"photometric": "minisblack"}),
        (IMAGE[::2, ::2].astype(np.uint16), {}),
    ],
    ids=["another form", "nearly the form", "in strips", "grey", "another type"],
)
def test_what_is_no_level(tmp_path, image, options):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        form = {"photometric": "rgb", "tile": (32, 32), "metadata": None}
        writer.write(IMAGE, **form)
        writer.write(image, **{**form, **options})
    with SlideRegions(tmp_path / "a.tif") as slide:
        assert slide.shapes == [(256, 160)]


def test_sizes_that_were_rounded(tmp_path):
    image = picture(97, 141)
    write_pyramid(tmp_path / "a.tif", [image, halved(image), halved(image, 2)])
    with SlideRegions(tmp_path / "a.tif") as slide:
        assert slide.shapes == [(97, 141), (49, 71), (25, 36)]
        assert slide.downsamples == pytest.approx([1, 2, 4], rel=0.03)


def test_a_resolution_between_two_levels_is_averaged_from_the_finer(tmp_path, open_slide):
    path = tmp_path / "a.tif"
    write_pyramid(path, [IMAGE, IMAGE[::2, ::2], IMAGE[::4, ::4]], mpp=0.25)
    source = open_slide(path, mpp=0.75)
    assert source.shape == (85, 53)
    # pixel (2, 4) covers 1.5 x 1.5 pixels of the level at (3, 6)
    weights = np.outer([1, 0.5], [1, 0.5]) / 2.25
    mean = np.einsum("ij,ijc->c", weights, IMAGE[::2, ::2][3:5, 6:8].astype(float))
    np.testing.assert_allclose(source.read(0, 85)[:, 2, 4], mean, atol=0.51)
    check_bands(source, source.read(0, 85))


def test_resolutions_that_are_not_there(tmp_path, open_slide):
    path = tmp_path / "a.tif"
    write_pyramid(path, [IMAGE, IMAGE[::2, ::2]], mpp=0.25)
    with pytest.raises(InputError, match=r"a\.tif has no level as fine as 0\.1 .* 0\.25, 0\.5$"):
        open_slide(path, mpp=0.1)
    write_pyramid(path, [IMAGE])
    with pytest.raises(InputError, match=r"a\.tif does not say its resolution"):
        open_slide(path, mpp=0.25)
