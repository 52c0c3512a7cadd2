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


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "linear"])
def test_torchs_modes(mode):
    for cells_in, cells_out in [*SIZES, (2, 47), (2, 83), (6, 41)]:
        values = lines(cells_in)
        given = torch.from_numpy(values)[None, :, :, None, None]
        name = "trilinear" if mode == "linear" else mode
        expected = interpolate(given, (cells_out, 1, 1), mode=name)[0, :, :, 0, 0].numpy()
        own = AxisMatrix(cells_in, cells_out, f"torch_{mode.replace('-', '_')}")(values, 1)
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=2e-6)


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
