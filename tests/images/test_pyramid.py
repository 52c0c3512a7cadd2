"""Windows of slides at any multiple of a level."""

import pickle

import numpy as np
import pytest
import torch
from helpers.tiny_slides import halved, picture, write_pyramid

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import pyramid
from nnunet_octreenca.images.pyramid import SlideRegions
from nnunet_octreenca.octree import image_pyramid


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


def test_other_processes_open_their_own(tmp_path, monkeypatch):
    image = write_pyramid(tmp_path / "slide.tif", [picture(40, 40)])[0]
    opened = []
    original = pyramid.open_reader
    monkeypatch.setattr(
        pyramid,
        "open_reader",
        lambda file, **options: opened.append(file) or original(file, **options),
    )
    slide = SlideRegions(tmp_path / "slide.tif")
    slide.region(0, 0, 0, 1, 1)
    copy = pickle.loads(pickle.dumps(slide))
    assert len(opened) == 1, "nothing is opened before a window is asked for"
    assert np.array_equal(copy.region(0, 3, 4, 5, 6), image[3:8, 4:10])
    assert len(opened) == 2


def test_what_is_not_there(tmp_path):
    write_pyramid(tmp_path / "whole.tif", [picture(300, 300)])
    slide = SlideRegions(tmp_path / "whole.tif")
    with pytest.raises(ValueError, match="rows 290 to 309"):
        slide.region(0, 290, 0, 20, 10)
    with pytest.raises(InputError, match="is not a multiple"):
        slide.source_level(0.5)
    slide.close()
