"""A slide's labels, window by window: from a mask of any resolution, or from polygons."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.datasets.classes import Classes
from nnunet_octreenca.datasets.qupath_regions import read_regions
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.orientation import note
from nnunet_octreenca.images.pyramid import SlideRegions
from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from shapely import Polygon, STRtree

BAND = 256  # rows, also the tiles that labels are written in
LOCATIONS = 2000  # foreground pixels that are remembered of every class
_PER_BAND = 256

Shape = tuple[int, int]


class SlideLabels(Protocol):
    """Labels of a slide at the resolution it is worked at.

    Attributes:
        shape: rows and columns.
        notes: sentences about what was left out; asking for them may read the file.
    """

    shape: Shape

    @property
    def notes(self) -> tuple[str, ...]: ...

    def window(self, y: int, x: int, height: int, width: int) -> NDArray[np.uint8]:
        """(height, width) labels.

        Raises:
            InputError: the mask is damaged there, or holds a value that is no class.
        """
        ...


def open_labels(
    mask: Path,
    shape: Shape,
    downsample: float,
    classes: Classes,
    *,
    corner: tuple[int, int] = (0, 0),
) -> SlideLabels:
    """The labels of a slide.

    Args:
        mask: .geojson, or anything that `SlideRegions` reads.
        shape: rows and columns of the slide at the resolution it is worked at.
        downsample: pixels of the slide's finest level that one pixel there spans.
        classes: of the mask's values; of the polygons' class names.
        corner: pixel (x, y) of the finest level that QuPath's coordinates begin at.

    Raises:
        InputError: the mask's size does not fit the slide's.
    """
    if mask.suffix.lower() in (".geojson", ".json"):
        return PolygonLabels(mask, shape, downsample, classes, corner)
    return MaskLabels(mask, shape, classes)


class MaskLabels:
    """A mask as a picture, which may be some whole times finer or coarser than wanted."""

    def __init__(self, mask: Path, shape: Shape, classes: Classes) -> None:
        self.shape = shape
        self.classes = classes
        self.mask = SlideRegions(mask, stored=True)
        self.notes = note("mask", self.mask.orientation, "file's")
        fitting = [
            (level, own)
            for level, own in enumerate(self.mask.shapes)
            if _fits(own, shape) or _fits(shape, own)
        ]
        if not fitting:
            sizes = ", ".join(f"{rows} x {columns}" for rows, columns in self.mask.shapes)
            raise InputError(
                f"{mask} has {sizes} pixels; that does not fit the {shape[0]} x {shape[1]} of its "
                f"slide at the chosen resolution, nor a whole multiple or part of it"
            )
        self.level, self.own = min(fitting, key=lambda one: abs(one[1][0] - shape[0]))

    def window(self, y: int, x: int, height: int, width: int) -> NDArray[np.uint8]:
        rows = _nearest(y, height, self.shape[0], self.own[0])
        columns = _nearest(x, width, self.shape[1], self.own[1])
        top, left = rows[0], columns[0]
        values = self.mask.region(self.level, top, left, rows[-1] - top + 1, columns[-1] - left + 1)
        values = values[rows - top][:, columns - left]
        return self.classes.apply(values, self.mask.path)


def _fits(fine: Shape, coarse: Shape) -> bool:
    """Whether one size is a whole multiple of the other, but for a last pixel cut or added."""
    factor = max(1, round(fine[0] / coarse[0]))
    return all(abs(f - factor * c) <= factor for f, c in zip(fine, coarse, strict=True))


def _nearest(first: int, count: int, wanted: int, own: int) -> NDArray[np.intp]:
    """Which of `own` pixels along an axis `count` of `wanted` pixels from `first` on take.

    Levels of a pyramid begin at the same corner; only the last pixel may be cut.
    """
    places = np.arange(first, first + count)
    if own >= wanted:
        factor = max(1, round(own / wanted))
        places = places * factor + factor // 2
    else:
        places = places // max(1, round(wanted / own))
    return np.minimum(places, own - 1)


class PolygonLabels:
    """GeoJSON as QuPath exports it: coordinates in pixels of the slide's finest level.

    They begin at `corner`, where QuPath cuts a slide to its bounds. `read_regions` says which
    region is which class. Later regions lie over earlier ones.
    """

    def __init__(
        self,
        file: Path,
        shape: Shape,
        downsample: float,
        classes: Classes,
        corner: tuple[int, int] = (0, 0),
    ) -> None:
        self.shape = shape
        self.file, self.downsample = file, downsample
        self.labels = classes.labels
        self.corner = corner

    @cached_property
    def _regions(self) -> tuple[list[tuple["Polygon", int]], "STRtree", tuple[str, ...]]:
        shapely = import_optional("shapely", "slides")
        polygons, notes = read_regions(self.file, self.labels)
        return polygons, shapely.STRtree([polygon for polygon, _ in polygons]), notes

    @property
    def notes(self) -> tuple[str, ...]:
        return self._regions[2]

    def window(self, y: int, x: int, height: int, width: int) -> NDArray[np.uint8]:
        features = import_optional("rasterio.features", "slides")
        left, top = x * self.downsample - self.corner[0], y * self.downsample - self.corner[1]
        transform = import_optional("rasterio.transform", "slides").Affine(
            self.downsample, 0, left, 0, self.downsample, top
        )
        polygons, tree, _ = self._regions
        box = import_optional("shapely", "slides").box(
            *(transform * (0, 0)), *(transform * (width, height))
        )
        here = [polygons[n] for n in sorted(tree.query(box))]
        if not here:
            return np.zeros((height, width), np.uint8)
        drawn: NDArray[np.uint8] = features.rasterize(
            here, out_shape=(height, width), transform=transform, dtype=np.uint8
        )
        return drawn


def label_bands(labels: SlideLabels) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """All labels from top to bottom: (first row, (rows, columns))."""
    rows, columns = labels.shape
    for first in range(0, rows, BAND):
        yield first, labels.window(first, 0, min(BAND, rows - first), columns)


def sample_locations(
    labels: SlideLabels, foreground: list[int], generator: np.random.Generator
) -> dict[int, NDArray[np.intp]]:
    """Where each class lies, from one pass over the mask that never holds more than a band.

    Args:
        labels: of the slide.
        foreground: labels to look for.
        generator: makes the draw repeatable.

    Returns:
        For every label that is there, `LOCATIONS` rows of (y, x), drawn with repetition; every
        pixel of the class about as likely as any other.
    """
    found: dict[int, list[tuple[int, NDArray[np.intp]]]] = {label: [] for label in foreground}
    for first, band in label_bands(labels):
        counts = np.bincount(band.ravel(), minlength=max(foreground) + 1)
        for label in foreground:
            if counts[label]:
                places = np.flatnonzero(band.ravel() == label)
                drawn = generator.choice(places, min(_PER_BAND, len(places)), replace=False)
                y, x = np.unravel_index(drawn, band.shape)
                found[label].append((len(places), np.stack([y + first, x], 1)))
    locations = {}
    for label, parts in found.items():
        if parts:
            sizes = np.array([size for size, _ in parts], dtype=float)
            of_band = generator.choice(len(parts), LOCATIONS, p=sizes / sizes.sum())
            locations[label] = np.stack(
                [parts[n][1][generator.integers(len(parts[n][1]))] for n in of_band]
            )
    return locations


def write_labels(path: Path, labels: SlideLabels) -> None:
    """Write all labels as a tiled TIFF, band by band."""

    def tiles() -> Iterator[NDArray[np.uint8]]:
        for _, band in label_bands(labels):
            padded = np.zeros((BAND, -(-band.shape[1] // BAND) * BAND), np.uint8)
            padded[: band.shape[0], : band.shape[1]] = band
            yield from padded.reshape(BAND, -1, BAND).transpose(1, 0, 2)

    import_optional("tifffile", "slides").imwrite(
        path,
        tiles(),
        shape=labels.shape,
        dtype=np.uint8,
        tile=(BAND, BAND),
        compression="zlib",
        photometric="minisblack",
        metadata=None,
    )
