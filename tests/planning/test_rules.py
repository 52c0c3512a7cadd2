"""The planner's rules against the paper's Table 1."""

from math import prod

import pytest

from nnunet_octreenca.octree import level_shapes, total_factors
from nnunet_octreenca.planning import cell_channels, level_factors, level_steps, round_up
from nnunet_octreenca.planning.rules import widening_channels


@pytest.mark.parametrize(
    ("shapes", "steps"),
    [
        # Table 1, axes as (z, y, x) or (t, y, x).
        (
            [(24, 320, 320), (12, 160, 160), (6, 80, 80), (6, 40, 40), (6, 20, 20)],
            [10, 10, 10, 10, 20],
        ),
        ([(320, 320), (160, 160), (80, 80), (40, 40), (20, 20)], [10, 10, 10, 10, 20]),
        (
            [(80, 240, 432), (40, 120, 216), (20, 60, 108), (10, 30, 54), (5, 15, 27)],
            [10, 10, 10, 10, 27],
        ),
        # The hippocampus: four levels.
        ([(40, 56, 40), (20, 28, 20), (10, 14, 10), (5, 7, 5)], [10, 10, 10, 7]),
        # Five levels, though the coarsest could be halved again ...
        ([(512, 512), (256, 256), (128, 128), (64, 64), (32, 32)], [10, 10, 10, 10, 32]),
        # ... more only while the longest axis is above 32.
        (
            [(528, 512), (264, 256), (132, 128), (66, 64), (33, 32), (17, 16)],
            [10, 10, 10, 10, 10, 17],
        ),
        (
            [(4096, 64), (2048, 32), (1024, 16), (512, 8), (256, 8), (128, 8), (64, 8), (32, 8)],
            [10] * 7 + [32],
        ),
        # No axis can be halved.
        ([(8, 8, 8)], [8]),
        ([(1, 1)], [1]),
        # 9 cells are halved: ceil(9 / 2) = 5.
        ([(9, 8), (5, 8)], [10, 8]),
    ],
    ids=lambda value: str(value[0]) if isinstance(value[0], tuple) else None,
)
def test_levels_and_steps(shapes, steps):
    factors = level_factors(shapes[0])
    assert level_shapes(shapes[0], factors) == shapes
    assert level_steps(shapes) == steps


def test_the_hippocampus_from_its_median_shape():
    factors = level_factors((36, 50, 35))
    multiple = total_factors(factors, 3)
    assert multiple == (8, 8, 8)
    context = round_up((36, 50, 35), multiple)
    assert context == (40, 56, 40)
    assert level_shapes(context, level_factors(context))[-1] == (5, 7, 5)


@pytest.mark.parametrize(("alpha0", "last"), [(1.0, 20), (0.5, 10), (1.52, 30), (0.01, 1)])
def test_the_coarsest_level_takes_alpha0_steps_a_cell(alpha0, last):
    assert level_steps([(40, 30), (20, 15)], alpha0) == [10, last]


@pytest.mark.parametrize(
    ("input_channels", "logits", "channels"),
    [(1, 1, 16), (3, 1, 16), (3, 5, 16), (3, 6, 20), (4, 4, 16), (1, 40, 52), (5, 100, 116)],
)
def test_channels(input_channels, logits, channels):
    """max(16, n_in + K + 8), rounded up to a multiple of 4."""
    assert cell_channels(input_channels, logits) == channels


@pytest.mark.parametrize(
    ("shape", "multiple", "rounded"),
    [
        ((36, 50, 35), (8, 8, 8), (40, 56, 40)),
        ((40, 56), (8, 8), (40, 56)),
        ((40.4, 40.6), (8, 8), (40, 48)),
        ((7, 7), (1, 2), (7, 8)),
    ],
)
def test_round_up(shape, multiple, rounded):
    assert round_up(shape, multiple) == rounded


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((40, 56, 40), [16, 16, 32, 48]),
        ((24, 320, 320), [16, 16, 32, 48, 48]),
        ((960, 999), [16, 16, 16, 32, 48, 48]),
        ((320, 320), [16, 16, 16, 32, 32]),  # 20 steps on the coarsest level
        ((2048, 2048), [16, 16, 16, 32, 48, 48, 48]),
    ],
)
def test_coarse_levels_are_as_wide_as_is_nearly_free(shape, channels):
    shapes = level_shapes(shape, level_factors(shape))
    steps = level_steps(shapes)
    assert widening_channels(1, 2, shapes, steps) == channels
    work = [
        prod(cells) * count * width**2
        for cells, count, width in zip(shapes, steps, channels, strict=True)
    ]
    equal = [own * 16**2 / width**2 for own, width in zip(work, channels, strict=True)]
    assert sum(work) < 1.1 * sum(equal)  # an image takes hardly longer


def test_levels_are_never_narrower_than_the_finest():
    shapes = [(64, 64), (32, 32), (16, 16), (8, 8)]
    assert widening_channels(1, 40, shapes, [10] * 4) == [52] * 4
    assert widening_channels(3, 9, shapes, [10] * 4) == [20, 20, 20, 32]
