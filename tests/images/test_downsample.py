import numpy as np
import pytest
from helpers.bands import check_bands

from nnunet_octreenca.images import downsample
from nnunet_octreenca.images.downsample import Downsampled
from nnunet_octreenca.images.source import ArraySource


def area_matrix(fine, coarse, factor):
    """(coarse, fine) by integrating a step function; in double precision."""
    edges = np.minimum(np.arange(coarse + 1) * factor, fine)
    integral = np.clip(edges[:, None] - np.arange(fine), 0, 1)
    matrix = np.diff(integral, axis=0)
    return matrix / matrix.sum(1, keepdims=True)


def exact(image, factor):
    rows, columns = (max(1, round(n / f)) for n, f in zip(image.shape[1:], factor, strict=True))
    by_row = area_matrix(image.shape[1], rows, factor[0])
    by_column = area_matrix(image.shape[2], columns, factor[1])
    return np.einsum("ij,cjl,kl->cik", by_row, image.astype(float), by_column)


def resampled(image, factor):
    return Downsampled(ArraySource(image), factor, 0.48, image.shape[1:])


@pytest.mark.parametrize(
    "factor", [(1.92, 1.92), (2.0, 2.0), (1.06, 3.7), (5.3, 1.5), (90.0, 90.0)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_area_average_and_every_band_height_the_same_bits(monkeypatch, factor, dtype):
    image = np.random.default_rng(0).integers(0, 256, (3, 87, 59)).astype(dtype)
    monkeypatch.setattr(downsample, "_CHUNK_BYTES", 9000)
    source = resampled(image, factor)
    whole = source.read(0, source.shape[0])
    tolerance = 1e-3 if dtype == np.float32 else 0.5 + 1e-3
    assert np.abs(whole - exact(image, factor)).max() < tolerance
    check_bands(source, whole)
    monkeypatch.undo()
    np.testing.assert_array_equal(source.read(0, source.shape[0]), whole)


def test_a_factor_of_two_is_the_mean_of_four():
    image = np.random.default_rng(1).integers(0, 256, (1, 8, 12)).astype(np.float32)
    source = resampled(image, (2.0, 2.0))
    means = image.reshape(1, 4, 2, 6, 2).mean((2, 4))
    np.testing.assert_allclose(source.read(0, 4), means, rtol=1e-6)


@pytest.mark.parametrize("value", [0, 255])
def test_a_constant_stays(value):
    image = np.full((1, 50, 50), value, np.uint8)
    assert (resampled(image, (1.7, 2.3)).read(0, 29) == value).all()


def test_what_it_says_of_itself():
    source = resampled(np.zeros((2, 100, 50), np.uint8), (2.0, 2.5))
    assert source.shape == (50, 20)
    assert source.spacing == pytest.approx((0.00048, 0.00048))
    assert source.info.mpp == 0.48
    assert source.info.base_shape == (100, 50)
