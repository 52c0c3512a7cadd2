"""Pages of a TIFF file as planes of a stack, or as channels."""

import numpy as np
import pytest
import tifffile
from helpers.bands import check_bands
from helpers.closed import closed_afterwards
from helpers.tiny_slides import picture

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import slides
from nnunet_octreenca.images.pyramid import SlideRegions

RANDOM = np.random.default_rng(0)
GREY16 = RANDOM.integers(0, 2**16, (71, 83), np.uint16)
STACK = RANDOM.integers(-99, 999, (7, 33, 47), np.int16)


@pytest.fixture
def open_slide():
    with closed_afterwards(slides.open_slide) as function:
        yield function


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile": (16, 16), "compression": "deflate"},
        {"ome": True, "metadata": {"axes": "ZYX"}},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"metadata": None},
    ],
    ids=str,
)
def test_a_stack_of_planes(tmp_path, options, open_slide):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, **options)
    source = open_slide(path)
    assert source.stripe == 1, "one plane in memory at a time"
    check_bands(source, STACK[None], heights=(1, 3))
    with pytest.raises(InputError, match="stack of planes"):
        open_slide(path, mpp=0.25)
    with pytest.raises(InputError, match="stack of 7 planes"):
        _ = SlideRegions(path).shapes


@pytest.mark.parametrize("axes", ["CZYX", "ZCYX"])
def test_a_stack_with_channels(tmp_path, axes, open_slide):
    path = tmp_path / "a.ome.tif"
    image = RANDOM.integers(0, 256, (2, 5, 19, 23), np.uint8)
    stored = image if axes == "CZYX" else image.swapaxes(0, 1)
    tifffile.imwrite(path, stored, metadata={"axes": axes}, tile=(16, 16))
    check_bands(open_slide(path), image, heights=(1, 2))


def test_pages_that_are_channels(tmp_path, open_slide):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK, metadata={"axes": "CYX"}, compression="deflate", tile=(16, 16))
    check_bands(open_slide(path), STACK)
    with SlideRegions(path) as slide:
        assert np.array_equal(slide.region(0, 3, 5, 20, 30), np.moveaxis(STACK, 0, -1)[3:23, 5:35])
    tifffile.imwrite(tmp_path / "b.tif", STACK)  # does not say what its pages are
    assert open_slide(tmp_path / "b.tif", channels=1).shape == (7, 33, 47)
    check_bands(open_slide(tmp_path / "b.tif", channels=7), STACK)


def test_channels_in_several_files(tmp_path, open_slide):
    """OME-TIFF allows it: each file says which planes lie in which."""
    files = [f"{number}.ome.tif" for number in range(2)]
    ids = [f"urn:uuid:0000000{number}-0000-0000-0000-000000000000" for number in range(2)]
    planes = "".join(
        f'<TiffData FirstC="{n}" FirstZ="0" FirstT="0" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{files[n]}">{ids[n]}</UUID></TiffData>'
        for n in range(2)
    )
    for number, file in enumerate(files):
        text = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="{ids[number]}"><Image ID="Image:0"><Pixels ID="Pixels:0" SizeX="83" '
            f'SizeY="71" SizeZ="1" SizeC="2" SizeT="1" Type="uint16" DimensionOrder="XYZCT">'
            f"{planes}</Pixels></Image></OME>"
        )
        image = GREY16 + np.uint16(number)
        options = {"metadata": None, "description": text, "tile": (32, 32)}
        tifffile.imwrite(tmp_path / file, image, compression="deflate", **options)
    check_bands(open_slide(tmp_path / files[0]), np.stack([GREY16, GREY16 + np.uint16(1)]))
    (tmp_path / files[1]).unlink()
    with pytest.raises(InputError, match=r"0\.ome\.tif"):
        open_slide(tmp_path / files[0])


def test_more_axes_than_can_be_read(tmp_path, open_slide):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.zeros((2, 3, 16, 16), np.uint8), metadata={"axes": "TZYX"})
    with pytest.raises(InputError, match="has the axes TZYX"):
        open_slide(path)


def test_the_spacing_of_stacks(tmp_path, open_slide):
    path = tmp_path / "case_0000.tif"
    tifffile.imwrite(path, STACK)
    assert open_slide(path).spacing == (1, 1, 1)
    (tmp_path / "case.json").write_text('{"spacing": [3, 2, 1.5]}')  # as nnU-Net has it
    assert open_slide(path).spacing == (3, 2, 1.5)
    (tmp_path / "case.json").write_text('{"spacing": [3, 2]}')
    with pytest.raises(InputError, match=r"case\.json should hold the spacing .* not \[3, 2\]"):
        open_slide(path)
    path = tmp_path / "b.ome.tif"
    sizes = {"PhysicalSizeX": 1, "PhysicalSizeY": 2, "PhysicalSizeZ": 3}
    tifffile.imwrite(path, STACK, metadata={"axes": "ZYX", **sizes})
    assert open_slide(path).spacing == pytest.approx((3e-3, 2e-3, 1e-3))


LARGE, SMALL = picture(96, 128), picture(48, 64, seed=1)


@pytest.mark.parametrize("first", ["large", "small"])
def test_the_largest_image_is_read(tmp_path, first, open_slide):
    images = [LARGE, SMALL[:40, :30]] if first == "large" else [SMALL[:40, :30], LARGE]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for image in images:
            writer.write(image, photometric="rgb", metadata=None)
    check_bands(open_slide(tmp_path / "a.tif"), np.moveaxis(LARGE, -1, 0))
