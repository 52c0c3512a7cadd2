"""The planner's rules as pure functions: levels, steps, channels (DESIGN section 2)."""

from collections.abc import Sequence
from math import prod

from nnunet_octreenca.octree import Shape

MIN_AXIS = 5  # an axis is halved while the result has at least this many cells
USUAL_LEVELS = 5
LONGEST_COARSE_AXIS = 32  # more than the usual levels only while the coarsest is longer
STEPS = 10  # of the paper, whose cells fire half of the time
ALPHA0 = 1.0  # steps of the coarsest level per cell of its longest axis
MIN_CHANNELS = 16
HIDDEN_CHANNELS = 8  # besides image and logits
CHANNEL_MULTIPLE = 4
HIDDEN_UNITS_PER_CHANNEL = 4
WIDTH, WIDEST = 16, 48  # channels of coarser levels come in multiples of a kernel's block
SHARE_OF_WORK = 15  # 1/16 of the finest level's, with room for axes that are rounded up


def level_factors(shape: Sequence[int], spacing: Sequence[float] | None = None) -> list[Shape]:
    """Which axes each level halves, so that the paper's Table 1 comes out.

    An axis is halved while the result has at least 5 cells; there are five levels, more only
    while the longest axis is above 32 cells, fewer where no axis can be halved.

    Args:
        shape: cells of level 0 per axis.
        spacing: length of these cells per axis. Where given, axes whose cells are at least twice
            as long as the shortest that can be halved wait (nnU-Net's rule for its pooling). The
            planner gives none; `benchmarks/recipes.py` tries it.

    Returns:
        L - 1 rows with 1 or 2 per axis, finest first.

    >>> level_factors((24, 320, 320))
    [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)]
    >>> level_factors((10, 256, 224), spacing=(10.0, 1.5, 1.5))
    [(1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2)]
    """
    current = tuple(int(n) for n in shape)
    lengths = () if spacing is None else tuple(spacing)
    factors: list[Shape] = []
    while len(factors) + 1 < USUAL_LEVELS or max(current) > LONGEST_COARSE_AXIS:
        factor = tuple(2 if -(-n // 2) >= MIN_AXIS else 1 for n in current)
        if max(factor) == 1:
            break
        if lengths:
            shortest = min(n for n, f in zip(lengths, factor, strict=True) if f == 2)
            factor = tuple(
                1 if n >= 2 * shortest else f for n, f in zip(lengths, factor, strict=True)
            )
            lengths = tuple(n * f for n, f in zip(lengths, factor, strict=True))
        factors.append(factor)
        current = tuple(-(-n // f) for n, f in zip(current, factor, strict=True))
    return factors


def level_steps(shapes: Sequence[Shape], alpha0: float = ALPHA0, steps: int = STEPS) -> list[int]:
    """Steps of every level: `steps`, and alpha0 * longest axis on the coarsest.

    There a step carries information one cell further, so that alpha0 = 1 lets it cross the
    whole image (paper section 3).

    Args:
        shapes: cells of every level, finest first.
        alpha0: steps of the coarsest level per cell of its longest axis.
        steps: of every other level.

    >>> level_steps([(320, 320), (160, 160), (80, 80), (40, 40), (20, 20)])
    [10, 10, 10, 10, 20]
    """
    return [steps] * (len(shapes) - 1) + [max(1, round(alpha0 * max(shapes[-1])))]


def cell_channels(input_channels: int, logits: int) -> int:
    """C: image, logits and 8 hidden channels, at least 16, rounded up to a multiple of 4.

    >>> cell_channels(3, 5), cell_channels(1, 40)
    (16, 52)
    """
    wanted = max(MIN_CHANNELS, input_channels + logits + HIDDEN_CHANNELS)
    return -(-wanted // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE


def equal_channels(
    input_channels: int, logits: int, shapes: Sequence[Shape], steps: Sequence[int]
) -> list[int]:
    """C of every level, finest first: `cell_channels` on all (the paper).

    >>> equal_channels(1, 2, [(40, 56, 40), (20, 28, 20), (10, 14, 10)], [10, 10, 14])
    [16, 16, 16]
    """
    return [cell_channels(input_channels, logits)] * len(shapes)


def widening_channels(
    input_channels: int, logits: int, shapes: Sequence[Shape], steps: Sequence[int]
) -> list[int]:
    """C of every level, finest first: more where cells are few and channels nearly free.

    The finest level has `cell_channels`. A coarser one has the most, up to 48 in multiples of 16,
    with which its work (cells x steps x C^2) is at most 1/15 of the finest level's.

    Args:
        input_channels: n_in.
        logits: of every cell.
        shapes: cells of every level, finest first.
        steps: of every level, finest first.

    >>> widening_channels(
    ...     1, 2, [(40, 56, 40), (20, 28, 20), (10, 14, 10), (5, 7, 5)], [10, 10, 10, 7]
    ... )
    [16, 16, 32, 48]
    """
    finest = cell_channels(input_channels, logits)
    work = [prod(shape) * count for shape, count in zip(shapes, steps, strict=True)]
    most = work[0] * finest**2 / SHARE_OF_WORK
    wider = range(WIDEST, finest, -WIDTH)
    return [finest] + [
        next((width for width in wider if own * width**2 <= most), finest) for own in work[1:]
    ]


def of_levels(given: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """A number for every level, of one for all or of a list.

    >>> of_levels(16, 2), of_levels([16, 24], 2)
    ((16, 16), (16, 24))
    """
    return (given,) * levels if isinstance(given, int) else tuple(given)


def brief(row: Sequence[int]) -> int | list[int]:
    """The number that all levels share, or a list of all: how plans and reports say it.

    >>> brief((16, 16)), brief((16, 24))
    (16, [16, 24])
    """
    return row[0] if len(set(row)) == 1 else list(row)


def round_up(shape: Sequence[float], multiple: Sequence[int]) -> Shape:
    """Each axis rounded up to a multiple.

    >>> round_up((36, 50, 35), (8, 8, 8))
    (40, 56, 40)
    """
    return tuple(-(-round(n) // m) * m for n, m in zip(shape, multiple, strict=True))
