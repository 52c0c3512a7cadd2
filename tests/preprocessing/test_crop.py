import numpy as np
import pytest
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask, crop_to_nonzero

from nnunet_octreenca.images.source import ArraySource
from nnunet_octreenca.preprocessing.crop import box_from_the_borders, filled_holes, nonzero_box


class Recorded(ArraySource):
    """Remembers which rows were read."""

    def __init__(self, array):
        super().__init__(array)
        self.rows = []

    def read(self, first, end):
        self.rows += range(first, end)
        return super().read(first, end)


def bordered(rng, shape, dtype, part=0.1):
    """Zeros with some others amid them."""
    array = np.zeros(shape, dtype)
    inner = tuple(slice(n // 5, n - n // 4) for n in shape[1:])
    array[(slice(None), *inner)] = rng.random(array[(slice(None), *inner)].shape) < part
    return array


def stock_box(array):
    data = array if array.ndim == 4 else array[:, None]
    return tuple((first, end) for first, end in crop_to_nonzero(data)[2])


@pytest.mark.parametrize("shape", [(1, 9, 12, 11), (2, 1, 7, 8), (1, 6, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, bool])
def test_the_box_of_an_array_is_nnunets(shape, dtype):
    rng = np.random.default_rng(1)
    for part in (0.02, 0.3, 1):
        array = bordered(rng, shape, dtype, part)
        found = nonzero_box(array)
        if array.any():
            assert found == stock_box(array)
        else:
            assert found is None


@pytest.mark.parametrize("band", [1, 3, 50])
@pytest.mark.parametrize("shape", [(3, 23, 17), (1, 14, 9, 8)])
def test_the_box_read_from_the_borders_is_nnunets(shape, band):
    rng = np.random.default_rng(2)
    for part in (0, 0.01, 0.05, 0.5):
        array = bordered(rng, shape, np.uint8, part)
        assert box_from_the_borders(ArraySource(array), band) == stock_box(array), part
    array[:] = 1
    array[:, :3] = 0
    assert box_from_the_borders(ArraySource(array), band) == stock_box(array)
    array[:, 8:] = 0
    assert box_from_the_borders(ArraySource(array), band) == stock_box(array)


def test_only_the_ends_of_a_natural_image_are_read():
    array = np.ones((3, 100, 30), np.uint8)
    array[:, :12] = array[:, 95:] = 0
    source = Recorded(array)
    assert box_from_the_borders(source, 5) == ((0, 1), (12, 95), (0, 30))
    assert source.rows == [*range(15), *range(95, 100), *range(90, 95)]


@pytest.mark.parametrize("planes", [1, 2, 3, 9])
def test_holes_are_filled_as_nnunet_does(planes):
    """In three dimensions: a ring in a single plane encloses nothing."""
    mask = np.zeros((planes, 12, 12), bool)
    mask[:, 2:10, 2:10] = True
    mask[1:-1, 4:8, 4:8] = False
    if planes == 1:
        mask[:, 4:8, 4:8] = False
    filled = filled_holes(mask)
    np.testing.assert_array_equal(filled, create_nonzero_mask(mask[None]))
    assert (filled.sum() > mask.sum()) == (planes > 2)
