"""Context and training crop: how much of an image a training step sees (DESIGN section 2)."""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import NamedTuple

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.octree import Crop, Shape, level_shapes, total_factors
from nnunet_octreenca.planning.rules import STEPS, level_factors, level_steps, round_up

# A crop with a longest axis below this shows too little (the paper's have 80 and 106).
MIN_CROP_AXIS = 64
# Cells of a crop that is chosen for speed, 316 x 316 or 46 x 46 x 46: with more, one more level is
# cropped. The paper's crops have 38,400 and 127,200.
MOST_CROP_CELLS = 100_000
MIN_SPEED_AXIS = 16  # cells; a shorter axis is not cropped for speed


class Context(NamedTuple):
    """What a training step sees: `shape` (nnU-Net's patch size), its octree, and the crop."""

    shape: Shape
    factors: list[Shape]
    crop: Crop | None


Crops = Callable[[Shape, Sequence[Shape]], Iterable[Crop | None]]
"""The crops to try for a context and its factors, the best first; None trains on all of it."""


def crops_for_memory(context: Shape, factors: Sequence[Shape]) -> Iterable[Crop | None]:
    """None first, then crops of the finest k levels, each to the shape of level k (the paper: 2).

    >>> list(crops_for_memory((64, 64), [(2, 2)]))
    [None]
    """
    yield None
    for levels, shape in enumerate(level_shapes(context, factors)):
        if levels > 0 and max(shape) >= MIN_CROP_AXIS:
            yield Crop(shape, levels)


def crops_for_speed(
    context: Shape, factors: Sequence[Shape], steps: int = STEPS
) -> Iterable[Crop | None]:
    """The crop of `speed_crop` first, then smaller ones of `crops_for_memory`."""
    first = speed_crop(context, factors, steps=steps)
    yield first
    most = prod(context if first is None else first.shape)
    for crop in crops_for_memory(context, factors):
        if crop is not None and prod(crop.shape) < most:
            yield crop


def speed_crop(
    context: Shape,
    factors: Sequence[Shape],
    most_cells: int = MOST_CROP_CELLS,
    steps: int = STEPS,
) -> Crop | None:
    """A crop whose every level takes as long as all the levels together that are seen whole.

    More steps in the same time train better than steps that see everything (docs, "Recipes").
    As few of the finest levels are cropped as bring the crop below `most_cells`. It has the
    context's proportions, but for axes that are too short to be cropped.

    Args:
        context: cells of level 0 per axis.
        factors: L - 1 rows with 1 or 2 per axis.
        most_cells: of a crop.
        steps: of every level but the coarsest.

    Returns:
        None where the crop would not be smaller than the context, or no level is left whole.

    >>> speed_crop((40, 56, 40), [(2, 2, 2)] * 3)
    Crop(shape=(22, 30, 22), levels=1)
    """
    shapes = level_shapes(context, factors)
    counts = level_steps(shapes, steps=steps)
    work = [prod(shape) * count for shape, count in zip(shapes, counts, strict=True)]
    for levels in range(1, len(shapes)):
        cells = sum(work[levels:]) / counts[0]
        if cells <= most_cells:
            break
    else:
        return None
    axes = [axis for axis, n in enumerate(context) if n > MIN_SPEED_AXIS]
    if not axes or cells >= prod(context):
        return None
    scale = (cells / prod(context)) ** (1 / len(axes))
    shape = tuple(
        min(n, max(MIN_SPEED_AXIS, -(-round(n * scale) // 2) * 2)) if axis in axes else n
        for axis, n in enumerate(context)
    )
    return None if shape == tuple(context) else Crop(shape, levels)


def plan_context(
    median_shape: Sequence[float],
    fits: Callable[[Context], bool],
    crops: Crops = crops_for_speed,
) -> Context:
    """The largest context that fits, with the first crop that does.

    The context is the median shape rounded up to a multiple of each axis' total factor. Where no
    crop of it fits, the longest axis is shortened.

    Args:
        median_shape: cells per axis after resampling.
        fits: whether training on a context fits the memory that there is.
        crops: which crops are tried.

    Raises:
        PlansError: not even the smallest context fits.

    >>> plan_context((24, 320, 320), lambda context: context.crop is not None, crops_for_memory)
    ... # doctest: +NORMALIZE_WHITESPACE
    Context(shape=(24, 320, 320), factors=[(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)],
            crop=Crop(shape=(12, 160, 160), levels=1))
    """
    shape = tuple(max(1, round(n)) for n in median_shape)
    while True:
        factors = level_factors(shape)
        multiple = total_factors(factors, len(shape))
        context = round_up(shape, multiple)
        for crop in crops(context, factors):
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
