"""Foreground locations: nnU-Net's very samples, in a fraction of its memory."""

import tracemalloc

import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from nnunet_octreenca.integration import foreground_sampling
from nnunet_octreenca.integration.foreground_sampling import sample_foreground_locations

stock = DefaultPreprocessor._sample_foreground_locations


@pytest.mark.parametrize("shape", [(1, 1, 151, 117), (1, 13, 20, 37), (1, 300, 5, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize(
    "classes",
    [[1, 2], [1, 2, 3, 9], [(1, 2), (2,), (3, 1)], [1, 2, [-1, 0, 1, 2]], [(2, 1)], [7]],
    ids=str,
)
@pytest.mark.parametrize(
    "options", [{}, {"min_num_samples": 50, "min_percent_coverage": 0.3, "seed": 7}], ids=str
)
def test_the_same_locations_in_the_same_order(monkeypatch, shape, classes, options):
    monkeypatch.setattr(foreground_sampling, "_BAND", 97)  # many bands
    seg = np.random.default_rng(0).integers(-1, 4, shape).astype(np.float32)
    expected = stock(seg, classes, **options)
    found = sample_foreground_locations(seg, classes, **options)
    assert list(found) == list(expected)
    for key, locations in expected.items():
        assert type(found[key]) is type(locations)
        np.testing.assert_array_equal(found[key], locations)
        assert getattr(found[key], "dtype", None) == getattr(locations, "dtype", None)


def test_of_a_view(monkeypatch):
    """A cropped segmentation is no contiguous array."""
    monkeypatch.setattr(foreground_sampling, "_BAND", 50)
    seg = np.random.default_rng(0).integers(0, 3, (1, 4, 60, 50), dtype=np.int16)[:, 1:, 3:50, 7:]
    for label, locations in stock(seg, [1, 2]).items():
        np.testing.assert_array_equal(sample_foreground_locations(seg, [1, 2])[label], locations)


def peak_bytes_per_pixel(sample, seg):
    tracemalloc.start()
    sample(seg, [1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / seg.size


def test_memory_per_pixel(monkeypatch):
    """All foreground: nnU-Net takes 75 bytes a pixel and more, ours 4 and one percent's places."""
    monkeypatch.setattr(foreground_sampling, "_BAND", 1 << 14)
    seg = np.ones((1, 1, 1500, 1000), dtype=np.int8)
    assert peak_bytes_per_pixel(sample_foreground_locations, seg) < 6
    assert peak_bytes_per_pixel(stock, seg) > 70
