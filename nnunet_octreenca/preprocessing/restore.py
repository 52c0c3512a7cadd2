"""Restores labels to the image's own grid, from the network's logits band by band."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.preprocessing.crop import box_slices
from nnunet_octreenca.preprocessing.geometry import CaseGeometry
from nnunet_octreenca.preprocessing.resample import Resampler


def labels_of_logits(
    logits: NDArray[np.float32], regions_class_order: Sequence[int] | None, dtype: np.dtype
) -> Pixels:
    """Labels from logits, by nnU-Net's rules.

    Args:
        logits: (num_classes, *spatial).
        regions_class_order: the label of each region, a later one covering an earlier one where
            its logit is above 0, that is its probability above one half. None: the class of the
            largest logit, the first of equal ones.
        dtype: of the labels.

    Returns:
        (*spatial).

    >>> labels_of_logits(np.array([[0, 1, 2], [1, 1, 0]], "f4"), None, np.dtype("u1"))
    array([1, 0, 0], dtype=uint8)
    """
    labels = np.zeros(logits.shape[1:], dtype)
    if regions_class_order is not None:
        for logit, label in zip(logits, regions_class_order, strict=True):
            labels[logit > 0] = label
        return labels
    # Seven (14 classes) to 17 times (two) as fast as argmax along the first axis.
    largest = logits[0].copy()
    for label, logit in enumerate(logits[1:], 1):
        np.maximum(labels, np.multiply(logit > largest, label, dtype=dtype), out=labels)
        np.maximum(largest, logit, out=largest)
    return labels


def image_array(
    layout: CaseGeometry, dimension: int, dtype: np.dtype, heads: tuple[int, ...] = ()
) -> tuple[Pixels, Pixels]:
    """Zeros in the grid of an image's file, and a view of what the network sees of it.

    Args:
        layout: of the case.
        dimension: axes of the image in its file.
        dtype: of the array.
        heads: axes in front of the image's.

    Returns:
        (*heads, *image shape) in the file's axes; the view is (*heads, *box) in the plans' axes.
    """
    preprocessing, lead = layout.preprocessing, len(heads)
    shape = [layout.shape[axis] for axis in preprocessing.transpose_backward]
    whole = np.zeros((*heads, *shape), dtype)
    # A view in the plans' axes: what is written into it lies where the file wants it.
    forward = (*range(lead), *(lead + axis for axis in preprocessing.transpose_forward))
    inside = (*(slice(None) for _ in heads), *box_slices(layout.box))
    view = whole.transpose(forward)[inside]
    return (whole if dimension == 3 else whole.squeeze(lead)), view


class Restorer:
    """The labels of a whole image, filled part by part.

    The array of labels is all that grows with the image: 1 byte a cell, 2 above 255 labels. What
    was cropped away is background.

    Args:
        layout: of the case.
        dimension: axes of the image in its file.

    Attributes:
        needs_logits: labels of the network's own grid will not do, because it is not the image's.

    Raises:
        PlansError: labels above 32,767.
    """

    def __init__(self, layout: CaseGeometry, *, dimension: int) -> None:
        preprocessing = layout.preprocessing
        if preprocessing.largest_label > 32767:
            raise PlansError(
                f"the data set's label {preprocessing.largest_label} is above 32767, the highest "
                "that can be written; renumber its labels"
            )
        dtype = np.uint8 if preprocessing.largest_label <= 255 else np.int16
        self._labels, self._box = image_array(layout, dimension, np.dtype(dtype))
        self._layout = layout
        self._open: set[int] = set(range(layout.parts))
        self.needs_logits = layout.resamples

    def part(self, part: int = 0) -> "PartRestorer":
        """The receiver of a part's bands."""
        layout = self._layout
        target = self._box if layout.preprocessing.dimension == 3 else self._box[part]
        return PartRestorer(layout, target, done=lambda: self._open.discard(part))

    def finish(self) -> Pixels:
        """The labels in the file's shape and axes.

        Raises:
            ValueError: some bands of some part are still missing.
        """
        if self._open:
            raise ValueError(f"part {min(self._open)} of {self._layout.parts} has bands missing")
        return self._labels


class PartRestorer:
    """Receives the network's output for one part, rows or planes in ascending order.

    Bands may be of any height and may end anywhere: the labels are the same. Made by
    `Restorer.part`.
    """

    def __init__(self, layout: CaseGeometry, target: Pixels, *, done: Callable[[], object]) -> None:
        preprocessing = layout.preprocessing
        self._heads, self._order = preprocessing.num_classes, preprocessing.regions_class_order
        self._padded, self._inside = layout.padded, layout.inside
        self._target, self._done = target, done
        self._resampler = layout.logits_resampler()
        self._taken = 0
        self._chunks: dict[int, NDArray[np.float32]] = {}
        self._filling: NDArray[np.float32] | None = None
        self._filled = self._block = 0

    def add_logits(self, logits: NDArray[np.float32]) -> None:
        """Add the next band.

        Args:
            logits: (num_classes, rows or planes, ...) as wide as the prepared image.

        Raises:
            ValueError: another shape, or more rows than the prepared image has.
        """
        at, own = self._next(logits, (self._heads,))
        if self._resampler is None:
            self.put(at, own)
        else:
            self._resample(self._resampler, own)
        self._finish()

    def add_labels(self, labels: Pixels) -> None:
        """Add the next band as labels, where the network's grid is the image's own.

        Args:
            labels: (rows or planes, ...) as wide as the prepared image.

        Raises:
            ValueError: another shape, more rows than the prepared image has, or logits are needed.
        """
        if self._resampler is not None:
            raise ValueError("labels cannot be resampled; give logits")
        at, own = self._next(labels, ())
        self._target[at : at + own.shape[0]] = own
        self._finish()

    def _next(self, band: Pixels, heads: tuple[int, ...]) -> tuple[int, Pixels]:
        """The band without padding, and the row of the resampled box that it begins at."""
        axis = len(heads)
        rows = band.shape[axis] if band.ndim > axis else 0
        if band.shape != (*heads, rows, *self._padded[1:]) or self._taken + rows > self._padded[0]:
            raise ValueError(
                f"a band of shape {band.shape} after {self._taken} rows is not one of "
                f"{(*heads, *self._padded)}"
            )
        own = self._inside[0]
        first = min(max(own.start - self._taken, 0), rows)
        end = max(min(own.stop - self._taken, rows), first)
        at = max(self._taken - own.start, 0)
        self._taken += rows
        inside = (*(slice(None) for _ in heads), slice(first, end), *self._inside[1:])
        return at, band[inside]

    def put(self, first: int, logits: NDArray[np.float32]) -> None:
        """Take the next rows or planes (num_classes, rows, ...) in the grid of the image's box."""
        labels = labels_of_logits(logits, self._order, self._target.dtype)
        self._target[first : first + logits.shape[1]] = labels

    def _finish(self) -> None:
        if self._taken == self._padded[0]:
            self._done()

    def _resample(self, resampler: Resampler, logits: NDArray[np.float32]) -> None:
        """Collect rows into chunks and compute every block whose chunks are complete."""
        used = 0
        while used < logits.shape[1]:
            index, at = divmod(self._filled, resampler.chunk_rows)
            rows = min(resampler.chunk_rows, resampler.shape[0] - index * resampler.chunk_rows)
            if self._filling is None:
                shape = (self._heads, rows, *resampler.shape[1:])
                self._filling = np.empty(shape, np.float32)
            taken = min(rows - at, logits.shape[1] - used)
            self._filling[:, at : at + taken] = logits[:, used : used + taken]
            used += taken
            self._filled += taken
            if at + taken == rows:
                self._chunks[index] = resampler.chunk(index, self._filling)
                self._filling = None
                self._make_blocks(resampler, index + 1)

    def _make_blocks(self, resampler: Resampler, complete: int) -> None:
        while self._block < resampler.blocks and resampler.needs(self._block)[1] <= complete:
            needed = range(*resampler.needs(self._block))
            block = resampler.block(self._block, [self._chunks[index] for index in needed])
            self.put(resampler.rows(self._block)[0], block)
            self._block += 1
            if self._block < resampler.blocks:
                oldest = resampler.needs(self._block)[0]
                self._chunks = {k: chunk for k, chunk in self._chunks.items() if k >= oldest}


class PartLogits(PartRestorer):
    """Receives bands as `PartRestorer` does, and keeps logits in the image's grid until taken.

    Args:
        layout: of the case.
    """

    def __init__(self, layout: CaseGeometry) -> None:
        super().__init__(layout, np.empty(0, np.uint8), done=lambda: None)
        self._ready: list[tuple[int, NDArray[np.float32]]] = []

    def put(self, first: int, logits: NDArray[np.float32]) -> None:
        """Keep the next rows or planes."""
        self._ready.append((first, logits))

    def take(self) -> list[tuple[int, NDArray[np.float32]]]:
        """First row or plane within the box, and logits (num_classes, rows, ...), in order."""
        ready, self._ready = self._ready, []
        return ready
