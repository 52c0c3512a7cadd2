import numpy as np
import pytest
from helpers.label_maps import blobs, noise
from rasterio.features import rasterize
from scipy import ndimage

from nnunet_octreenca.labels.outlines import outlines

MAPS = {
    "noise2": noise(31, 29, classes=2),
    "noise4": noise(31, 29, classes=4, dtype=np.int16),
    "blobs": blobs(31, 47, classes=4),
    "diagonal": np.eye(31, 47, dtype=np.uint8),
    "full": np.full((3, 5), 7, np.uint8),
    "one pixel": np.ones((1, 1), np.uint8),
    "row": noise(1, 40, classes=3),
}


@pytest.mark.parametrize("labels", MAPS.values(), ids=MAPS.keys())
def test_outlines_are_valid_and_cover_their_region(labels):
    regions, polygons = outlines(labels)
    assert len(polygons) == regions.max() > 0
    np.testing.assert_array_equal(regions > 0, labels > 0)
    for number, polygon in enumerate(polygons, 1):
        region = regions == number
        assert len(np.unique(labels[region])) == 1
        assert ndimage.label(region)[1] == 1
        assert polygon.is_valid
        assert polygon.area == region.sum()
        # What is not the region, apart from what goes around it, lies in its holes.
        assert len(polygon.interiors) == ndimage.label(np.pad(~region, 1, constant_values=1))[1] - 1
        np.testing.assert_array_equal(rasterize([polygon], labels.shape), region)
        for ring in (polygon.exterior, *polygon.interiors):
            steps = np.diff(np.array(ring.coords), axis=0) != 0
            assert (steps.sum(axis=1) == 1).all()
            assert (steps != np.roll(steps, 1, axis=0)).all()  # it turns at every point


def test_regions_of_one_label_that_meet_in_a_point_are_two():
    labels = np.array([[3, 0], [0, 3]], np.uint8)
    _, polygons = outlines(labels)
    assert [polygon.bounds for polygon in polygons] == [(0, 0, 1, 1), (1, 1, 2, 2)]


def test_nothing_but_background():
    regions, polygons = outlines(np.zeros((4, 5), np.int16))
    assert not regions.any()
    assert len(polygons) == 0
