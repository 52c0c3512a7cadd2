from itertools import product

import numpy as np
import pytest
import torch

from nnunet_octreenca.octree import image_pyramid, pool


def naive_pool(image, factor):
    """The mean of the cells that exist under each node, node by node."""
    spatial = image.shape[2:]
    coarse = [-(-n // f) for n, f in zip(spatial, factor, strict=True)]
    out = np.empty((*image.shape[:2], *coarse), image.dtype)
    for node in product(*map(range, coarse)):
        # Slices end at the border by themselves.
        cells = tuple(slice(i * f, (i + 1) * f) for i, f in zip(node, factor, strict=True))
        box = image[(slice(None), slice(None), *cells)]
        out[(slice(None), slice(None), *node)] = box.reshape(*image.shape[:2], -1).mean(-1)
    return out


CASES = [
    ((4, 6), (2, 2)),
    ((5, 7), (2, 2)),
    ((5, 6), (1, 2)),
    ((1, 3), (2, 2)),
    ((1, 1), (2, 2)),
    ((4, 4, 4), (2, 2, 2)),
    ((3, 5, 7), (2, 2, 2)),
    ((3, 5, 4), (1, 2, 1)),
    ((1, 1, 5), (2, 1, 2)),
]


@pytest.mark.parametrize(("spatial", "factor"), CASES)
def test_pool_averages_the_cells_that_exist(spatial, factor):
    image = np.random.default_rng(0).normal(size=(2, 3, *spatial))
    result = pool(torch.from_numpy(image), factor).numpy()
    np.testing.assert_allclose(result, naive_pool(image, factor), rtol=0, atol=1e-14)


def test_a_border_node_is_not_diluted_by_padding():
    image = torch.tensor([[[[1.0, 3.0, 10.0]]]])
    assert pool(image, (2, 2)).tolist() == [[[[2.0, 10.0]]]]


def test_factor_1_on_every_axis_changes_nothing():
    image = torch.randn(1, 2, 3, 5)
    assert torch.equal(pool(image, (1, 1)), image)


@pytest.mark.parametrize("spatial", [(9, 13), (5, 6, 7)])
def test_the_pyramid_is_the_average_of_averages(spatial):
    image = np.random.default_rng(1).normal(size=(2, 1, *spatial))
    factors = [(2,) * len(spatial), (1, *(2,) * (len(spatial) - 1)), (2,) * len(spatial)]
    levels = image_pyramid(torch.from_numpy(image), factors)
    assert torch.equal(levels[0], torch.from_numpy(image))
    expected = image
    for level, factor in zip(levels[1:], factors, strict=True):
        expected = naive_pool(expected, factor)
        np.testing.assert_allclose(level.numpy(), expected, rtol=0, atol=1e-14)


def test_averages_of_averages_differ_from_averages_where_an_axis_is_odd():
    """DESIGN: a level averages the next finer level's nodes, not the image's cells."""
    image = torch.tensor([[[[0.0, 0.0, 0.0, 0.0, 6.0]]]], dtype=torch.float64)
    levels = image_pyramid(image, [(1, 2), (1, 2), (1, 2)])
    assert [level.flatten().tolist() for level in levels[1:]] == [[0, 0, 6], [0, 6], [3]]


def test_autocast_does_not_reach_the_pyramid():
    image = torch.randn(1, 1, 8, 8)
    plain = image_pyramid(image, [(2, 2)])[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(image_pyramid(image, [(2, 2)])[1], plain)
