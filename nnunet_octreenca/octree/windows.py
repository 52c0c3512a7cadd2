"""Windows: the part of each level that is computed.

In training the coarse levels see the whole context, the finest ones a crop of it (paper:
80x80x6 of 320x320x24 on levels 0 and 1). A crop of level l lies within the children of the
crop of level l + 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

from nnunet_octreenca.octree.shapes import Factors, Shape, level_shapes


class Crop(NamedTuple):
    """How the finest levels are cut: each of the finest `levels` to at most `shape` cells."""

    shape: Shape
    levels: int


class Window(NamedTuple):
    """A box of one level: its cells per axis, and where it begins for each sample."""

    shape: Shape
    origins: tuple[Shape, ...]


def window_shapes(shape: Sequence[int], factors: Factors, crop: Crop | None) -> list[Shape]:
    """Cells computed on every level, finest first.

    Args:
        shape: cells of level 0 per axis.
        factors: L - 1 rows with 1 or 2 per axis.
        crop: None computes everything.

    >>> window_shapes((16, 16), [(2, 2), (2, 2)], Crop((6, 6), 2))
    [(6, 6), (6, 6), (4, 4)]
    """
    shapes = level_shapes(shape, factors)
    if crop is None:
        return shapes
    return [
        tuple(min(c, n) for c, n in zip(crop.shape, whole, strict=True))
        if level < crop.levels
        else whole
        for level, whole in enumerate(shapes)
    ]


def windows(
    shape: Sequence[int], factors: Factors, crop: Crop | None, origins: Sequence[Sequence[int]]
) -> list[Window]:
    """The windows of all levels, nested around the crops of level 0.

    Args:
        shape: cells of level 0 per axis.
        factors: L - 1 rows with 1 or 2 per axis.
        crop: None computes everything; `origins` then only tells the number of samples.
        origins: for each sample the first cell of its crop of level 0.

    Raises:
        ValueError: a crop reaches beyond the image.
    """
    shapes = level_shapes(shape, factors)
    cut = window_shapes(shape, factors, crop)
    result = []
    current = [tuple(int(o) for o in origin) for origin in origins]
    if crop is None:
        current = [(0,) * len(shapes[0])] * len(origins)
    for origin in current:
        if any(o < 0 or o + c > n for o, c, n in zip(origin, cut[0], shapes[0], strict=True)):
            raise ValueError(f"a crop of {cut[0]} at {origin} reaches beyond {shapes[0]}")
    for level, whole in enumerate(shapes):
        if level:
            current = [
                _around(origin, cut[level - 1], factors[level - 1], cut[level], whole)
                for origin in current
            ]
        result.append(Window(cut[level], tuple(current)))
    return result


def _around(
    origin: Shape, cells: Shape, factor: Sequence[int], wanted: Shape, whole: Shape
) -> Shape:
    """First cell of the parents' window: holds all parents, centred on them where it fits."""
    first = []
    for o, c, f, w, n in zip(origin, cells, factor, wanted, whole, strict=True):
        lowest, highest = o // f, (o + c - 1) // f
        centred = (lowest + highest + 1 - w) // 2
        first.append(min(max(centred, highest + 1 - w, 0), lowest, n - w))
    return tuple(first)
