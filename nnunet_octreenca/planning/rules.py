"""The planner's rules as pure functions: levels, steps, channels (DESIGN section 2)."""

from collections.abc import Sequence

from nnunet_octreenca.octree import Shape

MIN_AXIS = 5  # an axis is halved while the result has at least this many cells
USUAL_LEVELS = 5
LONGEST_COARSE_AXIS = 32  # more than the usual levels only while the coarsest is longer
STEPS = 10
ALPHA0 = 1.0  # steps of the coarsest level per cell of its longest axis
MIN_CHANNELS = 16
HIDDEN_CHANNELS = 8  # besides image and logits
CHANNEL_MULTIPLE = 4
HIDDEN_UNITS_PER_CHANNEL = 4


def level_factors(shape: Sequence[int]) -> list[Shape]:
    """Which axes each level halves, so that the paper's Table 1 comes out.

    An axis is halved while the result has at least 5 cells; there are five levels, more only
    while the longest axis is above 32 cells, fewer where no axis can be halved.

    Args:
        shape: cells of level 0 per axis.

    Returns:
        L - 1 rows with 1 or 2 per axis, finest first.

    >>> level_factors((24, 320, 320))
    [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)]
    """
    current = tuple(int(n) for n in shape)
    factors: list[Shape] = []
    while len(factors) + 1 < USUAL_LEVELS or max(current) > LONGEST_COARSE_AXIS:
        factor = tuple(2 if -(-n // 2) >= MIN_AXIS else 1 for n in current)
        if max(factor) == 1:
            break
        factors.append(factor)
        current = tuple(-(-n // f) for n, f in zip(current, factor, strict=True))
    return factors


def level_steps(shapes: Sequence[Shape], alpha0: float = ALPHA0) -> list[int]:
    """Steps of every level: 10, and alpha0 * longest axis on the coarsest.

    There a step carries information one cell further, so that alpha0 = 1 lets it cross the
    whole image (paper section 3).

    Args:
        shapes: cells of every level, finest first.

    >>> level_steps([(320, 320), (160, 160), (80, 80), (40, 40), (20, 20)])
    [10, 10, 10, 10, 20]
    """
    return [STEPS] * (len(shapes) - 1) + [max(1, round(alpha0 * max(shapes[-1])))]


def cell_channels(input_channels: int, logits: int) -> int:
    """C: image, logits and 8 hidden channels, at least 16, rounded up to a multiple of 4.

    >>> cell_channels(3, 5), cell_channels(1, 40)
    (16, 52)
    """
    wanted = max(MIN_CHANNELS, input_channels + logits + HIDDEN_CHANNELS)
    return -(-wanted // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE


def equal_channels(input_channels: int, logits: int, levels: int) -> list[int]:
    """C of every level, finest first: `cell_channels` on all (the paper).

    >>> equal_channels(1, 2, 3)
    [16, 16, 16]
    """
    return [cell_channels(input_channels, logits)] * levels


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
