"""An image as network input, band by band: cropped, normalized, resampled and padded."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError, PlansError
from nnunet_octreenca.images.source import NO_INFO, ImageSource
from nnunet_octreenca.preprocessing.crop import Box, box_slices
from nnunet_octreenca.preprocessing.geometry import CaseGeometry, oriented, spacings
from nnunet_octreenca.preprocessing.normalization import Normalizer, normalized_bounds, normalizers
from nnunet_octreenca.preprocessing.plan import PreprocessingPlan
from nnunet_octreenca.preprocessing.resample import Resampler
from nnunet_octreenca.preprocessing.restore import Restorer
from nnunet_octreenca.preprocessing.statistics import (
    ImageStatistics,
    RequiredStatistics,
    collect_statistics,
)


def required_statistics(
    source: ImageSource, preprocessing: PreprocessingPlan
) -> RequiredStatistics:
    """Statistics that preprocessing requires before the first band.

    The nonzero box is always among them. If nothing else is (`only_the_box`), reading the borders
    of an image of integers is enough.

    Args:
        source: in the plans' axes.
        preprocessing: of the model.

    Raises:
        InputError: channels that the model was not trained with, or a 2-D image for a 3-D one.
    """
    schemes = preprocessing.normalization_schemes
    if source.channels != len(schemes):
        raise InputError(
            f"the image has {source.channels} channel(s), but the model was trained with "
            f"{len(schemes)}"
        )
    spacing, target = spacings(source, preprocessing)
    rule = preprocessing.data
    clipped = rule.resamples and rule.overshoots and spacing != target
    zscore = [scheme == "ZScoreNormalization" for scheme in schemes]
    bytes_ = source.dtype in (np.dtype(np.uint8), np.dtype(np.bool_))
    return RequiredStatistics(
        moments=zscore,
        extremes=[
            clipped
            or scheme == "RescaleTo01Normalization"
            or (scheme == "RGBTo01Normalization" and not bytes_)
            for scheme in schemes
        ],
        masked=[z and m for z, m in zip(zscore, preprocessing.use_mask_for_norm, strict=True)],
        slices=rule.separate_axis(spacing, target) if clipped else None,
    )


class PreprocessedCase:
    """An image prepared for the network, and the inverse for its labels.

    A 3-D network, or a 2-D one and a 2-D image, sees one part, a 2-D network one part for each
    plane of the box around a volume::

        case = PreprocessedCase(source, preprocessing, band=64)
        restorer = case.restorer()
        for part in range(case.parts):
            image, labels = case.image(part), restorer.part(part)
            for first in range(0, image.shape[0], rows):
                band = image.read(first, min(first + rows, image.shape[0]))
                labels.add_logits(...)  # (num_classes, *band.shape[1:])
        segmentation = restorer.finish()

    Args:
        source: the image in the file's axes; it stays the caller's to close.
        preprocessing: of the model.
        band: rows (2-D) or planes (3-D) that are read at a time for the statistics.
        statistics: of the same image, where they are known; None to read it for them.

    Attributes:
        layout: where everything lies.
        statistics: of the image.
        parts: how many images the network sees.
        dimension: axes of the image in its file.

    Raises:
        InputError: an image that the model cannot take, or one with NaN or infinite voxels.
        PlansError: plans that lack a value or that cannot be followed in bands.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocessing: PreprocessingPlan,
        *,
        band: int,
        statistics: ImageStatistics | None = None,
    ) -> None:
        _check(preprocessing)
        self._source = oriented(source, preprocessing.transpose_forward)
        self.dimension = len(source.shape)
        needs = required_statistics(self._source, preprocessing)
        if statistics is None:
            statistics = collect_statistics(self._source, needs, band=band)
        self.statistics = statistics
        self.layout = CaseGeometry.of(self._source, preprocessing, self.statistics.box)
        self.parts = self.layout.parts
        self._normalizers = normalizers(preprocessing, self.statistics)
        self._bounds = None
        if all(needs.extremes) and preprocessing.data.overshoots:
            self._bounds = normalized_bounds(self.statistics, self._normalizers)

    def image(self, part: int = 0) -> "PreprocessedImage":
        """Network input of a part; nothing is read yet."""
        layout = self.layout
        source, box, mask = self._source, self.statistics.box, self.statistics.mask
        lead = 3 - layout.preprocessing.dimension
        if lead:
            if len(source.shape) == 3:
                source = _Plane(source, box[0][0] + part)
            box, mask = box[1:], mask if mask is None else mask[part]
        return PreprocessedImage(
            source,
            box=box,
            mask=mask,
            normalizers=self._normalizers,
            resampler=layout.data_resampler(part, self._bounds),
            padded=layout.padded,
            inside=layout.inside,
            spacing=layout.target[lead:],
        )

    def images(self) -> Iterator["PreprocessedImage"]:
        """Iterate over all parts."""
        return (self.image(part) for part in range(self.parts))

    def restorer(self) -> Restorer:
        """Restores the labels of all parts to the image's own grid and axes."""
        return Restorer(self.layout, dimension=self.dimension)


def _check(preprocessing: PreprocessingPlan) -> None:
    if preprocessing.data.resamples and not preprocessing.probabilities.resamples:
        raise PlansError("the plans resample images, but not the logits back to them")
    if preprocessing.probabilities.overshoots:
        raise PlansError(
            "the plans resample logits with order 3, which clips to the extremes of the whole and "
            "cannot be done in bands; set order 1 in resampling_fn_probabilities_kwargs, which is "
            "nnU-Net's default"
        )


class _Plane:
    """One plane of a volume, read on demand."""

    def __init__(self, source: ImageSource, plane: int) -> None:
        self._source, self._at = source, plane
        self._values: Pixels | None = None
        self.shape: tuple[int, ...] = tuple(source.shape[1:])
        self.channels, self.dtype = source.channels, source.dtype
        self.spacing: tuple[float, ...] = tuple(source.spacing[1:])
        self.info = NO_INFO

    def read(self, first: int, end: int) -> Pixels:
        if self._values is None:
            self._values = self._source.read(self._at, self._at + 1)[:, 0]
        return self._values[:, first:end]

    def close(self) -> None:
        self._values = None


class PreprocessedImage:
    """An `ImageSource` of a preprocessed image, equal to nnU-Net's preprocessor's output.

    Every band holds the same bits, however it is read. Resampling works in blocks of 64 rows or
    8 planes, each made of the rows or planes of the source that it needs (for an order-3 spline
    those within 16 cells), which are held, as are the outermost two blocks of the last band:
    ascending bands read and make everything once if they overlap by a block at most. One thread
    reads at a time.

    Args:
        source: 2-D or 3-D like the network, in the plans' axes.
        box: its part that is not cropped away.
        mask: of the box; None unless a normalizer wants it.
        normalizers: one a channel.
        resampler: from the box to `inside`; None where they have the same cells.
        padded: cells per axis, zeros around `inside`.
        inside: where the image lies in them.
        spacing: mm per axis.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        box: Box,
        mask: NDArray[np.bool_] | None,
        normalizers: Sequence[Normalizer],
        resampler: Resampler | None,
        padded: tuple[int, ...],
        inside: tuple[slice, ...],
        spacing: tuple[float, ...],
    ) -> None:
        self.shape, self.spacing, self.info = padded, spacing, NO_INFO
        self.channels, self.dtype = source.channels, np.dtype(np.float32)
        self._source, self._box, self._mask = source, box, mask
        self._normalizers, self._resampler, self._inside = normalizers, resampler, inside
        self._chunks: dict[int, NDArray[np.float32]] = {}
        self._blocks: dict[int, NDArray[np.float32]] = {}

    def read(self, first: int, end: int) -> NDArray[np.float32]:
        """Rows or planes `first` to `end - 1`: (channels, end - first, *shape[1:]), contiguous.

        Raises:
            InputError: the file is damaged there.
        """
        own = self._inside[0]
        begin, stop = max(first, own.start), min(end, own.stop)
        shape = (self.channels, end - first, *self.shape[1:])
        if begin >= stop:
            return np.zeros(shape, np.float32)
        values = self._own(begin - own.start, stop - own.start)
        if values.shape == shape:
            return np.ascontiguousarray(values)
        band = np.zeros(shape, np.float32)
        inside = (slice(None), slice(begin - first, stop - first), *self._inside[1:])
        band[inside] = values
        return band

    def close(self) -> None:
        """Drop cached rows; the file stays open."""
        self._chunks.clear()
        self._blocks.clear()
        if isinstance(self._source, _Plane):
            self._source.close()

    def _own(self, first: int, end: int) -> NDArray[np.float32]:
        """Rows or planes of the resampled box."""
        resampler = self._resampler
        if resampler is None:
            return self._normalized(first, end)
        shape = (self.channels, end - first, *resampler.target[1:])
        values = np.empty(shape, np.float32)
        indices = range(first // resampler.block_rows, -(-end // resampler.block_rows))
        held = {k: block for k, block in self._blocks.items() if k in indices}
        # The next band may begin in the last two blocks, or end in the first two.
        kept = {*indices[:2], *indices[-2:]}
        for index in indices:
            if index not in held:
                held[index] = self._block(resampler, index)
            begin, stop = resampler.rows(index)
            own = slice(max(first, begin) - begin, min(end, stop) - begin)
            values[:, max(begin - first, 0) : stop - first] = held[index][:, own]
            if index not in kept:
                del held[index]
        self._blocks = held
        return values

    def _block(self, resampler: Resampler, index: int) -> NDArray[np.float32]:
        first, end = resampler.needs(index)
        self._chunks = {k: chunk for k, chunk in self._chunks.items() if first <= k < end}
        for k in range(first, end):
            if k not in self._chunks:
                rows = k * resampler.chunk_rows
                stop = min(rows + resampler.chunk_rows, resampler.shape[0])
                self._chunks[k] = resampler.chunk(k, self._normalized(rows, stop))
        return resampler.block(index, [self._chunks[k] for k in range(first, end)])

    def _normalized(self, first: int, end: int) -> NDArray[np.float32]:
        """Rows or planes of the box, normalized."""
        start = self._box[0][0]
        band = self._source.read(start + first, start + end)
        inner = (slice(None), slice(None), *box_slices(self._box[1:]))
        values = np.array(band[inner], dtype=np.float32, order="C")
        mask = None if self._mask is None else self._mask[first:end]
        for channel, normalizer in zip(values, self._normalizers, strict=True):
            normalizer(channel, mask)
        return values
