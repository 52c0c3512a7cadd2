import re
from itertools import pairwise
from math import prod

import pytest

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.octree import Crop, level_shapes, window_shapes
from nnunet_octreenca.planning import Context, level_factors, level_steps, plan_context
from nnunet_octreenca.planning.context import (
    MOST_CROP_CELLS,
    crops_for_memory,
    crops_for_speed,
    speed_crop,
)


def visited(median_shape, accept):
    """All contexts that were tried, the chosen one last."""
    tried = []

    def fits(context):
        tried.append(context)
        return accept(context)

    chosen = plan_context(median_shape, fits, crops_for_memory)
    assert chosen == tried[-1]
    return tried


def test_the_whole_image_where_it_fits():
    assert visited((36, 50, 35), lambda context: True) == [
        Context((40, 56, 40), [(2, 2, 2)] * 3, None)
    ]


def test_crops_come_before_smaller_contexts():
    tried = visited((24, 320, 320), lambda context: context.shape != (24, 320, 320))
    assert [context.crop for context in tried[:3]] == [
        None,
        Crop((12, 160, 160), 1),
        Crop((6, 80, 80), 2),  # the paper's; a crop of 40 cells would show too little
    ]
    assert tried[-1].shape == (24, 304, 320)
    assert tried[-1].crop is None
    assert len(tried) == 4


def test_the_paper_crops_where_two_levels_are_needed():
    """Surgery: 60 x 106 x 20 in the paper, which is level 2 cut to even cells."""

    def fits(context):
        return context.crop is not None and context.crop.levels == 2

    chosen = plan_context((80, 240, 432), fits, crops_for_memory)
    assert chosen.shape == (80, 240, 432)
    assert chosen.crop == Crop((20, 60, 108), 2)


def test_the_longest_axis_is_shortened_by_its_factor():
    shapes = []
    for context in visited((40, 90, 60), lambda context: prod(context.shape) <= 40 * 48 * 48):
        if context.shape not in shapes:
            shapes.append(context.shape)
    assert shapes[0] == (40, 96, 64)
    for longer, shorter in pairwise(shapes):
        longest = longer.index(max(longer))
        assert shorter[longest] < longer[longest]
        assert [n for i, n in enumerate(shorter) if i != longest] == [
            n for i, n in enumerate(longer) if i != longest
        ]
    assert prod(shapes[-1]) <= 40 * 48 * 48


@pytest.mark.parametrize("crops", [crops_for_memory, crops_for_speed])
@pytest.mark.parametrize("cells", [10**6, 10**5, 10**4, 1000, 30, 1])
@pytest.mark.parametrize("median", [(155, 240, 240), (11, 700, 33), (1000, 1000), (3, 5)])
def test_what_is_chosen_fits_and_has_whole_nodes(median, cells, crops):
    def fits(context):
        return sum(map(prod, window_shapes(context.shape, context.factors, context.crop))) <= cells

    chosen = plan_context(median, fits, crops)
    assert fits(chosen)
    assert chosen.factors == level_factors(chosen.shape)
    for fine, coarse, factor in zip(
        level_shapes(chosen.shape, chosen.factors),
        level_shapes(chosen.shape, chosen.factors)[1:],
        chosen.factors,
        strict=False,
    ):
        assert all(n == c * f for n, c, f in zip(fine, coarse, factor, strict=True))


@pytest.mark.parametrize(
    ("context", "levels"),
    [
        ((40, 56, 40), 1),  # hippocampus
        ((10, 256, 224), 1),  # ACDC: the short axis stays whole
        ((240, 432), 1),
        ((960, 960), 2),
        ((32, 240, 432), 2),
        ((2432, 3584), 4),
    ],
)
def test_a_cropped_level_takes_as_long_as_all_that_are_whole(context, levels):
    factors = level_factors(context)
    crop = speed_crop(context, factors)
    assert crop.levels == levels
    shapes = level_shapes(context, factors)
    work = [prod(shape) * n for shape, n in zip(shapes, level_steps(shapes), strict=True)]
    cells = sum(work[levels:]) / 10
    assert cells <= MOST_CROP_CELLS
    assert levels == 1 or cells + prod(shapes[levels - 1]) > MOST_CROP_CELLS
    assert 0.9 < prod(crop.shape) / cells < 2  # more where an axis may not be shorter
    assert all(c <= n for c, n in zip(crop.shape, context, strict=True))
    assert next(iter(crops_for_speed(context, factors))) == crop


@pytest.mark.parametrize("context", [(12, 12, 12), (8, 8), (5, 6, 7)])
def test_a_context_too_small_to_be_cropped(context):
    assert speed_crop(context, level_factors(context)) is None


def test_crops_that_fit_less_memory_are_smaller():
    factors = level_factors((32, 240, 432))
    crops = list(crops_for_speed((32, 240, 432), factors))
    sizes = [prod(crop.shape) for crop in crops]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) > 1


def test_an_error_where_nothing_fits():
    named = re.escape("a context of (1, 1) cells fits the memory target") + ".*-gpu_memory_target"
    with pytest.raises(PlansError, match=named):
        plan_context((30, 20), lambda context: False)
