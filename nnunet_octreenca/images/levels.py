"""The levels of a pyramid by their resolution."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_octreenca.errors import InputError

# A level counts as the resolution that was asked for up to this relative difference: scanners
# write 0.2527 and 0.499 where a protocol says 0.25 and 0.5.
SAME_RESOLUTION = 0.05
MICRONS_PER_MM = 1000.0

Bounds = tuple[int, int, int, int]  # x, y, width, height in pixels of the finest level


@dataclass(frozen=True)
class Level:
    """One level of a pyramid.

    Attributes:
        shape: (y, x) in pixels.
        mpp: microns per pixel (y, x); None where the file says nothing.
    """

    shape: tuple[int, int]
    mpp: tuple[float, float] | None

    @property
    def spacing(self) -> tuple[float, float]:
        """mm per pixel (y, x); ones where the file says nothing."""
        if self.mpp is None:
            return 1.0, 1.0
        return self.mpp[0] / MICRONS_PER_MM, self.mpp[1] / MICRONS_PER_MM

    @property
    def mean_mpp(self) -> float | None:
        """Microns per pixel, one number; None where the file says nothing."""
        return None if self.mpp is None else sum(self.mpp) / 2


def pyramid(shapes: Sequence[tuple[int, int]], finest: tuple[float, float] | None) -> list[Level]:
    """Levels of the given shapes (y, x), the first of `finest` microns per pixel (y, x).

    >>> [level.mpp for level in pyramid([(400, 800), (100, 200)], (0.25, 0.25))]
    [(0.25, 0.25), (1.0, 1.0)]
    """
    (rows, columns) = shapes[0]
    return [
        Level(
            shape,
            None
            if finest is None
            else (finest[0] * rows / shape[0], finest[1] * columns / shape[1]),
        )
        for shape in shapes
    ]


def choose_level(
    levels: Sequence[Level], mpp: float | None, path: Path
) -> tuple[int, tuple[float, float] | None]:
    """The level to read for a resolution.

    Args:
        levels: finest first.
        mpp: microns per pixel; None for the finest level as it is.
        path: of the file; named in the errors.

    Returns:
        The level's index, and by how much (y, x) its pixels are to be averaged on the way to
        `mpp`; None where the level has that resolution within 5 %.

    Raises:
        InputError: the file says no resolution, or its finest level is coarser than `mpp`.
    """
    if mpp is None:
        return 0, None
    if not mpp > 0:
        raise InputError(f"microns per pixel ({mpp}) must be above 0")
    known = [
        (mean, index) for index, level in enumerate(levels) if (mean := level.mean_mpp) is not None
    ]
    if not known:
        raise InputError(
            f"{path} does not say its resolution, so that {mpp} microns per pixel cannot be "
            f"found in it; leave out --mpp to read its finest level"
        )
    difference, index = min((abs(level / mpp - 1), index) for level, index in known)
    if difference <= SAME_RESOLUTION:
        return index, None
    finer = [(level, index) for level, index in known if level < mpp]
    if not finer:
        raise InputError(
            f"{path} has no level as fine as {mpp} microns per pixel; its levels have "
            f"{', '.join(f'{level:.4g}' for level, _ in known)}"
        )
    _, index = max(finer)
    chosen = levels[index].mpp
    assert chosen is not None
    return index, (mpp / chosen[0], mpp / chosen[1])
