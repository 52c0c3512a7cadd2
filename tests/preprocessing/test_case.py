import re

import numpy as np
import pytest
from helpers.stock_case import SPLINE, TORCH, StockCase, amid_zeros, smooth

from nnunet_octreenca.errors import InputError, PlansError
from nnunet_octreenca.images.source import ArraySource
from nnunet_octreenca.preprocessing.case import PreprocessedCase

RGB = ["RGBTo01Normalization"] * 3


class Streamed:
    """An image that is not in memory; counts how often each row or plane was read."""

    def __init__(self, array, spacing=None):
        inner = ArraySource(array, spacing)
        self.shape, self.channels, self.dtype = inner.shape, inner.channels, inner.dtype
        self.spacing, self.info, self._inner = inner.spacing, inner.info, inner
        self.reads = np.zeros(self.shape[0], int)

    def read(self, first, end):
        assert 0 <= first < end <= self.shape[0]
        self.reads[first:end] += 1
        return self._inner.read(first, end)

    def close(self):
        pass


def volume(seed, shape=(13, 22, 19), dtype=np.int16, channels=1):
    """Amid zeros."""
    rng = np.random.default_rng(seed)
    inner = smooth(rng, (channels, *shape), 1.2) * 40 + 60
    inner = np.where(rng.random(shape) < 0.1, 0, inner)
    return np.pad(inner, [(0, 0), *((1 + axis, 3) for axis in range(len(shape)))]).astype(dtype)


def whole(image):
    return image.read(0, image.shape[0])


def expected_parts(stock, source):
    """What the network would be given by nnU-Net: one image, or a plane each."""
    data, _ = stock.preprocessed(source)
    patch = stock.configuration["patch_size"]
    parts = [data] if len(patch) == 3 else list(data.swapaxes(0, 1))
    return [amid_zeros(part, patch) for part in parts]


def check(stock, source, given=None, band=5):
    case = PreprocessedCase(given or source, stock.preprocessing, band=band)
    expected = expected_parts(stock, source)
    assert case.parts == len(expected)
    for part, image in zip(expected, case.images(), strict=True):
        assert image.shape == part.shape[1:]
        own = whole(image)
        assert own.dtype == np.float32
        assert own.flags.c_contiguous
        np.testing.assert_allclose(own, part, rtol=1e-5, atol=1e-5 * max(np.abs(part).max(), 1))
    return case


# Spacings of the image and of the plans, and what becomes of the axes.
SPACINGS = {
    "not resampled": ((2, 1, 1), (2, 1, 1)),
    "isotropic, finer": ((1, 1, 1), (0.7, 0.8, 0.6)),
    "isotropic, coarser": ((1, 1, 1), (1.6, 1.3, 1.9)),
    "planes apart": ((5, 1, 1), (4, 0.8, 1.3)),
    "planes apart in the plans": ((1, 1, 1), (3.5, 1, 0.9)),
    "planes apart, z as it is": ((5, 1, 1), (5, 0.8, 1.3)),
    "y apart": ((1, 4, 1), (1.3, 3, 1.2)),
    "x apart": ((1, 1, 4), (0.8, 1.2, 3)),
    "z apart before, x after": ((5, 1, 1), (1.2, 1, 4)),
}


@pytest.mark.parametrize("spacings", SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_volume_is_prepared_as_by_nnunet(spacings, masked):
    stock = StockCase([24, 16, 20], spacings[1], masked=[masked])
    case = check(stock, ArraySource(volume(1), spacings[0]))
    assert (case.layout.resampled == case.layout.cropped) == (spacings[0] == spacings[1])


@pytest.mark.parametrize("forward", [(0, 2, 1), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("scheme", ["CT", "RescaleTo01", "No"])
def test_transposed_axes(forward, scheme):
    stock = StockCase(
        [8, 30, 16], (2, 1.2, 0.7), schemes=[f"{scheme}Normalization"], forward=forward
    )
    check(stock, ArraySource(volume(2), (1, 1.5, 1)))


@pytest.mark.parametrize(
    "data",
    [
        (SPLINE, {"order": 1, "order_z": 1, "force_separate_z": True}),
        (SPLINE, {"order": 3, "order_z": 3, "force_separate_z": True}),
        (SPLINE, {"order": 0, "force_separate_z": False}),
        (TORCH, {"force_separate_z": None}),
        (TORCH, {"force_separate_z": False}),
        ("no_resampling_hack", {}),
    ],
)
def test_other_resampling(data):
    stock = StockCase([8, 16, 16], (1, 0.7, 1.4), data=data)
    check(stock, ArraySource(volume(3), (1.5, 1, 1)))


@pytest.mark.parametrize("spacing", [(1, 1), (0.6, 0.7), (1.7, 1.2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_2d_image(spacing, dtype):
    array = volume(4, (150, 47), dtype, channels=3).clip(0, 255)
    check(StockCase([64, 64], spacing, schemes=RGB), ArraySource(array), band=40)
    stock = StockCase([64, 64], spacing, schemes=["ZScoreNormalization"] * 3, masked=[True] * 3)
    check(stock, ArraySource(array), band=40)


@pytest.mark.parametrize("spacing", [(5, 1, 1), (1, 1, 1), (1, 4, 1)])
def test_a_2d_model_sees_a_volumes_planes(spacing):
    """Normalized by the whole volume, clipped plane by plane where nnU-Net resizes them so."""
    stock = StockCase(
        [24, 40], (0.8, 1.3), schemes=["ZScoreNormalization"] * 2, masked=[True, False]
    )
    source = ArraySource(volume(5, (4, 30, 18), channels=2), spacing)
    case = check(stock, source)
    assert case.parts == 4


@pytest.mark.parametrize("cells", [(1, 2, 1), (2, 1, 2), (1, 1, 5), (3, 3, 1)])
def test_axes_of_a_cell_or_two(cells):
    array = np.random.default_rng(6).random((1, *cells)).astype(np.float32) + 0.1
    for spacings in SPACINGS.values():
        stock = StockCase([4, 4, 4], [mm / 4 for mm in spacings[1]])
        check(stock, ArraySource(array, spacings[0]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # stock's mean of no voxels
@pytest.mark.parametrize("scheme", ["ZScore", "CT", "RescaleTo01", "RGBTo01"])
@pytest.mark.parametrize("masked", [False, True])
def test_an_image_of_zeros(scheme, masked):
    stock = StockCase(
        [8, 8, 8], (0.8, 0.9, 0.9), schemes=[f"{scheme}Normalization"], masked=[masked]
    )
    check(stock, ArraySource(np.zeros((1, 6, 7, 8), np.int16)))


@pytest.mark.parametrize("spacings", SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize("dimension", [2, 3])
def test_every_banding_gives_the_same_bits(spacings, dimension):
    lead = 3 - dimension
    array = volume(7, [29, 75, 40][lead:], np.float32)
    patch, target = [40, 60, 45][lead:], spacings[1][lead:]
    case = PreprocessedCase(
        ArraySource(array, spacings[0][lead:]), StockCase(patch, target).preprocessing, band=6
    )
    expected = whole(case.image())
    rows = expected.shape[1]
    rng = np.random.default_rng(8)
    image = case.image()
    for height in (1, 7, 64):
        for first in range(0, rows, height):
            band = image.read(first, min(first + height, rows))
            assert np.array_equal(band, expected[:, first : first + height])
    for _ in range(10):
        first, end = sorted(rng.choice(rows + 1, 2, replace=False))
        assert np.array_equal(image.read(first, end), expected[:, first:end])


@pytest.mark.parametrize("spacings", SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize("dimension", [2, 3])
def test_ascending_bands_read_each_row_once(spacings, dimension):
    lead = 3 - dimension
    source = Streamed(volume(9, [40, 150, 30][lead:]), spacings[0][lead:])
    target = spacings[1][lead:]
    case = PreprocessedCase(source, StockCase([8] * dimension, target).preprocessing, band=8)
    assert set(source.reads) == {1}
    image = case.image()
    source.reads[:] = 0
    at = 0
    while at < image.shape[0]:
        end = min(at + 11, image.shape[0])
        image.read(max(at - 3, 0), end)  # a halo of three
        at = end
    first, end = case.layout.box[lead]
    resampled = case.layout.resampled != case.layout.cropped
    assert source.reads[first:end].max() == (1 if resampled else 2)
    assert source.reads.sum() >= end - first
    assert not source.reads[:first].any()
    assert not source.reads[end:].any()


def test_descending_bands_read_little_twice():
    """A pass over the copy mirrored along the first axis."""
    source = Streamed(volume(9, (400, 30)), (1, 1))
    image = PreprocessedCase(source, StockCase([8, 8], (1.2, 0.8)).preprocessing, band=8).image()
    source.reads[:] = 0
    for end in range(image.shape[0], 0, -100):
        image.read(max(end - 100, 0), end)
    assert source.reads.sum() < 1.7 * 400


def test_of_a_natural_image_only_the_ends_are_read():
    source = Streamed(np.full((3, 200, 30), 7, np.uint8))
    PreprocessedCase(source, StockCase([64, 64], [1, 1], schemes=RGB).preprocessing, band=10)
    assert source.reads.sum() == 20


def test_a_streamed_volume_can_exchange_y_and_x_only():
    array, spacing = volume(10), (2, 1, 1.5)
    stock = StockCase([8, 30, 16], (2, 1.2, 0.7), forward=(0, 2, 1))
    check(stock, ArraySource(array, spacing), Streamed(array, spacing))
    stock = StockCase([8, 30, 16], (2, 1.2, 0.7), forward=(1, 0, 2))
    with pytest.raises(InputError, match=r"axes are the image's \[1, 0, 2\].*load it into memory"):
        PreprocessedCase(Streamed(array, spacing), stock.preprocessing, band=3)


def test_images_that_a_model_cannot_take():
    stock = StockCase([8, 8, 8], (1, 1, 1))
    with pytest.raises(
        InputError, match=re.escape("2 channel(s), but the model was trained with 1")
    ):
        PreprocessedCase(ArraySource(np.ones((2, 4, 5, 6))), stock.preprocessing, band=3)
    with pytest.raises(InputError, match=re.escape("(4, 5) cells is 2-D, but the model is 3-D")):
        PreprocessedCase(ArraySource(np.ones((1, 4, 5))), stock.preprocessing, band=3)
    with pytest.raises(InputError, match="no cells left"):
        PreprocessedCase(
            ArraySource(np.ones((1, 4, 5, 6)), (1, 1, 0.01)), stock.preprocessing, band=3
        )


def test_resampling_that_cannot_be_undone_in_bands():
    array = ArraySource(np.ones((1, 4, 5, 6)))
    cubic = StockCase([8] * 3, (1, 1, 1), logits=(SPLINE, {"order": 3}))
    with pytest.raises(PlansError, match="logits with order 3"):
        PreprocessedCase(array, cubic.preprocessing, band=3)
    one_way = StockCase([8] * 3, (1, 1, 1), logits=("no_resampling_hack", {}))
    with pytest.raises(PlansError, match="but not the logits back"):
        PreprocessedCase(array, one_way.preprocessing, band=3)
