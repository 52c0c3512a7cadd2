from dataclasses import replace

import numpy as np
import pytest
from helpers.stock_case import INTENSITIES, StockCase
from nnunetv2.preprocessing.normalization import default_normalization_schemes as stock

from nnunet_octreenca.errors import InputError, PlansError
from nnunet_octreenca.images.source import ArraySource
from nnunet_octreenca.preprocessing.normalization import normalized_bounds, normalizers
from nnunet_octreenca.preprocessing.statistics import RequiredStatistics, collect_statistics

ZSCORE, CT, NONE, RESCALE, RGB = SCHEMES = [
    f"{name}Normalization" for name in ("ZScore", "CT", "No", "RescaleTo01", "RGBTo01")
]


def prepared(scheme, masked=False):
    return StockCase([4] * 3, [1.0] * 3, schemes=[scheme], masked=[masked]).preprocessing


def volume(rng, dtype=np.float32):
    array = rng.normal(70, 30, (1, 6, 9, 8)).clip(1, 254)
    array[:, rng.random(array.shape[1:]) < 0.5] = 0
    return array.astype(dtype)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_a_channel_is_normalised_as_by_nnunets_class(scheme, masked, dtype):
    array = volume(np.random.default_rng(1), dtype)
    found = collect_statistics(
        ArraySource(array), RequiredStatistics([True], [True], [masked]), band=2
    )
    (normalize,) = normalizers(prepared(scheme, masked), found)
    own = normalize(array[0].astype(np.float32), found.mask)
    inside = np.ones(array[0].shape, bool) if found.mask is None else found.mask
    expected = getattr(stock, scheme)(
        use_mask_for_norm=masked, intensityproperties=INTENSITIES
    ).run(array[0].astype(np.float32), np.where(inside, 0, -1))
    if scheme == ZSCORE:
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-5)
        assert masked == (own[~inside] == 0).any()
    else:
        np.testing.assert_array_equal(own, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("slices", [None, 0, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_bounds_are_the_extremes_of_what_was_normalized(scheme, slices, masked):
    rng = np.random.default_rng(2)
    array = volume(rng)
    array[:, 2] = 0  # a slice without a voxel of the mask
    masked = masked and scheme == ZSCORE
    found = collect_statistics(
        ArraySource(array), RequiredStatistics([True], [True], [masked], slices), band=2
    )
    (normalize,) = channels = normalizers(prepared(scheme, masked), found)
    bounds = normalized_bounds(found, channels)
    values = normalize(array[0], found.mask)
    across = tuple(axis for axis in range(3) if axis != slices)
    np.testing.assert_array_equal(bounds[0, 0], np.atleast_1d(values.min(across)))
    np.testing.assert_array_equal(bounds[1, 0], np.atleast_1d(values.max(across)))


@pytest.mark.parametrize("value", [-1, 256])
def test_colours_have_8_bits(value):
    array = np.full((1, 4, 5), 200, np.int16)
    array[0, 1, 1] = value
    found = collect_statistics(
        ArraySource(array), RequiredStatistics([False], [True], [False]), band=2
    )
    with pytest.raises(InputError, match=r"channel 0 holds values from (-1|200)\.0 to (200|256)"):
        normalizers(prepared(RGB), found)


def test_ct_needs_the_data_sets_intensities():
    preprocessing = replace(prepared(CT), intensities=({"mean": 3.0},))
    found = collect_statistics(
        ArraySource(np.ones((1, 4, 5))), RequiredStatistics([False], [True], [False]), band=2
    )
    with pytest.raises(PlansError, match="lack 'percentile_00_5' of channel 0"):
        normalizers(preprocessing, found)
