"""A small picture of an image that is read in bands, and its labels on the same pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Labels, Pixels

LONGEST = 1600
"""Pixels of a thumbnail's longer side, at most."""

_TILES = 12  # planes of a volume or frames of a video in one picture
_SMALLEST = 800  # smaller pictures are enlarged by a whole number
_GAP = 4  # pixels between tiles
_SAMPLES = 3  # per axis and thumbnail pixel
_WINDOW = (0.5, 99.5)  # percentiles shown as black and white


@dataclass(frozen=True)
class ThumbnailGrid:
    """Where the pixels of an image lie in its thumbnail.

    Attributes:
        planes: of a volume or video, which ones are shown; (0,) of a picture.
        plane_shape: (y, x) of the image.
        step: image pixels per thumbnail pixel and axis.
        zoom: how often a thumbnail pixel is repeated per axis.
        columns: tiles side by side.
    """

    planes: tuple[int, ...]
    plane_shape: tuple[int, int]
    step: int
    zoom: int
    columns: int

    @classmethod
    def of(cls, shape: tuple[int, ...], longest: int = LONGEST) -> "ThumbnailGrid":
        """The layout for an image of shape (y, x) or (plane, y, x).

        Volumes and videos show 12 evenly spaced planes, or all if there are fewer.
        """
        height, width = shape[-2:]
        depth = shape[0] if len(shape) == 3 else 1
        count = min(depth, _TILES)
        planes = tuple(int((number + 0.5) * depth / count) for number in range(count))
        columns = min(
            range(1, count + 1), key=lambda c: (max(c * width, -(-count // c) * height), c)
        )
        rows = -(-count // columns)
        side = max(columns * width, rows * height)
        longest -= (max(columns, rows) - 1) * _GAP
        step = max(1, -(-side // longest))
        zoom = max(1, min(_SMALLEST // side, longest // side))
        return cls(planes, (height, width), step, zoom, columns)

    @property
    def tile_shape(self) -> tuple[int, int]:
        """(y, x) of one plane before it is enlarged."""
        height, width = self.plane_shape
        return -(-height // self.step), -(-width // self.step)

    def arrange(self, tiles: Pixels, fill: int) -> Pixels:
        """One picture of the tiles (plane, y, x, ...), row by row with a gap of `fill`."""
        tiles = tiles.repeat(self.zoom, axis=1).repeat(self.zoom, axis=2)
        count, height, width = tiles.shape[:3]
        rows = -(-count // self.columns)
        shape = (rows * (height + _GAP) - _GAP, self.columns * (width + _GAP) - _GAP)
        picture = np.full((*shape, *tiles.shape[3:]), fill, tiles.dtype)
        for number, tile in enumerate(tiles):
            y, x = number // self.columns * (height + _GAP), number % self.columns * (width + _GAP)
            picture[y : y + height, x : x + width] = tile
        return picture


class Thumbnail:
    """Collects a thumbnail from bands in any order.

    A thumbnail pixel is the average of 9 samples or more, evenly spaced over the pixels it
    stands for; which ones does not depend on the bands.

    Args:
        shape: of the image, (y, x) or (plane, y, x).
        longest: pixels of the thumbnail's longer side, at most.
    """

    def __init__(self, shape: tuple[int, ...], longest: int = LONGEST) -> None:
        self.shape = tuple(shape)
        self.layout = ThumbnailGrid.of(self.shape, longest)
        self._sums: NDArray[np.float32] | None = None
        self._rows = np.zeros((len(self.layout.planes), self.layout.tile_shape[0]), np.float32)
        self._columns = np.zeros(0, int)
        self._bytes = False

    def add(self, first: int, band: Pixels) -> None:
        """Take what a band holds of the thumbnail.

        Args:
            first: row or plane of the image at which the band begins.
            band: (channels, rows, x) or (channels, planes, y, x) of any number type.
        """
        shown = band[:3] if len(band) >= 3 else band[:1]
        if self._sums is None:
            height, width = self.layout.tile_shape
            self._sums = np.zeros((len(self.layout.planes), height, width, len(shown)), np.float32)
            self._bytes = band.dtype == np.uint8 and len(shown) == 3
        if len(self.shape) == 2:
            self._add_rows(0, first, shown)
            return
        for number, plane in enumerate(self.layout.planes):
            if first <= plane < first + shown.shape[1]:
                self._add_rows(number, 0, shown[:, plane - first])

    def _add_rows(self, number: int, first: int, rows: Pixels) -> None:
        step = self.layout.step
        apart = max(1, step // _SAMPLES)
        ys = np.arange(-(-first // apart) * apart, first + rows.shape[1], apart)
        if not ys.size:
            return
        xs = np.arange(0, rows.shape[2], apart)
        samples = rows[:, ys[0] - first :: apart, ::apart].astype(np.float32)
        # Sums of whole numbers are exact, so that the order of the bands makes no difference.
        column_starts, self._columns = _groups(xs // step)
        row_starts, counts = _groups(ys // step)
        sums = np.add.reduceat(samples, column_starts, axis=2)
        sums = np.add.reduceat(sums, row_starts, axis=1)
        boxes = slice(ys[0] // step, ys[-1] // step + 1)
        assert self._sums is not None
        self._sums[number, boxes] += np.moveaxis(sums, 0, 2)
        self._rows[number, boxes] += counts

    def picture(self) -> NDArray[np.uint8]:
        """The thumbnail, (y, x, 3) RGB uint8; white where no band was added.

        Three channels of uint8 are shown as they are, anything else between the percentiles
        0.5 and 99.5; of two channels the first.
        """
        if self._sums is None:
            tiles = np.full((len(self._rows), *self.layout.tile_shape, 3), 255, np.uint8)
            return self.layout.arrange(tiles, 255)
        seen = np.broadcast_to((self._rows > 0)[..., None, None], self._sums.shape)
        samples = np.maximum(self._rows, 1)[..., None, None] * self._columns[:, None]
        averages = self._sums / samples
        finite = averages[seen & np.isfinite(averages)]
        low, high = 0.0, 255.0
        if not self._bytes and finite.size:
            low, high = np.percentile(finite, _WINDOW).tolist()
        scaled = (np.nan_to_num(averages, nan=low) - low) * (255 / (high - low or 1.0))
        tiles = np.where(seen, np.clip(np.rint(scaled), 0, 255), 255).astype(np.uint8)
        return self.layout.arrange(np.broadcast_to(tiles, (*tiles.shape[:3], 3)), 255)


def labels_thumbnail(labels: Labels, longest: int = LONGEST) -> Labels:
    """The labels on the pixels of `Thumbnail(labels.shape, longest).picture()`, (y, x).

    Each pixel has the most frequent label of 9 evenly spaced samples.
    """
    layout = ThumbnailGrid.of(labels.shape, longest)
    ys, xs = (_sample_places(n, layout.step) for n in layout.plane_shape)
    planes = [labels[plane] for plane in layout.planes] if labels.ndim == 3 else [labels]
    tiles = [_most_frequent([plane[np.ix_(y, x)] for y in ys for x in xs]) for plane in planes]
    return layout.arrange(np.stack(tiles), 0)


def _sample_places(length: int, step: int) -> list[NDArray[np.int_]]:
    starts = np.arange(0, length, step)
    offsets = sorted({(2 * number + 1) * step // (2 * _SAMPLES) for number in range(_SAMPLES)})
    return [np.minimum(starts + offset, length - 1) for offset in offsets]


def _most_frequent(samples: list[Labels]) -> Labels:
    best, most = samples[0], np.zeros(samples[0].shape, np.uint8)
    for candidate in samples:
        votes = sum((candidate == sample).astype(np.uint8) for sample in samples)
        better = votes > most
        best, most = np.where(better, candidate, best), np.where(better, votes, most)
    return best


def _groups(boxes: NDArray[np.int_]) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Where each run of equal numbers begins, and how long it is."""
    starts = np.flatnonzero(np.diff(boxes, prepend=boxes[0] - 1))
    return starts, np.diff(starts, append=len(boxes))
