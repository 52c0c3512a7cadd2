"""Images that decode in stripes of fixed borders: tile rows, chunk rows, frames."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from threading import Lock

import numpy as np

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.images.source import NO_INFO, ImageInfo

# Bytes of decoded stripes that stay for the next band. Two stripes stay in any case: bands
# overlap by the rows that the steps of a level reach, and these may lie across a border.
KEPT_BYTES = 64 << 20


class StripedSource(ABC):
    """An `ImageSource` (images/source.py) whose file decodes only in whole stripes.

    Ascending bands decode each stripe once, also where they overlap by less than a stripe.

    Args:
        shape: cells per axis; the first one is cut into stripes.
        channels: how many.
        dtype: of what `read` returns.
        spacing: mm per axis.
        stripe: rows (2-D) or planes (3-D) of a stripe.
        info: what the file says; `kept_bytes` is filled in.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        dtype: np.dtype,
        spacing: Sequence[float],
        stripe: int,
        info: ImageInfo = NO_INFO,
    ) -> None:
        self.shape = tuple(shape)
        self.channels = channels
        self.dtype = np.dtype(dtype)
        self.spacing = tuple(spacing)
        self.stripe = min(stripe, self.shape[0])
        self._stripe_bytes = channels * self.stripe * prod(self.shape[1:]) * self.dtype.itemsize
        self._stay = max(2, KEPT_BYTES // max(1, self._stripe_bytes))
        self._kept: OrderedDict[int, Pixels] = OrderedDict()
        self._lock = Lock()
        kept = min(self._stay, -(-self.shape[0] // self.stripe)) * self._stripe_bytes
        self.info = replace(info, kept_bytes=kept)

    @abstractmethod
    def _read_stripe(self, first: int, end: int) -> Pixels:
        """Decode (channels, end - first, *shape[1:]); `first` is a multiple of `stripe`."""

    def read(self, first: int, end: int) -> Pixels:
        """The band, as `ImageSource.read` has it; a copy that the caller may change.

        Raises:
            InputError: the file is damaged there.
        """
        band = np.empty((self.channels, end - first, *self.shape[1:]), self.dtype)
        with self._lock:
            for index in range(first // self.stripe, -(-end // self.stripe)):
                start = index * self.stripe
                stripe = self._stripe(index)
                low, high = max(first, start), min(end, start + stripe.shape[1])
                band[:, low - first : high - first] = stripe[:, low - start : high - start]
        return band

    def _stripe(self, index: int) -> Pixels:
        if index not in self._kept:
            while len(self._kept) >= self._stay:
                self._kept.popitem(last=False)
            first = index * self.stripe
            self._kept[index] = self._read_stripe(first, min(first + self.stripe, self.shape[0]))
        self._kept.move_to_end(index)
        return self._kept[index]

    def close(self) -> None:
        """Release the stripes; a second call does nothing."""
        with self._lock:
            self._kept.clear()
