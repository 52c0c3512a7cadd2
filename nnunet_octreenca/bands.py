"""Bands: ranges of an image's rows (2-D) or planes (3-D), along its first spatial axis.

Where nothing else is said, "rows" means planes in 3-D.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Rows(NamedTuple):
    """Rows of a level, `end` excluded."""

    first: int
    end: int


def split_range(first: int, end: int, length: int) -> list[Rows]:
    """Consecutive ranges of `length` rows (or columns, or pixels); the last is what is left.

    >>> split_range(0, 10, 4)
    [Rows(first=0, end=4), Rows(first=4, end=8), Rows(first=8, end=10)]
    """
    return [Rows(a, min(a + length, end)) for a in range(first, end, length)]


def aligned(band_rows: int, factor: int) -> int:
    """Rows of a band that ends between two nodes of the coarsest level; at least one node's.

    >>> aligned(100, 16), aligned(3, 16)
    (96, 16)
    """
    return max(band_rows // factor, 1) * factor


def spans(factors: Sequence[Sequence[int]]) -> list[int]:
    """Rows of the image that a row of each level covers, finest first.

    >>> spans([(1, 2, 2), (2, 2, 2)])
    [1, 1, 2]
    """
    result = [1]
    for row in factors:
        result.append(result[-1] * row[0])
    return result
