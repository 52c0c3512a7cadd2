"""Context and training crop: how much of an image a training step sees (DESIGN section 2)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.octree import Crop, Shape, level_shapes, total_factors
from nnunet_octreenca.planning.rules import level_factors, round_up

# A crop with a longest axis below this shows too little (the paper's have 80 and 106).
MIN_CROP_AXIS = 64


class Context(NamedTuple):
    """What a training step sees: `shape` (nnU-Net's patch size), its octree, and the crop."""

    shape: Shape
    factors: list[Shape]
    crop: Crop | None


def plan_context(median_shape: Sequence[float], fits: Callable[[Context], bool]) -> Context:
    """The largest context that fits: whole images first, then crops, then smaller contexts.

    The context is the median shape rounded up to a multiple of each axis' total factor. Where
    it does not fit, the finest levels are trained on crops: of k levels, each to the shape of
    level k (the paper: k = 2). Where no crop fits either, the longest axis is shortened.

    Args:
        median_shape: cells per axis after resampling.
        fits: whether training on a context fits the memory that there is.

    Raises:
        PlansError: not even the smallest context fits.

    >>> plan_context((24, 320, 320), lambda context: context.crop is not None)
    ... # doctest: +NORMALIZE_WHITESPACE
    Context(shape=(24, 320, 320), factors=[(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)],
            crop=Crop(shape=(12, 160, 160), levels=1))
    """
    shape = tuple(max(1, round(n)) for n in median_shape)
    while True:
        factors = level_factors(shape)
        multiple = total_factors(factors, len(shape))
        context = round_up(shape, multiple)
        for crop in (None, *_crops(context, factors)):
            candidate = Context(context, factors, crop)
            if fits(candidate):
                return candidate
        longest = max(range(len(context)), key=lambda axis: context[axis])
        shorter = context[longest] - multiple[longest]
        if shorter < 1:
            raise PlansError(
                f"not even a context of {context} cells fits the memory target; give a larger "
                f"-gpu_memory_target"
            )
        shape = (*context[:longest], shorter, *context[longest + 1 :])


def _crops(context: Shape, factors: Sequence[Sequence[int]]) -> list[Crop]:
    shapes = level_shapes(context, factors)
    return [
        Crop(shape, levels)
        for levels, shape in enumerate(shapes)
        if levels > 0 and max(shape) >= MIN_CROP_AXIS
    ]
