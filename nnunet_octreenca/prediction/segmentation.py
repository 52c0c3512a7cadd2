"""From an open image to its labels in memory: preprocessed, planned, segmented, restored."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.bands import Rows, aligned, spans, split_range
from nnunet_octreenca.errors import InputError, OutOfMemoryError
from nnunet_octreenca.images.cases import Case, list_cases
from nnunet_octreenca.images.open_image import open_channels
from nnunet_octreenca.images.source import NO_INFO, ArraySource, ImageSource
from nnunet_octreenca.inference.ensemble import Ensemble, Progress
from nnunet_octreenca.inference.memory_plan import memory_limit
from nnunet_octreenca.inference.resilience import Overlap, disturbed
from nnunet_octreenca.inference.whole_image import mirrorings
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.planning import Output
from nnunet_octreenca.prediction.doubt import Doubt, DoubtRestorer
from nnunet_octreenca.prediction.memory import planned
from nnunet_octreenca.prediction.options import Options, always_fires, loaded
from nnunet_octreenca.prediction.watched_image import rows_at_a_time
from nnunet_octreenca.preprocessing.case import PreprocessedCase
from nnunet_octreenca.preprocessing.restore import labels_of_logits
from nnunet_octreenca.preprocessing.statistics import ImageStatistics

# A part of an image is this many times as high as the margin that is computed on each side of it.
_MARGINS = 8


class Segmentation:
    """One image, ready to be segmented: its statistics are known and its memory is planned.

    Args:
        image: as its file has it; it stays the caller's to close.
        model: the networks.
        options: how.
        statistics: of the image, where another process has read it for them.

    Attributes:
        prepared: the image as the networks see it.
        passes: networks with their seeds, times mirrored copies.
        plan: of the memory.

    Raises:
        InputError: an image that the model cannot take, or that is damaged.
        OutOfMemoryError: it does not fit even in the smallest bands.
    """

    def __init__(
        self,
        image: ImageSource,
        model: Model,
        options: Options,
        statistics: ImageStatistics | None = None,
    ) -> None:
        self._model, self._options = model, options
        with named(image):
            self._prepare(image, model, options, statistics)

    def _prepare(
        self, image: ImageSource, model: Model, options: Options, statistics: ImageStatistics | None
    ) -> None:
        self.prepared = PreprocessedCase(
            readable(image, model),
            model.preprocessing,
            band=rows_at_a_time(image),
            statistics=statistics,
        )
        self._members = options.members_of(model)
        self._mirror_axes = options.mirror_axes_of(model)
        self.passes = len(self._members) * len(mirrorings(self._mirror_axes))
        # Logits only where they are needed: to be resampled, or for regions.
        regions = model.preprocessing.regions_class_order is not None
        self._needs_logits = self.prepared.layout.resamples or regions
        limit = memory_limit(options.memory, model.device)
        self.plan, self._no_resilience = planned(
            self.prepared.layout, image.shape, model, options, limit
        )

    def run(self, progress: Progress | None = None) -> Pixels:
        """The labels in the image's own grid: (y, x) or (z, y, x), uint8 or int16.

        Args:
            progress: called as `Ensemble.segment` does; first with "total" and all rows.

        Raises:
            InputError: the file is damaged, or the logits are not finite.
        """
        restorer = self.prepared.restorer()
        ensemble = self._ensemble(progress)
        tissue = self._options.tissue
        for number, image in enumerate(self.prepared.images()):
            part = restorer.part(number)
            if self._needs_logits:
                for _, logits in ensemble.logits(image, progress=progress, tissue=tissue):
                    part.add_logits(logits)
            else:
                for _, labels in ensemble.segment(image, progress=progress, tissue=tissue):
                    part.add_labels(labels)
        labels_of_all: Pixels = restorer.finish()
        return labels_of_all

    @property
    def splits(self) -> bool:
        """Whether `rows` gives parts of what `run` gives as a whole."""
        options = self._options
        plain = options.quality is None and not options.tissue
        own_grid = self.prepared.parts == 1 and not self.prepared.layout.resamples
        # A mask is as large as the image, and every process would have to be given it.
        return plain and own_grid and self.prepared.statistics.mask is None

    def bands(self, count: int) -> list[Rows]:
        """About so many parts of the rows, fewer where their margins would be much of them."""
        network, rows = self._model.networks[0], self.prepared.image(0).shape[0]
        spans_of = spans(network.factors)
        margin = sum(a * b for a, b in zip(network.steps[:-1], spans_of, strict=False))
        height = max(-(-rows // count), _MARGINS * margin)
        return split_range(0, rows, aligned(height + spans_of[-1] - 1, spans_of[-1]))

    def coarse(self, progress: Progress | None = None) -> list[NDArray[np.uint8]]:
        """The coarsest level of every pass, for `rows` in this or another process.

        Args:
            progress: as for `run`.

        Raises:
            InputError: the file is damaged, or a state is not finite.
        """
        ensemble = self._ensemble(progress)
        return ensemble.coarse(self.prepared.image(0), self._output, progress=progress)

    def rows(
        self, wanted: Rows, coarse: Sequence[NDArray[np.uint8]], progress: Progress | None = None
    ) -> Pixels:
        """Labels of some rows of what the networks see, the same as in the whole.

        Args:
            wanted: rows (2-D) or planes (3-D).
            coarse: of `coarse`, of the same image, model and options.
            progress: as for `Ensemble.segment`.

        Returns:
            (rows, *axes), as `assembled` takes them.

        Raises:
            InputError: the file is damaged, or the logits are not finite.
            ValueError: `coarse` is of another engine.
        """
        preprocessing = self._model.preprocessing
        results = self._ensemble(None).rows(
            self.prepared.image(0), wanted, coarse, self._output, progress=progress
        )
        parts = [values for _, values in results]
        if self._output is Output.LABELS:
            return np.concatenate(parts)
        dtype = np.dtype(np.uint8 if preprocessing.largest_label <= 255 else np.int16)
        order = preprocessing.regions_class_order
        return np.concatenate([labels_of_logits(part, order, dtype) for part in parts])

    def assembled(self, parts: Iterable[Pixels]) -> Pixels:
        """The labels in the image's own grid, of all rows in order.

        Args:
            parts: of `rows`.
        """
        restorer = self.prepared.restorer()
        part = restorer.part(0)
        for labels in parts:
            part.add_labels(labels)
        whole: Pixels = restorer.finish()
        return whole

    @property
    def _output(self) -> Output:
        return Output.LOGITS if self._needs_logits else Output.LABELS

    def _ensemble(self, progress: Progress | None) -> Ensemble:
        if progress is not None:
            progress("total", self.prepared.parts * self.prepared.image(0).shape[0])
        return Ensemble(
            self._members,
            mirror_axes=self._mirror_axes,
            band_rows=self.plan.band_rows,
            state="float16" if self.plan.half else None,
        )

    def run_with_doubt(
        self, progress: Progress | None = None, temperatures: Sequence[float] | None = None
    ) -> Doubt:
        """The labels that `run` gives, and how sure the model is of them.

        Args:
            progress: as for `run`.
            temperatures: of the heads, for the probabilities; ones if left out.

        Raises:
            InputError: the file is damaged, or the logits are not finite.
        """
        model, options = self._model, self._options
        network = model.networks[0]
        asked = temperatures or [1.0] * network.num_classes
        restorer = DoubtRestorer(
            self.prepared,
            folds=len(model.networks),
            seeds=len(options.seeds_of(model)),
            copies=len(mirrorings(self._mirror_axes)),
            plain=network.constant_background,
            apart=always_fires(model),
            temperatures=asked if options.probabilities else None,
        )
        ensemble = self._ensemble(progress)
        for number, image in enumerate(self.prepared.images()):
            part = restorer.part(number)
            bands = ensemble.logits_of_members(image, progress=progress, tissue=options.tissue)
            for _, values in bands:
                part.add(values)
        doubt = restorer.finish()
        if self._no_resilience:
            return replace(doubt, note=self._no_resilience)
        return replace(doubt, overlap=self._overlap())

    def _overlap(self) -> Overlap:
        """Of the labels of all networks and parts before and after a disturbance."""
        model, total = self._model, Overlap()
        seed = self._options.seeds_of(model)[0]
        for image in self.prepared.images():
            values = torch.from_numpy(image.read(0, image.shape[0]))[None].to(model.device)
            for network in model.networks:
                total += disturbed(network, values, seed)
        return total


@contextmanager
def named(image: ImageSource) -> Iterator[None]:
    """Errors of what is computed from an image begin with the image's name if they lack it."""
    try:
        yield
    except (InputError, OutOfMemoryError) as error:
        name = image.info.name
        if name == NO_INFO.name or name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error


class _InPixels:
    """An image whose spacing is counted in pixels, as nnU-Net does with pictures."""

    def __init__(self, source: ImageSource) -> None:
        self.shape, self.channels, self.dtype = source.shape, source.channels, source.dtype
        self.spacing: tuple[float, ...] = (1.0,) * len(source.shape)
        self.info = source.info
        self.read, self.close = source.read, source.close


def readable(image: ImageSource, model: Model) -> ImageSource:
    """The image as the model can read it: along another than its first axis only in memory."""
    if model.natural:
        image = _InPixels(image)
    if len(image.shape) == 2 or model.preprocessing.transpose_forward[0] == 0:
        return image
    return ArraySource(image.read(0, image.shape[0]), image.spacing)


def segment_file(
    image: Path | str | Sequence[Path | str],
    model: Model | Path | str,
    *,
    mirror: bool = True,
    seeds: Sequence[int] | None = None,
    mpp: float | None = None,
    series: str | None = None,
    tissue: bool = False,
    float16: bool = False,
    memory: int | None = None,
    band_rows: int | None = None,
    device: torch.device | str = "cpu",
    scratch: Path | str | None = None,
    progress: Progress | None = None,
) -> Pixels:
    """Segment one image and return its labels; nothing is written.

    The image is read, normalized and resampled as the model's plans say, segmented in bands that
    fit the memory, and its labels are brought back to the image's own grid.

    Args:
        image: a slide, picture, video or volume; the folder of frames, of a DICOM series or of an
            OME-Zarr image; or several files, one for each channel in the order of the data set.
        model: from `load_model`, the folder TRAINER__PLANS__CONFIGURATION of a training, or a name
            such as "zoo:phantoms".
        mirror: average mirrored copies along the axes that the training allows.
        seeds: of the fire draws; the logits are averaged over them. None for the model's one.
        mpp: microns per pixel to read a slide at; None for its finest level.
        series: SeriesInstanceUID to read, where a folder holds several DICOM series.
        tissue: leave out bands of a slide without tissue; their label is 0.
        float16: keep states in float16, which halves them and changes some labels.
        memory: bytes that the process may use in all; None for what is free.
        band_rows: rows (2-D) or planes (3-D) of a band; None for the planner's choice. It does
            not change the labels of a single pass.
        device: where the networks go, if `model` is a folder.
        scratch: folder for a video's decoded frames; the system's if left out.
        progress: called with a stage and a number of rows: "total" once, then "read" and "segment".

    Returns:
        Labels in the shape of the image: (y, x), (z, y, x), or (frame, y, x) of a video; uint8, or
        int16 above 255 classes. A slide at `mpp` has the shape of that resolution.

    Raises:
        InputError: the image or an option cannot be used, or the folder is no model's.
        CheckpointError: the model's weights are damaged.
        PlansError: the plans are another network's.
        OutOfMemoryError: the image does not fit even in the smallest bands.
        EnvironmentMismatchError: the library that reads such files is not installed.

    Examples:
        >>> labels = segment_file("image.png", "model", mirror=False)
        >>> labels.shape, labels.dtype
        ((48, 40), dtype('uint8'))
    """
    options = Options(mirror, seeds, mpp, series, tissue, float16, memory, band_rows)
    model = loaded(model, device)
    if isinstance(image, (str, Path)):
        files = only_case(Path(image), model).files
    else:
        files = tuple(Path(file) for file in image)
    source = open_channels(files, channels=model.channels, mpp=mpp, scratch=scratch, series=series)
    try:
        return Segmentation(source, model, options).run(progress)
    finally:
        source.close()


def only_case(path: Path, model: Model) -> Case:
    """The one case of a file or folder.

    Raises:
        InputError: nothing readable is there, or several cases are.
    """
    cases = list_cases(path, model.channels, frames=model.preprocessing.dimension == 3)
    if len(cases) > 1:
        raise InputError(
            f"{path} holds {len(cases)} cases ({cases[0].name}, {cases[1].name}, ...); give one of "
            f"them, or use `predict`, which segments them all"
        )
    return cases[0]
