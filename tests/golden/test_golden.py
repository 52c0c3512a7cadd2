"""Refactoring changes no bit: every result against the one recorded in results.npz.

After a change that is meant to change results, `python tests/golden/recompute.py` records anew,
and the changelog says what changed.
"""

import os

import numpy as np
import pytest
import recompute

# PyTorch, SciPy and FFTs round differently between processors: their floats are compared to the
# bit only where OCTREENCA_GOLDEN is "exact", on the machine that recorded them.
EXACT = os.environ.get("OCTREENCA_GOLDEN") == "exact"
TOLERANCE = 2e-5
# What other libraries write in their own way, and another way in another release: GEOS simplifies
# outlines, tifffile rounds fractions, ome-zarr describes its axes.
LIBRARIES_OWN = (".geojson", " resolution", " attributes")


@pytest.fixture(scope="module")
def recorded():
    with np.load(recompute.RECORDED) as file:
        return {name: file[name] for name in file if recompute.ZARR or "zarr" not in name}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return recompute.recompute(tmp_path_factory.mktemp("golden"))


def differing(found: np.ndarray, expected: np.ndarray, exact: bool = EXACT) -> str | None:
    """How a result differs, or None."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return f"{found.dtype} {found.shape}, recorded {expected.dtype} {expected.shape}"
    if exact or not np.issubdtype(expected.dtype, np.floating):
        changed = int((found != expected).sum())
        return f"{changed} of {found.size} values" if changed else None
    scale = max(float(np.abs(expected).max(initial=0)), 1.0)
    largest = float(np.abs(found - expected).max(initial=0)) / scale
    return None if largest <= TOLERANCE else f"by {largest:.1e} of the largest value"


@pytest.mark.smoke
def test_the_same_numbers_with_any_library(recorded, results):
    """Labels, logits and gradients, and every file's pixels."""
    assert sorted(results) == sorted(recorded)
    names = [name for name in recorded if not name.endswith(LIBRARIES_OWN)]
    assert len(names) > 100
    changed = {name: differing(results[name], recorded[name]) for name in names}
    assert not {name: how for name, how in changed.items() if how}


def test_the_same_results(recorded, results):
    assert sorted(results) == sorted(recorded)
    changed = {name: differing(results[name], recorded[name]) for name in recorded}
    assert not {name: how for name, how in changed.items() if how}


def test_a_change_is_seen():
    """The comparison notices one label, one float and another type."""
    labels, values = np.zeros((2, 3), np.uint8), np.ones(4, np.float32)
    other = labels.copy()
    other[1, 1] = 1
    assert differing(labels, labels.copy()) is None
    assert differing(other, labels) == "1 of 6 values"
    assert differing(values + np.float32(1e-3), values)
    assert differing(values + np.float32(1e-6), values, exact=True)
    assert differing(values.astype(np.float64), values)
