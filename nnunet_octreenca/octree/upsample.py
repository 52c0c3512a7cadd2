"""The way to the next finer level: every child takes its parent's state."""

from collections.abc import Sequence

from torch import Tensor


def upsample(
    parent: Tensor,
    factor: Sequence[int],
    shape: Sequence[int],
    origin: Sequence[int] | None = None,
    parent_origin: Sequence[int] | None = None,
    first_axis: int = 2,
) -> Tensor:
    """Copy each parent to its children (nearest neighbour, parent index = child // factor).

    Args:
        parent: (N, channels, *parent_spatial), or with its spatial axes from `first_axis` on.
        factor: 1 or 2 per spatial axis.
        shape: cells wanted on the finer level, per axis.
        origin: index in the whole finer level of the first cell wanted; zeros if left out.
        parent_origin: index in the whole coarser level of `parent`'s first cell; zeros if
            left out. With `origin` it lets a crop of the fine level hang below a crop of the
            coarse one.
        first_axis: the first spatial axis of `parent`.

    Returns:
        (N, channels, *shape), laid out like `parent`.

    Raises:
        ValueError: a wanted cell's parent lies outside `parent`.
    """
    dimension = len(factor)
    origin = tuple(origin) if origin is not None else (0,) * dimension
    parent_origin = tuple(parent_origin) if parent_origin is not None else (0,) * dimension
    child = parent
    for axis in range(dimension):
        here, f = first_axis + axis, factor[axis]
        first = origin[axis] // f - parent_origin[axis]
        last = (origin[axis] + shape[axis] - 1) // f - parent_origin[axis]
        if first < 0 or last >= parent.shape[here]:
            raise ValueError(
                f"axis {axis}: cells {origin[axis]} to {origin[axis] + shape[axis] - 1} have "
                f"parents {first} to {last}, outside the {parent.shape[here]} given"
            )
        child = child.narrow(here, first, last - first + 1)
        if f > 1:
            copies = [-1] * child.ndim
            copies.insert(here + 1, f)
            child = child.unsqueeze(here + 1).expand(copies).flatten(here, here + 1)
            child = child.narrow(here, origin[axis] % f, shape[axis])
    return child
