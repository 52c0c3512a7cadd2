import numpy as np
import pytest
import torch
from skimage.transform import resize
from torch.nn.functional import interpolate

from nnunet_octreenca.preprocessing.axis_matrix import AxisMatrix

TINY = [(a, b) for a in (1, 2, 3, 5) for b in (1, 2, 3, 4, 7)]
SIZES = [*TINY, (47, 48), (48, 47), (49, 20), (64, 200), (131, 77), (257, 31), (512, 333)]


def lines(cells):
    return np.random.default_rng(cells).normal(size=(3, cells)).astype(np.float32)


@pytest.mark.parametrize(("order", "kernel"), [(0, "nearest"), (1, "linear"), (3, "cubic")])
def test_splines_are_those_of_skimage(order, kernel):
    for cells_in, cells_out in SIZES:
        values = lines(cells_in)
        expected = resize(
            values.astype(float),
            (3, cells_out),
            order,
            mode="edge",
            anti_aliasing=False,
            clip=False,
        )
        matrix = AxisMatrix(cells_in, cells_out, kernel)
        tolerance = {"rtol": 1e-6, "atol": 2e-6}
        np.testing.assert_allclose(matrix(values, 1), expected, **tolerance)
        columns = np.ascontiguousarray(values.T)[None]
        np.testing.assert_allclose(matrix(columns, 1)[0], expected.T, **tolerance)


TORCH_SIZES = [*SIZES, (2, 47), (2, 83), (6, 41)]


def torchs(values, cells_out, mode):
    given = torch.from_numpy(values)[None, :, :, None, None]
    return interpolate(given, (cells_out, 1, 1), mode=mode)[0, :, :, 0, 0].numpy()


@pytest.mark.parametrize(("mode", "shift"), [("nearest", 0), ("nearest-exact", 0.5)])
def test_torchs_nearest_modes(mode, shift):
    """torch's cell, or on the border between two, as closely as float32 tells, one of both.

    There torch's kernels disagree among themselves, as they do below.
    """
    for cells_in, cells_out in TORCH_SIZES:
        values = lines(cells_in)
        own = AxisMatrix(cells_in, cells_out, f"torch_{mode.replace('-', '_')}")(values, 1)
        at = (np.arange(cells_out) + shift) * (cells_in / cells_out)
        rounding = cells_in * np.finfo(np.float32).eps
        low, high = (
            np.clip(np.floor(at + side).astype(int), 0, cells_in - 1)
            for side in (-rounding, rounding)
        )
        border = low != high
        expected = torchs(values, cells_out, mode)
        np.testing.assert_array_equal(own[:, ~border], expected[:, ~border])
        assert ((own == values[:, low]) | (own == values[:, high])).all()


def test_torchs_linear_mode():
    """Ours against float64 interpolation at float32 coordinates, torch's at either rounding.

    torch computes coordinates in float32. Its AVX2 and AVX-512 kernels fuse product and
    difference, its default kernels round the product first (ATEN_CPU_CAPABILITY=default shows
    it). A product of at most `cells_in` moves by half a unit in the last place, eps / 2 of it, and
    the value by the slope times that.
    """
    eps = np.finfo(np.float32).eps
    for cells_in, cells_out in TORCH_SIZES:
        values = lines(cells_in)
        centres = np.arange(cells_out, dtype=np.float32) + np.float32(0.5)
        at = np.float32(cells_in) / np.float32(cells_out) * centres - np.float32(0.5)
        expected = [np.interp(at, np.arange(cells_in), line) for line in values.astype(float)]
        own = AxisMatrix(cells_in, cells_out, "torch_linear")(values, 1)
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=2e-6)
        slope = np.abs(np.diff(values)).max(initial=0)
        tolerance = 2e-6 + cells_in * eps / 2 * slope
        np.testing.assert_allclose(
            own, torchs(values, cells_out, "trilinear"), rtol=1e-6, atol=tolerance
        )


@pytest.mark.parametrize("kernel", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("sizes", [(100, 61), (61, 100), (40, 40)])
def test_a_part_needs_only_its_window(kernel, sizes):
    matrix = AxisMatrix(*sizes, kernel, tile=8)
    values = lines(sizes[0]).T[None].copy()
    whole = matrix(values, 1)
    assert whole.shape == (1, sizes[1], 3)
    for first in range(0, sizes[1], 16):
        end = min(first + 16, sizes[1])
        begin, stop = matrix.window(first, end)
        assert stop - begin <= 16 * sizes[0] / sizes[1] + {"cubic": 40}.get(kernel, 3)
        part = matrix(values[:, begin:stop].copy(), 1, first, end, offset=begin)
        np.testing.assert_array_equal(part, whole[:, first:end])
