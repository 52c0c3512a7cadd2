"""Shapes of the octree's levels.

Level 0 is the full resolution, level L-1 the coarsest. `factors[l]` says, axis by axis,
whether level l + 1 halves the axis (2) or keeps it (1); L levels have L - 1 rows.
"""

from collections.abc import Sequence

Shape = tuple[int, ...]
Factors = Sequence[Sequence[int]]


def level_shapes(shape: Sequence[int], factors: Factors) -> list[Shape]:
    """Shapes of all levels over an image of any shape, finest first.

    Args:
        shape: cells of level 0 per axis, (y, x) or (z, y, x); every axis at least 1.
        factors: L - 1 rows with 1 or 2 per axis.

    Returns:
        L shapes; level l + 1 has ceil(level l / factor) cells per axis, so odd sizes lose
        nothing: the last node of an odd axis covers a single cell.

    Raises:
        ValueError: an axis below 1, a factor other than 1 or 2, or a row of the wrong length.

    >>> level_shapes((5, 8), [(2, 2), (1, 2)])
    [(5, 8), (3, 4), (3, 2)]
    """
    shapes = [tuple(int(n) for n in shape)]
    if any(n < 1 for n in shapes[0]):
        raise ValueError(f"every axis needs at least one cell, got shape {shapes[0]}")
    for row in factors:
        if len(row) != len(shapes[0]) or any(f not in (1, 2) for f in row):
            raise ValueError(
                f"a row of factors has a 1 or a 2 for each of the {len(shapes[0])} axes, "
                f"got {list(row)}"
            )
        shapes.append(tuple(-(-n // f) for n, f in zip(shapes[-1], row, strict=True)))
    return shapes


def total_factors(factors: Factors, dimension: int) -> Shape:
    """How many cells of level 0 one node of the coarsest level spans, per axis.

    >>> total_factors([(1, 2, 2), (2, 2, 2)], 3)
    (2, 4, 4)
    """
    total = [1] * dimension
    for row in factors:
        total = [t * f for t, f in zip(total, row, strict=True)]
    return tuple(total)


def reach(steps: Sequence[int], factors: Factors, dimension: int) -> list[Shape]:
    """How far a cell sees on every level, in cells of level 0 and in each direction.

    A step sees one cell further, and a cell of level l spans as many cells of level 0 as the
    factors above it say. What a result depends on reaches the sum of all levels far, and up to
    one node of the coarsest level further, where averages begin.

    Args:
        steps: of all levels, finest first.
        factors: L - 1 rows with 1 or 2 per axis.
        dimension: spatial axes.

    Returns:
        Of every level, finest first, cells of level 0 per axis.

    >>> reach((10, 10, 20), [(2, 2), (1, 2)], 2)
    [(10, 10), (20, 20), (40, 80)]
    """
    spans = [total_factors(factors[:level], dimension) for level in range(len(steps))]
    return [tuple(count * f for f in span) for count, span in zip(steps, spans, strict=True)]
