"""One case of `nnunet_octreenca predict`, from its file to its files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError, OutputError
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.images.open_image import kind_of, open_channels
from nnunet_octreenca.images.source import ArraySource, ImageSource
from nnunet_octreenca.inference.ensemble import Ensemble, Member, Progress
from nnunet_octreenca.inference.memory_plan import MemoryPlan, memory_limit, plan_memory
from nnunet_octreenca.inference.whole_image import mirrorings
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.labels.formats import (
    LabelInfo,
    check_formats,
    check_labels,
    default_formats,
    output_path,
    write,
)
from nnunet_octreenca.labels.overlay import ENDING as OVERLAY_ENDING
from nnunet_octreenca.labels.overlay import label_shares, write_overlay
from nnunet_octreenca.labels.thumbnail import Thumbnail, labels_thumbnail
from nnunet_octreenca.preprocessing.case import PreprocessedCase
from nnunet_octreenca.resources import free_disk

# Pixels of a 2-D image from which it counts as a slide: it gets a pyramid, not a PNG.
_SLIDE_PIXELS = 50_000_000
# Bytes read at a time where nothing is computed: statistics and overlay.
_READ_BYTES = 64 << 20


@dataclass(frozen=True)
class Job:
    """What holds for all cases of a run.

    Attributes:
        model: the networks.
        output: folder for all results.
        formats: of `labels.formats`; None for the kind's usual ones.
        mirror: test-time augmentation.
        seeds: of the fire draws; the result is the mean over them.
        mpp: microns per pixel to read slides at.
        series: SeriesInstanceUID to read, of folders with several DICOM series.
        tissue: leave out bands without tissue.
        half: states in float16.
        memory: bytes that may be used in all; None for what is free.
        band_rows: rows or planes of a band; None for the planner's choice.
        overwrite: replace results.
        device: that the networks are on.
    """

    model: Model
    output: Path
    formats: tuple[str, ...] | None = None
    mirror: bool = True
    seeds: tuple[int, ...] = (0,)
    mpp: float | None = None
    series: str | None = None
    tissue: bool = False
    half: bool = False
    memory: int | None = None
    band_rows: int | None = None
    overwrite: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def members(self) -> list[Member]:
        """Every network with every seed."""
        return [Member(network, seed) for network in self.model.networks for seed in self.seeds]

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Spatial axes that are mirrored."""
        return (self.model.mirror_axes or ()) if self.mirror else ()


class Stages:
    """Seconds spent in each stage of a case."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began, self._name = perf_counter(), ""

    def begin(self, name: str) -> None:
        """The stage before ends here."""
        now = perf_counter()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._began
        self._began, self._name = now, name


def kind_of_case(case: Case, source: ImageSource) -> str:
    """ "slide", "picture", "video" or "volume", which formats depend on."""
    if len(source.shape) == 3:
        video = hasattr(source, "fps") or hasattr(source, "files")
        return "video" if video else "volume"
    if kind_of(case.files[0]) == "picture" and np.prod(source.shape) < _SLIDE_PIXELS:
        return "picture"
    return "slide"


def formats_of(job: Job, case: Case, kind: str) -> tuple[str, ...]:
    """The formats of a case.

    Raises:
        OutputError: one does not fit the kind.
    """
    formats = job.formats or default_formats(kind, case.files[0])
    check_formats(formats, kind)
    return formats


def expected_outputs(stem: Path, formats: Sequence[str]) -> list[Path]:
    """All files and folders that a case will have, the overlay last."""
    paths = [output_path(name, stem) for name in formats]
    return [*paths, stem.with_name(stem.name + OVERLAY_ENDING)]


def check_outputs(job: Job, paths: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Refuse to overwrite.

    Raises:
        OutputError: a result is there already, or would replace the image itself.
    """
    for path in paths:
        if any(path.resolve() == Path(name).resolve() for name in inputs):
            raise OutputError(f"{path} is the image itself; give another folder with -o")
        if path.exists() and not job.overwrite:
            raise OutputError(
                f"{path} exists already; --overwrite replaces it, --continue leaves finished cases"
            )


def segment_case(
    job: Job, case: Case, *, tell: Any = print, progress: Progress | None = None
) -> dict[str, Any]:
    """Read, segment and write one case.

    Args:
        job: what holds for all.
        case: its files.
        tell: takes the line about memory.
        progress: told of every band (inference.ensemble); first with ("total", rows).

    Returns:
        What the report says of it: shape, kind, memory, outputs, seconds per stage, labels' shares.

    Raises:
        OctreeNCAError: any of ours; nothing half-written is left.
    """
    stages = Stages()
    stages.begin("open")
    model = job.model
    source = open_channels(
        case.files,
        channels=model.channels,
        mpp=job.mpp,
        scratch=_scratch(job.output),
        series=job.series,
    )
    try:
        for note in getattr(source, "notes", ()):
            tell(note)
        kind = kind_of_case(case, source)
        formats, stem = formats_of(job, case, kind), job.output / case.name
        outputs = expected_outputs(stem, formats)
        check_outputs(job, outputs, case.files)
        info = _info(job, case, kind, source)
        check_labels(formats, source.shape, stem, info)
        _check_disk(job.output, source.shape)
        image = _Watched(source, pixels=model.natural)
        stages.begin("survey")
        prepared = PreprocessedCase(
            _oriented(image, model), model.preprocessing, band=_rows(source)
        )
        passes = len(job.members) * len(mirrorings(job.mirror_axes))
        # Logits only where they are needed: to be resampled, or for regions.
        regions = model.preprocessing.regions_class_order is not None
        gives_labels = not (prepared.layout.resamples or regions)
        plan = _plan(job, prepared, source, passes, gives_labels)
        tell(f"{case.name}: {' x '.join(map(str, source.shape))}, {plan.sentence()}")
        stages.begin("segment")
        labels = _segment(job, prepared, plan, gives_labels, progress)
        stages.begin("write")
        for name in formats:
            write(name, labels, stem, info)
        shares = label_shares(labels)
        write_overlay(
            outputs[-1],
            image.picture(),
            labels_thumbnail(labels),
            names=model.names,
            caption=f"{case.name}, {' x '.join(map(str, source.shape))}",
            shares=shares,
        )
        stages.begin("")
    finally:
        source.close()
    return {
        "case": case.name,
        "files": [str(path) for path in case.files],
        "kind": kind,
        "shape": list(source.shape),
        "box": [list(axis) for axis in prepared.statistics.box],
        "passes": passes,
        "bands_of": plan.band_rows,
        "whole": plan.whole,
        "planned_bytes": plan.host,
        "planned_device_bytes": plan.device,
        "outputs": list(map(str, outputs)),
        "shares": {model.names.get(label, str(label)): share for label, share in shares.items()},
        "seconds": {name: round(took, 3) for name, took in stages.seconds.items()},
    }


def _scratch(output: Path) -> Path:
    """Videos are decoded beside their results: there is room for large things."""
    output.mkdir(parents=True, exist_ok=True)
    return output


def _check_disk(output: Path, shape: Sequence[int]) -> None:
    # Labels compress well; a hundredth of a byte a cell and some room for the overlay is little.
    needed = int(np.prod(shape)) // 100 + (8 << 20)
    free = free_disk(output)
    if free < needed:
        raise OutputError(
            f"{output} has {free / 1e6:.0f} MB left, and the results need some "
            f"{needed / 1e6:.0f} MB; free disk space or give another folder with -o"
        )


class _Watched:
    """An image whose bands go into a thumbnail as they are read, each row once.

    Args:
        source: the image.
        pixels: count its spacing in pixels, as nnU-Net does with pictures.
    """

    def __init__(self, source: ImageSource, *, pixels: bool) -> None:
        self._source = source
        self.shape, self.channels, self.dtype = source.shape, source.channels, source.dtype
        self.spacing = (1.0,) * len(source.shape) if pixels else source.spacing
        self.thumbnail = Thumbnail(source.shape)
        flat = len(source.shape) == 2
        # Of a volume some planes are shown, which are cheaper read again than watched.
        self._missing = np.full(source.shape[0] if flat else 0, True)

    def read(self, first: int, end: int) -> NDArray:
        rows = self._source.read(first, end)
        for begin, stop in _runs(self._missing[first:end]):
            self.thumbnail.add(first + begin, rows[:, begin:stop])
        self._missing[first:end] = False
        return rows

    def close(self) -> None:
        self._source.close()

    def picture(self) -> NDArray[np.uint8]:
        """The thumbnail, once what nobody has read is read too."""
        step = _rows(self._source)
        for begin, stop in _runs(self._missing):
            for first in range(begin, stop, step):
                self.read(first, min(first + step, stop))
        if len(self.shape) == 3:
            for plane in self.thumbnail.layout.planes:
                self.thumbnail.add(plane, self._source.read(plane, plane + 1))
        return self.thumbnail.picture()


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where stretches of True begin and end."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _oriented(image: "_Watched", model: Model) -> ImageSource:
    """The image as the model can read it: along another than its first axis only in memory."""
    if len(image.shape) == 2 or model.preprocessing.transpose_forward[0] == 0:
        return image
    return ArraySource(image.read(0, image.shape[0]), image.spacing)


def _rows(source: ImageSource) -> int:
    """Rows or planes that are read at a time."""
    unit = int(np.prod(source.shape[1:])) * source.channels * source.dtype.itemsize
    return min(max(_READ_BYTES // max(unit, 1), 1), source.shape[0])


def _plan(
    job: Job, prepared: PreprocessedCase, source: ImageSource, passes: int, gives_labels: bool
) -> MemoryPlan:
    model = job.model
    # The labels, 1 byte a cell, and what writing a pyramid of them takes.
    beside = int(np.prod(source.shape)) * 4 // 3
    return plan_memory(
        model.networks[0],
        prepared.layout.padded,
        memory_limit(job.memory, job.device),
        passes=passes,
        labels=gives_labels,
        half=job.half,
        beside=beside,
        band_rows=job.band_rows,
    )


def _segment(
    job: Job,
    prepared: PreprocessedCase,
    plan: MemoryPlan,
    gives_labels: bool,
    progress: Progress | None,
) -> NDArray:
    restorer = prepared.restorer()
    ensemble = Ensemble(
        job.members,
        mirror_axes=job.mirror_axes,
        band_rows=plan.band_rows,
        state="float16" if plan.half else None,
        labels=gives_labels,
    )
    if progress is not None:
        image = prepared.image(0)
        progress("total", prepared.parts * image.shape[0])
    for number, image in enumerate(prepared.images()):
        part = restorer.part(number)
        results: Iterator[tuple[int, NDArray]] = ensemble.run(
            image, progress=progress, tissue=job.tissue
        )
        for _, values in results:
            if ensemble.labels:
                part.add_labels(values)
            else:
                part.add_logits(values)
    return restorer.finish()


def _info(job: Job, case: Case, kind: str, source: Any) -> LabelInfo:
    geometry = getattr(source, "geometry", None)
    base = getattr(source, "base_shape", source.shape)
    scale = (1.0, 1.0)
    if len(source.shape) == 2:
        scale = (base[1] / source.shape[1], base[0] / source.shape[0])
    files = getattr(source, "files", None)
    return LabelInfo(
        names=job.model.names,
        kind=kind,
        mpp=getattr(source, "mpp", None),
        spacing=geometry.spacing if geometry else tuple(reversed(source.spacing)),
        origin=geometry.origin if geometry else None,
        direction=geometry.direction if geometry else None,
        dicom_files=geometry.dicom_files if geometry else None,
        nifti=geometry.nifti if geometry else None,
        fps=getattr(source, "fps", None),
        frames=(lambda: _frames(source)) if kind == "video" else None,
        stems=[Path(file).stem for file in files] if files else None,
        image_path=Path(case.files[0]),
        scale=scale,
    )


def _frames(source: ImageSource) -> Iterator[NDArray[np.uint8]]:
    rows = _rows(source)
    for first in range(0, source.shape[0], rows):
        band = source.read(first, min(first + rows, source.shape[0]))
        if band.dtype != np.uint8:
            raise InputError(f"frames of {band.dtype} cannot be drawn as a video")
        for number in range(band.shape[1]):
            frame = band[:, number]
            yield np.moveaxis(frame if len(frame) >= 3 else frame[:1].repeat(3, 0), 0, -1)[..., :3]
