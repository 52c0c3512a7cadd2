import re

import numpy as np
import pytest
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.source import ArraySource
from nnunet_octreenca.preprocessing.statistics import RequiredStatistics, collect_statistics


def needs(channels, slices=None, masked=False):
    yes = [True] * channels
    return RequiredStatistics(yes, yes, [masked] * channels, slices)


def image(rng, shape, dtype):
    """Values around 60 amid zeros, with holes, the last planes apart from the others."""
    array = rng.normal(60, 20, shape).clip(1, 250)
    array[:, rng.random(shape[1:]) < 0.3] = 0
    array[0][rng.random(shape[1:]) < 0.2] = 0
    array[:, -3] = 0
    for axis, (before, after) in enumerate([(2, 1), (1, 3), (2, 2)][4 - len(shape) :], 1):
        array = np.moveaxis(array, axis, 0)
        array[:before] = array[array.shape[0] - after :] = 0
        array = np.moveaxis(array, 0, axis)
    return np.ascontiguousarray(array).astype(dtype)


@pytest.mark.parametrize("slices", [None, 0, 1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_statistics_are_those_of_nnunets_crop(slices, masked, dtype):
    rng = np.random.default_rng(3)
    array = image(rng, (2, 14, 11, 13), dtype)
    cropped, inside, box = crop_to_nonzero(array)
    for band in (1, 4, 20):
        found = collect_statistics(ArraySource(array), needs(2, slices, masked), band=band)
        assert found.box == tuple((first, end) for first, end in box)
        if masked:
            np.testing.assert_array_equal(found.mask, inside[0] >= 0)
        for channel, values in enumerate(cropped.astype(np.float32).astype(np.float64)):
            statistics = found.channels[channel]
            chosen = values[inside[0] >= 0] if masked else values.ravel()
            assert statistics.count == chosen.size
            assert statistics.mean == pytest.approx(chosen.mean(), rel=1e-12)
            assert statistics.std == pytest.approx(chosen.std(), rel=1e-12)
            planes = [values] if slices is None else np.moveaxis(values, slices, 0)
            within = np.broadcast_to(inside[0] >= 0, values.shape)
            within = [within] if slices is None else np.moveaxis(within, slices, 0)
            for k, (plane, its_mask) in enumerate(zip(planes, within, strict=True)):
                part = plane[its_mask] if masked else plane.ravel()
                assert statistics.lowest[k] == part.min(initial=np.inf)
                assert statistics.highest[k] == part.max(initial=-np.inf)
                assert statistics.outside[k] == (masked and not its_mask.all())


def test_a_2d_image_of_interleaved_colours():
    array = np.random.default_rng(4).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    array[:, :4] = 0
    found = collect_statistics(ArraySource(array.transpose(2, 0, 1)), needs(3), band=7)
    assert found.box == ((0, 1), (0, 30), (4, 40))
    for channel, statistics in enumerate(found.channels):
        values = array[:, 4:, channel].astype(np.float64)
        assert statistics.mean == pytest.approx(values.mean(), rel=1e-12)
        assert statistics.std == pytest.approx(values.std(), rel=1e-12)
        assert (statistics.lowest[0], statistics.highest[0]) == (values.min(), values.max())


def test_a_large_mean_does_not_swallow_a_small_deviation():
    """Plain sums of squares in float64 would be left with no digit of it."""
    array = 1e6 + np.random.default_rng(5).integers(0, 2, (1, 40, 50, 60)) / 16
    found = collect_statistics(ArraySource(array.astype(np.float32)), needs(1), band=3).channels[0]
    assert found.std == pytest.approx(array.std(), rel=1e-9)
    assert found.mean == pytest.approx(array.mean(), rel=1e-14)


@pytest.mark.parametrize("masked", [False, True])
def test_an_image_of_zeros_is_kept_whole(masked):
    found = collect_statistics(
        ArraySource(np.zeros((1, 4, 5, 6), np.float32)), needs(1, 0, masked), band=3
    )
    assert found.box == ((0, 4), (0, 5), (0, 6))
    assert found.channels[0].count == (0 if masked else 120)
    assert (found.channels[0].mean, found.channels[0].std) == (0, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_values_that_are_not_finite_are_counted(dtype):
    array = np.ones((2, 20, 6, 7), dtype)
    array[1, 9, 2, 3] = np.nan
    array[0, 9, 2, 3] = np.inf
    array[0, 17, :2, 5] = -np.inf
    sentence = (
        "the image has 4 voxels that are NaN or infinite, the first in rows or planes 8 to 11"
    )
    with pytest.raises(InputError, match=re.escape(sentence)):
        collect_statistics(
            ArraySource(array), RequiredStatistics([False] * 2, [False] * 2, [False] * 2), band=4
        )


def test_what_float32_cannot_hold_is_infinite():
    array = np.ones((1, 5, 6))
    array[0, 2, 2] = 1e300
    with pytest.raises(InputError, match="has 1 voxels"):
        collect_statistics(ArraySource(array), needs(1), band=5)


def test_an_image_without_cells():
    with pytest.raises(InputError, match=r"is empty: 1 channels of \(0, 5\) cells"):
        collect_statistics(ArraySource(np.ones((1, 0, 5))), needs(1), band=5)
