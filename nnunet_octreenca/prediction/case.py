"""One case, from its files to the files of its result."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError, OutputError
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.images.open_image import kind_of, open_channels
from nnunet_octreenca.images.source import ImageSource
from nnunet_octreenca.inference.ensemble import Progress
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.labels.formats import (
    LabelInfo,
    check_formats,
    check_labels,
    default_formats,
    output_path,
    write,
)
from nnunet_octreenca.labels.overlay import label_shares, write_overlay
from nnunet_octreenca.labels.thumbnail import labels_thumbnail
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.prediction.segmentation import Segmentation
from nnunet_octreenca.prediction.watched_image import WatchedImage, rows_at_a_time
from nnunet_octreenca.resources import free_disk
from nnunet_octreenca.result_record import ResultRecord, overlay_path, read_record

# Pixels of a 2-D image from which it counts as a slide: it gets a pyramid, not a PNG.
_SLIDE_PIXELS = 50_000_000


@dataclass(frozen=True)
class Destination:
    """Where results go.

    Attributes:
        folder: for all results; made if it is not there.
        formats: of `labels.formats`; None for the kind's usual ones.
        overwrite: replace results.
        resume: write the results that are missing, and leave the others.
    """

    folder: Path
    formats: tuple[str, ...] | None = None
    overwrite: bool = False
    resume: bool = False


@dataclass(frozen=True)
class CaseResult:
    """A case that was segmented; its fields are a case's entries in the JSON report.

    Attributes:
        case: its name.
        files: that it was read from.
        kind: "slide", "picture", "video" or "volume".
        shape: cells per axis, (y, x) or (z, y, x).
        box: first and end per axis of what is not zero, all that was segmented.
        passes: networks times seeds times mirrored copies.
        bands_of: rows or planes of a band.
        whole: the band was the image.
        planned_bytes, planned_device_bytes: memory of the process and of the GPU.
        outputs: files and folders that were written, the overlay last.
        shares: class name to its part of all cells, 0 to 1.
        seconds: per stage.
    """

    case: str
    files: list[str]
    kind: str
    shape: list[int]
    box: list[list[int]]
    passes: int
    bands_of: int
    whole: bool
    planned_bytes: int
    planned_device_bytes: int
    outputs: list[str]
    shares: dict[str, float]
    seconds: dict[str, float]


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
        return "video" if source.info.is_video else "volume"
    if kind_of(case.files[0]) == "picture" and np.prod(source.shape) < _SLIDE_PIXELS:
        return "picture"
    return "slide"


def finished(case: Case, destination: Destination) -> bool:
    """Whether all results of a case are there, and the overlay, which is written last."""
    record = read_record(overlay_path(destination.folder, case.name))
    if record is None:
        return False
    formats = destination.formats or default_formats(record.kind, case.files[0])
    return all(path.exists() for path in _expected_outputs(destination.folder, case, formats))


def _formats(destination: Destination, case: Case, kind: str) -> tuple[str, ...]:
    formats = destination.formats or default_formats(kind, case.files[0])
    check_formats(formats, kind)
    return formats


def _expected_outputs(folder: Path, case: Case, formats: Sequence[str]) -> list[Path]:
    """All files and folders that a case will have, the overlay last."""
    paths = [output_path(name, folder / case.name) for name in formats]
    return [*paths, overlay_path(folder, case.name)]


def _check_outputs(destination: Destination, paths: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Refuse to overwrite."""
    for path in paths:
        if any(path.resolve() == Path(name).resolve() for name in inputs):
            raise OutputError(f"{path} is the image itself; give another folder with -o")
        if path.exists() and not (destination.overwrite or destination.resume):
            raise OutputError(
                f"{path} exists already; --overwrite replaces it, --continue leaves finished cases"
            )


def segment_case(
    case: Case,
    model: Model,
    destination: Destination,
    options: Options,
    *,
    tell: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> CaseResult:
    """Read, segment and write one case.

    Args:
        case: its files.
        model: the networks.
        destination: of the results.
        options: how it is segmented.
        tell: takes the line about memory.
        progress: told of every band (inference.ensemble); first with ("total", rows).

    Raises:
        OctreeNCAError: any of ours; nothing half-written is left.
    """
    stages = Stages()
    stages.begin("open")
    folder = destination.folder
    # Videos are decoded beside their results: there is room for large things.
    folder.mkdir(parents=True, exist_ok=True)
    source = open_channels(
        case.files,
        channels=model.channels,
        mpp=options.mpp,
        scratch=folder,
        series=options.series,
    )
    try:
        for note in source.info.notes:
            tell(note)
        kind = kind_of_case(case, source)
        formats, stem = _formats(destination, case, kind), folder / case.name
        outputs = _expected_outputs(folder, case, formats)
        _check_outputs(destination, outputs, case.files)
        info = _label_info(case, model, kind, source)
        check_labels(formats, source.shape, stem, info)
        _check_disk(folder, source.shape)
        image = WatchedImage(source)
        stages.begin("survey")
        segmentation = Segmentation(image, model, options)
        plan = segmentation.plan
        shape = " x ".join(map(str, source.shape))
        tell(f"{case.name}: {shape}, {plan.sentence()}")
        stages.begin("segment")
        labels = segmentation.run(progress)
        stages.begin("write")
        for name, path in zip(formats, outputs, strict=False):
            if destination.resume and path.exists():
                tell(f"{case.name}: {path.name} is there already and is kept")
            else:
                write(name, labels, stem, info, tell=tell)
        shares = label_shares(labels)
        write_overlay(
            outputs[-1],
            image.picture(),
            labels_thumbnail(labels),
            names=model.names,
            caption=f"{case.name}, {shape}",
            shares=shares,
            record=_record(kind, outputs),
        )
        stages.begin("")
    finally:
        source.close()
    return CaseResult(
        case=case.name,
        files=[str(path) for path in case.files],
        kind=kind,
        shape=list(source.shape),
        box=[list(axis) for axis in segmentation.prepared.statistics.box],
        passes=segmentation.passes,
        bands_of=plan.band_rows,
        whole=plan.whole,
        planned_bytes=plan.host,
        planned_device_bytes=plan.device,
        outputs=list(map(str, outputs)),
        shares={model.names.get(label, str(label)): share for label, share in shares.items()},
        seconds={name: round(took, 3) for name, took in stages.seconds.items()},
    )


def _record(kind: str, outputs: Sequence[Path]) -> ResultRecord:
    """Of these results and of those in other formats that an earlier run wrote."""
    *paths, overlay = outputs
    before = read_record(overlay)
    names = [path.name for path in paths]
    names += [name for name in (before.outputs if before else ()) if name not in names]
    return ResultRecord(kind, tuple(names))


def _check_disk(output: Path, shape: Sequence[int]) -> None:
    # Labels compress well; a hundredth of a byte a cell and some room for the overlay is little.
    needed = int(np.prod(shape)) // 100 + (8 << 20)
    free = free_disk(output)
    if free < needed:
        raise OutputError(
            f"{output} has {free / 1e6:.0f} MB left, and the results need some "
            f"{needed / 1e6:.0f} MB; free disk space or give another folder with -o"
        )


def _label_info(case: Case, model: Model, kind: str, source: ImageSource) -> LabelInfo:
    """What the formats want to know of the image."""
    info = source.info
    geometry, base = info.geometry, info.base_shape
    scale = (1.0, 1.0)
    if base is not None and len(source.shape) == 2:
        scale = (base[1] / source.shape[1], base[0] / source.shape[0])
    return LabelInfo(
        names=model.names,
        kind=kind,
        mpp=info.mpp,
        spacing=geometry.spacing if geometry else tuple(reversed(source.spacing)),
        origin=geometry.origin if geometry else None,
        direction=geometry.direction if geometry else None,
        dicom_files=geometry.dicom_files if geometry else None,
        nifti=geometry.nifti if geometry else None,
        fps=info.fps,
        pixel_aspect=info.pixel_aspect,
        frames=(lambda: _frames(source)) if kind == "video" else None,
        file_names=[file.name for file in info.files] if info.files else None,
        image_path=Path(case.files[0]),
        scale=scale,
        bounds=info.bounds,
    )


def _frames(source: ImageSource) -> Iterator[NDArray[np.uint8]]:
    rows = rows_at_a_time(source)
    for first in range(0, source.shape[0], rows):
        band = source.read(first, min(first + rows, source.shape[0]))
        if band.dtype != np.uint8:
            raise InputError(f"frames of {band.dtype} cannot be drawn as a video")
        for number in range(band.shape[1]):
            frame = band[:, number]
            yield np.moveaxis(frame if len(frame) >= 3 else frame[:1].repeat(3, 0), 0, -1)[..., :3]
