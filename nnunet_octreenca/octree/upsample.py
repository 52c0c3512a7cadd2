"""The way to the next finer level: every child takes its parent's state."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upsample(
    parent: Tensor,
    factor: Sequence[int],
    shape: Sequence[int],
    origin: Sequence[int] | None = None,
    parent_origin: Sequence[int] | None = None,
) -> Tensor:
    """Copy each parent to its children (nearest neighbour, parent index = child // factor).

    Args:
        parent: (N, channels, *parent_spatial).
        factor: 1 or 2 per spatial axis.
        shape: cells wanted on the finer level, per axis.
        origin: index in the whole finer level of the first cell wanted; zeros if left out.
        parent_origin: index in the whole coarser level of `parent`'s first cell; zeros if
            left out. With `origin` it lets a crop of the fine level hang below a crop of the
            coarse one.

    Returns:
        (N, channels, *shape).

    Raises:
        ValueError: a wanted cell's parent lies outside `parent`.
    """
    dimension = len(factor)
    origin = tuple(origin) if origin is not None else (0,) * dimension
    parent_origin = tuple(parent_origin) if parent_origin is not None else (0,) * dimension
    child = parent
    for axis in range(dimension):
        first = origin[axis] // factor[axis] - parent_origin[axis]
        last = (origin[axis] + shape[axis] - 1) // factor[axis] - parent_origin[axis]
        if first < 0 or last >= parent.shape[2 + axis]:
            raise ValueError(
                f"axis {axis}: cells {origin[axis]} to {origin[axis] + shape[axis] - 1} have "
                f"parents {first} to {last}, outside the {parent.shape[2 + axis]} given"
            )
        if factor[axis] == 1:
            child = child.narrow(2 + axis, first, shape[axis])
        else:
            cells = torch.arange(origin[axis], origin[axis] + shape[axis], device=parent.device)
            child = child.index_select(2 + axis, cells // factor[axis] - parent_origin[axis])
    return child
