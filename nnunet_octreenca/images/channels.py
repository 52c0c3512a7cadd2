"""Channels in separate files, as nnU-Net has them: CASE_0000, CASE_0001."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.source import ImageSource

# Differences that rounding in a header makes: of origins and spacings as a share of a voxel, of
# direction cosines as they are.
_ROUNDING = 0.02


class ChannelStack:
    """Several images of the same shape and place, stacked as channels.

    Args:
        sources: closed by `close`.
        names: of their files, for the errors.

    Attributes:
        info: the first one's, with the sum of `kept_bytes` and the `notes` of all.

    Raises:
        InputError: shapes, spacings, origins or directions differ.
    """

    def __init__(self, sources: Sequence[ImageSource], names: Sequence[Path]) -> None:
        self._sources = list(sources)
        first = self._sources[0]
        for source, name in zip(self._sources[1:], names[1:], strict=True):
            if source.shape != first.shape:
                raise InputError(
                    f"{name} has the shape {source.shape} and {names[0].name} {first.shape}; the "
                    f"channels of a case must lie on the same grid"
                )
            _require_same_place(first, source, names[0], name)
        self.shape = first.shape
        self.spacing = first.spacing
        self.channels = sum(source.channels for source in self._sources)
        self.dtype = np.result_type(*(source.dtype for source in self._sources))
        kept = sum(source.info.kept_bytes for source in self._sources)
        notes = tuple(note for source in self._sources for note in source.info.notes)
        named = ", ".join(map(str, names))
        self.info = replace(first.info, kept_bytes=kept, notes=notes, name=named)

    def read(self, first: int, end: int) -> Pixels:
        """The band of all channels, as `ImageSource.read` has it.

        Raises:
            InputError: a file is damaged there.
        """
        return np.concatenate(
            [source.read(first, end) for source in self._sources], dtype=self.dtype
        )

    def close(self) -> None:
        """Close all of them; a second call does nothing."""
        for source in self._sources:
            source.close()


def _require_same_place(one: ImageSource, other: ImageSource, name: Path, other_name: Path) -> None:
    compared = [("spacing", one.spacing, other.spacing, min(one.spacing))]
    first, second = one.info.geometry, other.info.geometry
    if first is not None and second is not None:
        compared += [
            ("origin", first.origin, second.origin, min(one.spacing)),
            ("direction", first.direction, second.direction, 1.0),
        ]
    for what, a, b, unit in compared:
        if len(a) != len(b) or not np.allclose(a, b, rtol=0, atol=_ROUNDING * unit):
            raise InputError(
                f"{other_name} has the {what} {_short(b)} and {name.name} {_short(a)}; the "
                f"channels of a case must lie on the same grid"
            )


def _short(numbers: Sequence[float]) -> str:
    return f"({', '.join(f'{n:.6g}' for n in numbers)})"
