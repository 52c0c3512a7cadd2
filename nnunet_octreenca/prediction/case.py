"""One case, from its files to the files of its result."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.calibration_record import Calibration
from nnunet_octreenca.deferred_files import is_deferred, is_whole, refresh
from nnunet_octreenca.errors import InputError, NoRoomError
from nnunet_octreenca.hashes import content_hash, labels_hash, stamp
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.images.companions import all_files, with_companions
from nnunet_octreenca.images.open_image import kind_of, open_channels
from nnunet_octreenca.images.source import ImageSource
from nnunet_octreenca.inference.ensemble import Progress
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.labels.formats import (
    LabelInfo,
    check_formats,
    check_labels,
    default_formats,
    write,
)
from nnunet_octreenca.labels.overlay import label_shares, write_overlay
from nnunet_octreenca.labels.thumbnail import labels_thumbnail
from nnunet_octreenca.prediction.earlier import Destination, Earlier, Identity
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.prediction.quality_files import (
    QualityFiles,
    QualityRecord,
    doubt_line,
    remove_outdated,
)
from nnunet_octreenca.prediction.segmentation import Segmentation
from nnunet_octreenca.prediction.watched_image import WatchedImage, rows_at_a_time
from nnunet_octreenca.resources import free_disk
from nnunet_octreenca.result_record import QUALITY, ResultRecord, overlay_path

Spread = Callable[[Segmentation, Progress | None], Pixels]
"""From an image that is ready to be segmented to its labels."""

# Pixels of a 2-D image from which it counts as a slide: it gets a pyramid, not a PNG.
_SLIDE_PIXELS = 50_000_000


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
        outputs: files and folders of the result, the overlay last.
        shares: class name to its part of all cells, 0 to 1.
        seconds: per stage.
        labels_sha256: of the label map (`hashes.labels_hash`).
        outputs_sha256: of each of `outputs`, by its name in the folder (`hashes.content_hash`).
        input_sha256: of each of `files`, by its path, with what is read beside it; empty where
            nobody asked.
        ended: when, in UTC.
        quality: how sure the model was, where that was asked.
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
    labels_sha256: str
    outputs_sha256: dict[str, str]
    input_sha256: dict[str, str]
    ended: str
    quality: QualityRecord | None = None


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


def segment_case(
    case: Case,
    model: Model,
    destination: Destination,
    options: Options,
    *,
    identity: Identity,
    require_lock: Callable[[], object],
    hash_inputs: bool = False,
    calibration: Calibration | None = None,
    spread: Spread | None = None,
    tell: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> CaseResult:
    """Read, segment and write one case; who calls holds its lock.

    Args:
        case: its files.
        model: the networks.
        destination: of the results.
        options: how it is segmented.
        identity: of the model and the options.
        require_lock: raises where another run has taken the case, as after a long sleep.
        hash_inputs: read the files once more for their SHA-256.
        calibration: of the model, with `options.quality`.
        spread: computes the labels instead of `Segmentation.run`, where other processes help.
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
    stamp_before = stamp(all_files(case.files))
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
        formats = destination.formats or default_formats(kind, case.files[0])
        check_formats(formats, kind)
        earlier = Earlier.of(case, destination, identity, kind, formats, stamp_before)
        earlier.require_replaceable(case.files)
        info = _label_info(case, model, kind, source)
        check_labels(earlier.formats, source.shape, folder / case.name, info)
        files = None
        if options.quality is not None:
            files = QualityFiles(folder, case.name, info, options.probabilities)
            again = {"overwrite": destination.overwrite, "resume": destination.resume}
            files.check(source.shape, **again)
        maps = 0 if options.quality is None else 1
        if options.probabilities:
            maps += model.networks[0].num_classes
        _check_disk(folder, source.shape, maps)
        image = WatchedImage(source)
        stages.begin("survey")
        segmentation = Segmentation(image, model, options)
        plan = segmentation.plan
        shape = " x ".join(map(str, source.shape))
        tell(f"{case.name}: {shape}, {plan.sentence()}")
        stages.begin("segment")
        temperatures = None if calibration is None else calibration.temperatures
        doubt = None
        if files is None and spread is not None and segmentation.splits:
            labels = spread(segmentation, progress)
        elif files is None:
            labels = segmentation.run(progress)
        else:
            doubt = segmentation.run_with_doubt(progress, temperatures)
            labels = doubt.labels
            if doubt.note:
                tell(f"{case.name}: {doubt.note}")
        picture = image.picture()
        stages.begin("hash")
        _require_unchanged(case, stamp_before)
        input_sha256 = _input_hashes(case) if hash_inputs else {}
        labels_sha256 = labels_hash(labels)
        stages.begin("write")
        require_lock()
        formats = earlier.begin(labels.shape, labels_sha256, tell)
        for name in formats:
            write(name, labels, folder / case.name, info, tell=tell)
        shares = label_shares(labels)
        overlay = overlay_path(folder, case.name)
        write_overlay(
            overlay,
            picture,
            labels_thumbnail(labels),
            names=model.names,
            caption=f"{case.name}, {shape}",
            shares=shares,
            record=ResultRecord(kind, tuple(earlier.names_beside_overlay())),
        )
        quality = None
        if files is not None and doubt is not None:
            quality = files.write(
                doubt,
                labels_sha256=labels_sha256,
                model=identity.model,
                seeds=options.seeds_of(model),
                classes=head_names(model),
                calibration=calibration,
                temperatures=temperatures or [1.0] * model.networks[0].num_classes,
            )
            tell(f"{case.name}: {doubt_line(quality, calibration)}")
        elif remove_outdated(folder, case.name, labels_sha256):
            tell(f"{case.name}: what {QUALITY} said of its earlier labels was removed")
        stages.begin("hash")
        record = earlier.finish()
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
        outputs=[str(folder / name) for name in record.outputs],
        shares={model.names.get(label, str(label)): share for label, share in shares.items()},
        seconds={name: round(took, 3) for name, took in stages.seconds.items()},
        labels_sha256=labels_sha256,
        outputs_sha256={name: str(found) for name, found in record.outputs.items()},
        input_sha256=input_sha256,
        ended=record.ended,
        quality=quality,
    )


def _require_unchanged(case: Case, stamp_before: str) -> None:
    refresh(case.files[0])  # a store is asked again
    if stamp(all_files(case.files)) != stamp_before:
        raise InputError(
            f"{case.files[0]} was changed while it was read, so that its labels may be of neither "
            f"state; run it again"
        )


def _input_hashes(case: Case) -> dict[str, str]:
    """Of files that are here as a whole, which slides in a store need not be."""
    read = {str(path): with_companions(Path(path)) for path in case.files}
    return {name: content_hash(files) for name, files in read.items() if all(map(is_whole, files))}


def head_names(model: Model) -> list[str]:
    """Class or region of every head of the model's networks."""
    order = model.preprocessing.regions_class_order
    labels = range(model.networks[0].num_classes) if order is None else order
    return [model.names.get(label, str(label)) for label in labels]


def _check_disk(output: Path, shape: Sequence[int], maps: int) -> None:
    # Labels compress well; a hundredth of a byte a cell and some room for the overlay is little.
    # Maps of real numbers do not.
    needed = int(np.prod(shape)) // 100 + (8 << 20) + maps * 4 * int(np.prod(shape))
    free = free_disk(output)
    if free < needed and is_deferred(output):
        raise NoRoomError(
            f"the scratch folder has {free / 1e6:.0f} MB left, and the results need some "
            f"{needed / 1e6:.0f} MB before they are put into the store; free disk space or give "
            f"another --scratch"
        )
    if free < needed:
        raise NoRoomError(
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
