import re

import numpy as np
import pytest
from helpers.stock_case import SPLINE, TORCH, StockCase, amid_zeros, smooth

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.images.source import ArraySource
from nnunet_octreenca.preprocessing.case import PreprocessedCase
from nnunet_octreenca.preprocessing.restore import labels_of_logits

REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3}
LINEAR = {"order": 1, "order_z": 0, "force_separate_z": None}


def image(shape, channels=1):
    """Of ones amid zeros."""
    return np.pad(
        np.ones((channels, *shape), np.float32),
        [(0, 0), *((2 + axis, 1) for axis in range(len(shape)))],
    )


def feed(take, bands, height, axis):
    """So many rows at a time."""
    for first in range(0, bands.shape[axis], height):
        take(bands[(slice(None),) * axis + (slice(first, first + height),)])


def restored(case, stock, logits, height):
    """Labels by way of bands of logits, with others in the padding."""
    restorer = case.restorer()
    parts = [logits] if len(stock.configuration["patch_size"]) == 3 else logits.swapaxes(0, 1)
    for part, own in enumerate(parts):
        context = stock.configuration["patch_size"]
        padded = amid_zeros(own, context)
        padded[:, amid_zeros(np.ones_like(own[:1]), context)[0] == 0] = 9
        feed(restorer.part(part).add_logits, padded, height, axis=1)
    return restorer.finish()


def check(stock, source, height=5, seed=1):
    """Labels of the case beside nnU-Net's."""
    case = PreprocessedCase(source, stock.preprocessing, band=5)
    data, properties = stock.preprocessed(source)
    logits = smooth(
        np.random.default_rng(seed), (stock.preprocessing.num_classes, *data.shape[1:]), 1.5
    )
    expected = stock.segmentation(logits, properties)
    if len(source.shape) == 2:
        expected = expected[0]
    own = restored(case, stock, logits, height)
    assert own.shape == expected.shape == source.shape
    assert len(np.unique(own)) == stock.preprocessing.largest_label + 1
    return own, expected, case


RESAMPLED = {
    "finer": ((1, 1, 1), (0.7, 0.8, 0.6)),
    "coarser": ((1, 1, 1), (1.6, 1.3, 1.9)),
    "planes apart": ((5, 1, 1), (4, 0.8, 1.3)),
    "planes apart, more of them": ((4, 1, 1), (6, 1.2, 0.9)),
    "y apart": ((1, 4, 1), (1.3, 3, 1.2)),
    "z apart before, x after": ((5, 1, 1), (1.2, 1, 4)),
}


@pytest.mark.parametrize("spacings", RESAMPLED.values(), ids=RESAMPLED)
@pytest.mark.parametrize("function", [SPLINE, TORCH])
@pytest.mark.parametrize("regions", [False, True])
def test_resampled_logits_give_nnunets_labels(spacings, function, regions):
    arguments = LINEAR if function == SPLINE else {"force_separate_z": None}
    stock = StockCase(
        [24, 16, 40],
        spacings[1],
        logits=(function, arguments),
        **({"labels": REGIONS, "regions": [1, 2, 3]} if regions else {}),
    )
    own, expected, case = check(stock, ArraySource(image((17, 31, 26)), spacings[0]))
    assert case.restorer().needs_logits
    assert (own == expected).mean() > 0.9999


@pytest.mark.parametrize("forward", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1)])
@pytest.mark.parametrize("resampled", [False, True])
def test_labels_return_to_the_files_axes(forward, resampled):
    spacing = (2, 1, 1.5)
    target = [spacing[axis] * (1.3 if resampled else 1) for axis in forward]
    stock = StockCase([20, 16, 24], target, forward=forward)
    own, expected, _ = check(stock, ArraySource(image((13, 22, 18)), spacing))
    assert (own == expected).mean() > (0.9999 if resampled else 0.999999)


@pytest.mark.parametrize("target", [(1, 1), (0.7, 1.4)])
@pytest.mark.parametrize("shape", [(140, 37), (5, 30, 26)])
def test_a_2d_models_labels(target, shape):
    spacing = (5, 1, 1)[3 - len(shape) :]
    own, expected, case = check(StockCase([64, 20], target), ArraySource(image(shape), spacing), 9)
    assert case.parts == (1 if len(shape) == 2 else 5)
    assert (own == expected).mean() > (0.9999 if target[0] != 1 else 0.999999)


@pytest.mark.parametrize("spacings", RESAMPLED.values(), ids=RESAMPLED)
@pytest.mark.parametrize("dimension", [2, 3])
def test_every_banding_gives_the_same_labels(spacings, dimension):
    lead = 3 - dimension
    stock = StockCase([24, 100, 40][lead:], spacings[1][lead:])
    case = PreprocessedCase(
        ArraySource(image([17, 150, 26][lead:]), spacings[0][lead:]), stock.preprocessing, band=8
    )
    shape = (1,) * lead + case.layout.resampled[lead:]
    logits = np.random.default_rng(2).normal(size=(3, *shape)).astype(np.float32)
    expected = restored(case, stock, logits, 1000)
    for height in (1, 3, 64):
        assert np.array_equal(restored(case, stock, logits, height), expected)


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("regions", [False, True])
def test_labels_are_taken_where_nothing_is_resampled(dimension, regions):
    lead = 3 - dimension
    extra = {"labels": REGIONS, "regions": [1, 2, 3]} if regions else {}
    stock = StockCase([24, 40, 20][lead:], (2, 1, 1)[lead:], **extra)
    source = ArraySource(image([9, 50, 26][lead:]), (2, 1, 1)[lead:])
    by_logits, expected, case = check(stock, source)
    assert np.array_equal(by_logits, expected)
    assert by_logits.dtype == np.uint8
    inside = tuple(slice(*axis) for axis in case.layout.box[lead:])
    restorer = case.restorer()
    assert not restorer.needs_logits
    labels = amid_zeros(by_logits[inside][None], stock.configuration["patch_size"])[0]
    feed(restorer.part().add_labels, labels, 7, axis=0)
    assert np.array_equal(restorer.finish(), expected)


def test_of_equal_logits_the_first_class_wins():
    logits = np.random.default_rng(3).integers(0, 3, (5, 40, 50)).astype(np.float32)
    np.testing.assert_array_equal(
        labels_of_logits(logits, None, np.dtype(np.uint8)), logits.argmax(0)
    )


def test_more_than_255_labels_take_two_bytes():
    labels = {"background": 0, **{f"label {k}": k for k in range(1, 301)}}
    stock = StockCase([4, 4], [1, 1], labels=labels)
    source = ArraySource(image((6, 5)))
    case = PreprocessedCase(source, stock.preprocessing, band=4)
    logits = np.random.default_rng(4).normal(size=(301, 1, 6, 5)).astype(np.float32)
    own = restored(case, stock, logits, 4)
    assert own.dtype == np.int16
    expected = stock.segmentation(logits, stock.preprocessed(source)[1])[0]
    np.testing.assert_array_equal(own, expected)
    assert own.max() > 255
    stock = StockCase([4, 4], [1, 1], labels={"background": 0, "a": [1, 2]}, regions=[40000])
    with pytest.raises(PlansError, match="label 40000 is above 32767"):
        PreprocessedCase(source, stock.preprocessing, band=4).restorer()


def test_bands_that_do_not_fit():
    case = PreprocessedCase(
        ArraySource(image((9, 7))), StockCase([4, 4], [1, 1]).preprocessing, band=4
    )
    restorer = case.restorer()
    part = restorer.part()
    part.add_logits(np.zeros((3, 4, 7), np.float32))
    for shape in [(3, 4, 8), (2, 4, 7), (3, 6, 7), (3, 7), (7,)]:
        with pytest.raises(ValueError, match=re.escape(f"shape {shape} after 4 rows is not one")):
            part.add_logits(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="part 0 of 1 has bands missing"):
        restorer.finish()
    part.add_logits(np.zeros((3, 5, 7), np.float32))
    assert not restorer.finish().any()
    resampled = PreprocessedCase(
        ArraySource(image((9, 7))), StockCase([4, 4], [2, 2]).preprocessing, band=4
    )
    with pytest.raises(ValueError, match="give logits"):
        resampled.restorer().part().add_labels(np.zeros((4, 4), np.uint8))
