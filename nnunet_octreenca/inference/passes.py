"""One member on one mirrored copy of an image, and the bands that passes share."""

from collections import OrderedDict
from collections.abc import Generator
from threading import Lock
from typing import NamedTuple

import numpy as np

from nnunet_octreenca.bands import Rows
from nnunet_octreenca.images.source import ImageSource
from nnunet_octreenca.inference.stream import Band, Read, Result, Values, open_stream
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.planning import Output


class Member(NamedTuple):
    """A network with the seed of its fire draws."""

    network: OctreeNCA
    seed: int


class Shared:
    """The last bands read, for passes that ask for the same ones; they read in threads."""

    def __init__(self, read: Read, count: int) -> None:
        self._read = read
        self._count = count
        self._lock = Lock()
        self._held: OrderedDict[tuple[int, int], Band] = OrderedDict()

    def __call__(self, first: int, end: int) -> Band:
        key = (first, end)
        with self._lock:
            rows = self._held.pop(key, None)
            if rows is None:
                rows = self._read(first, end)
            if self._count > 1:
                self._held[key] = rows
                while len(self._held) > self._count:
                    self._held.popitem(last=False)
            return rows

    def clear(self) -> None:
        self._held.clear()


class Pass:
    """A member on one mirrored copy."""

    def __init__(
        self,
        member: Member,
        axes: tuple[int, ...],
        image: ImageSource,
        shared: Shared,
        state: str | None,
        output: Output,
    ) -> None:
        self.axes = axes
        self.stream = open_stream(
            member.network, image.shape, output, seed=member.seed, state=state
        )
        self._end = image.shape[0]
        self._shared = shared
        self._results: Generator[Result, None, None] | None = None
        self._stretch: Rows | None = None
        self._left: list[Values] = []

    def read(self, first: int, end: int) -> Band:
        """Rows of the mirrored copy."""
        if 0 in self.axes:
            first, end = self._end - end, self._end - first
        rows = self._shared(first, end)
        return np.flip(rows, tuple(axis + 1 for axis in self.axes)) if self.axes else rows

    def close(self) -> None:
        """End what is being read."""
        if self._results is not None:
            self._results.close()

    def take(self, band: Rows, stretch: Rows, band_rows: int) -> Values:
        """The band's logits, (num_classes, rows, *axes), mirrored back; bands come in order."""
        if 0 in self.axes:
            # Its rows come from the end: every band is a separate range.
            mirrored = Rows(self._end - band.end, self._end - band.first)
            parts = [values for _, values in self.stream.run(mirrored, self.read, band_rows)]
        else:
            if self._stretch != stretch:
                self._stretch, self._left = stretch, []
                self._results = self.stream.run(stretch, self.read, band_rows)
            parts = self._next(band.end - band.first)
        logits = np.concatenate(parts, 1) if len(parts) > 1 else parts[0]
        return np.flip(logits, tuple(axis + 1 for axis in self.axes)) if self.axes else logits

    def _next(self, count: int) -> list[Values]:
        assert self._results is not None
        parts, have = self._left, sum(part.shape[1] for part in self._left)
        while have < count:
            _, values = next(self._results)
            parts.append(values)
            have += values.shape[1]
        surplus = have - count
        last = parts[-1]
        self._left = [last[:, last.shape[1] - surplus :]] if surplus else []
        return [*parts[:-1], last[:, : last.shape[1] - surplus]]
