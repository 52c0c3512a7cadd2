"""Foreground locations for oversampling: the samples nnU-Net would draw, in less memory.

nnU-Net lists the coordinates of all foreground pixels (32 bytes each), sorts and copies them, and
then picks one in a hundred: up to 96 bytes a pixel. Here labels are counted in bands, the picks
are drawn as ranks ("the 4,711th pixel of label 2") by the same generator, and only picked pixels
get coordinates. What remains is the permutation that nnU-Net's draw is made of, 4 bytes for each
pixel of the largest class.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_BAND = 1 << 22  # pixels per band


def sample_foreground_locations(
    seg: NDArray,
    classes_or_regions: Sequence[int | Sequence[int]],
    seed: int = 1234,
    verbose: bool = False,
    min_num_samples: int = 10000,
    min_percent_coverage: float = 0.01,
) -> dict[int | tuple[int, ...], NDArray[np.int64] | list]:
    """What `DefaultPreprocessor._sample_foreground_locations` returns, in the same order.

    Args:
        seg: (1, z, y, x) labels.
        classes_or_regions: labels, or several labels that are one region.
        seed: of the draws.
        verbose: print how many are drawn.
        min_num_samples: of each class, where it has so many pixels.
        min_percent_coverage: part of the pixels that is drawn of a large class.

    Returns:
        for each class or region (as a tuple) the locations, (n, 4): channel (0), z, y, x; an
        empty list where it has no pixels.
    """
    random = np.random.RandomState(seed)
    regions = [
        tuple(map(int, entry)) if isinstance(entry, Sequence) else (int(entry),)
        for entry in classes_or_regions
    ]
    counts = _counts(seg, sorted({label for labels in regions for label in labels}))
    locations: dict[int | tuple[int, ...], NDArray[np.int64] | list] = {}
    for entry, labels in zip(classes_or_regions, regions, strict=True):
        key = labels if isinstance(entry, Sequence) else labels[0]
        totals = [int(counts[label].sum()) for label in labels]
        total = sum(totals)
        if total == 0:
            locations[key] = []
            continue
        wanted = max(min(min_num_samples, total), int(np.ceil(total * min_percent_coverage)))
        ranks = _draw(random, total, wanted)
        found = np.empty((wanted, 4), dtype=np.int64)
        first = 0
        for label, here in zip(labels, totals, strict=True):
            mine = np.flatnonzero((ranks >= first) & (ranks < first + here))
            found[mine] = _locations(seg, label, counts[label], ranks[mine] - first)
            first += here
        locations[key] = found
        if verbose:
            print(entry, wanted)
    return locations


def _plane_rows(seg: NDArray) -> Iterator[tuple[int, int, NDArray]]:
    """Bands of one plane at a time, in pixel order: z, first row, labels."""
    rows = max(1, _BAND // max(1, seg.shape[3]))
    for z in range(seg.shape[1]):
        for y in range(0, seg.shape[2], rows):
            yield z, y, seg[0, z, y : y + rows]


def _counts(seg: NDArray, labels: Sequence[int]) -> dict[int, NDArray[np.int64]]:
    """Count each label's pixels in each band."""
    bands = [
        [np.count_nonzero(band == label) for label in labels] for _, _, band in _plane_rows(seg)
    ]
    table = np.array(bands, dtype=np.int64).reshape(len(bands), len(labels))
    return dict(zip(labels, table.T, strict=True))


def _draw(random: np.random.RandomState, total: int, wanted: int) -> NDArray[np.int64]:
    """`random.choice(total, wanted, replace=False)` with 4 bytes per pixel instead of 8."""
    order = np.arange(total, dtype=np.uint32 if total <= 1 << 32 else np.int64)
    random.shuffle(order)
    return order[:wanted].astype(np.int64)


def _locations(
    seg: NDArray, label: int, counts: NDArray[np.int64], ranks: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Locations (n, 4) of a label's pixels, given their ranks, in the order of the ranks."""
    order = np.argsort(ranks)
    ascending = ranks[order]
    ends = np.cumsum(counts)
    splits = np.searchsorted(ascending, ends)
    found = np.zeros((len(ranks), 4), dtype=np.int64)
    start = 0
    for (z, y, band), first, end in zip(_plane_rows(seg), ends - counts, splits, strict=True):
        if end > start:
            pixels = np.flatnonzero(band == label)[ascending[start:end] - first]
            rows, columns = np.divmod(pixels, band.shape[1])
            places = np.stack([np.full_like(rows, z), y + rows, columns], 1)
            found[order[start:end], 1:] = places
        start = end
    return found
