"""Label maps as any program writes them: volumes, pictures, TIFF files, folders of frames."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_octreenca.arrays import Labels, Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.frames import frame_files
from nnunet_octreenca.images.open_image import ENDINGS
from nnunet_octreenca.images.slide_reader import open_reader
from nnunet_octreenca.images.source import Geometry
from nnunet_octreenca.images.tiff_reader import TiffReader
from nnunet_octreenca.images.volumes import VolumeSource
from nnunet_octreenca.result_record import is_own_folder

VOLUMES = tuple(ending for ending in ENDINGS["volume"] if ending not in (".dcm", ".ima", ".mhd"))
PICTURES = (".png", ".bmp")  # JPEG changes labels
LABEL_ENDINGS = (*VOLUMES, ".mhd", *ENDINGS["TIFF"], *PICTURES)
HIGHEST = 32767
_OFF = 0.05  # of a voxel: NIfTI keeps places in single precision


@dataclass(frozen=True)
class LabelMap:
    """One case's labels.

    Attributes:
        labels: (y, x), (z, y, x), or of a video (frame, y, x).
        spacing: mm per axis of a volume; ones of pictures, in pixels. Of a video of (y, x).
        geometry: of a volume; None of pictures.
        video: the first axis is time.
    """

    labels: Labels
    spacing: tuple[float, ...]
    geometry: Geometry | None
    video: bool

    @property
    def kind(self) -> str:
        """What cannot be mixed in one comparison."""
        if self.video:
            return "video"
        form = "volume" if self.geometry is not None else "picture"
        return f"{self.labels.ndim}-D {form}"


def ending_of(name: str) -> str | None:
    """The ending of a label map's file name, in lower case; None of other files.

    >>> ending_of("a.1.NII.GZ"), ending_of("a.ome.tif"), ending_of("a.json")
    ('.nii.gz', '.ome.tif', None)
    """
    lower = name.lower()
    return next((e for e in sorted(LABEL_ENDINGS, key=len)[::-1] if lower.endswith(e)), None)


def label_files(folder: Path, *, video: bool = False) -> dict[str, list[Path]]:
    """The label maps of a folder, by case; most often one each.

    Args:
        folder: hidden files and what is no label map are left out.
        video: folders of frames are cases too.

    Raises:
        InputError: the folder is missing or holds none.
    """
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist")
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        ending = ending_of(entry.name)
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if video and not is_own_folder(entry) and frame_files(entry):
                found.setdefault(_composed(entry.name.removesuffix("_frames")), []).append(entry)
        elif ending is not None:
            found.setdefault(_composed(entry.name[: -len(ending)]), []).append(entry)
    if not found:
        raise InputError(
            f"{folder} holds no label maps; they end in {', '.join(LABEL_ENDINGS)}"
            + (", or are folders of frames" if video else "")
        )
    return found


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def read_label_map(path: Path, *, video: bool = False) -> LabelMap:
    """Read a case's labels.

    Args:
        path: a file, or the folder of a video's frames.
        video: the first axis is time.

    Raises:
        InputError: it is damaged, has colours, or holds anything but whole numbers within
            [0, 32767].
    """
    geometry = None
    if path.is_dir():
        labels = _frames(path)
    elif path.name.lower().endswith((*VOLUMES, ".mhd")):
        source = VolumeSource(path)
        _require_one_channel(path, source.channels)
        labels, geometry = source.read(0, source.shape[0])[0], source.geometry
    else:
        labels = _picture(path)
    if video and labels.ndim != 3:
        raise InputError(f"{path} has no frames: its shape is {shape_text(labels.shape)}")
    spacing = (1.0,) * labels.ndim if geometry is None else tuple(reversed(geometry.spacing))
    return LabelMap(
        _whole_numbers(path, labels),
        (1.0, 1.0) if video else spacing,
        None if video else geometry,
        video,
    )


def _picture(path: Path) -> Pixels:
    reader = open_reader(path, stored=True)
    try:
        _require_one_channel(path, reader.channels)
        rows, columns = reader.levels[0].shape
        if reader.planes == 1:
            only: Pixels = reader.region(0, 0, 0, rows, columns)[0]
            return only
        if not isinstance(reader, TiffReader):
            raise InputError(f"{path} is a stack of {reader.planes} planes; save it as a volume")
        return np.stack(
            [reader.region(0, 0, 0, rows, columns, plane=n)[0] for n in range(reader.planes)]
        )
    finally:
        reader.close()


def _frames(folder: Path) -> Pixels:
    frames = [_picture(file) for file in frame_files(folder)]
    for frame in frames:
        if frame.shape != frames[0].shape:
            raise InputError(
                f"the frames in {folder} differ in size: {shape_text(frame.shape)} and "
                f"{shape_text(frames[0].shape)} pixels"
            )
    return np.stack(frames)


def _require_one_channel(path: Path, channels: int) -> None:
    if channels != 1:
        raise InputError(
            f"{path} has {channels} channels and is no label map; save one number per pixel, not "
            f"colours or probabilities"
        )


def _whole_numbers(path: Path, values: Pixels) -> Labels:
    """In the narrowest type, which also makes a copy that does not keep its source alive."""
    low, high = values.min(), values.max()
    if low < 0 or high > HIGHEST:
        raise InputError(
            f"{path} holds {low if low < 0 else high}; labels are whole numbers within "
            f"[0, {HIGHEST}]"
        )
    labels: Labels = values.astype(np.uint8 if high < 256 else np.uint16)
    if values.dtype.kind == "f":
        off = labels != values
        if off.any():
            raise InputError(
                f"{path} holds {values[off][0]:g} and is no label map; labels are whole numbers "
                f"(probabilities must be thresholded)"
            )
    return labels


def shape_text(shape: Sequence[int]) -> str:
    """A shape for people, in the array's order.

    >>> shape_text((3, 4))
    '3 x 4'
    """
    return " x ".join(str(n) for n in shape)


def require_same_grid(truth: LabelMap, prediction: LabelMap, method: str, case: str) -> None:
    """Refuse a prediction of another shape or at another place than its truth.

    Raises:
        InputError: names the case and both values.
    """
    of = f"the prediction of {method} for {case}"
    if truth.labels.shape != prediction.labels.shape:
        raise InputError(
            f"{of} has {shape_text(prediction.labels.shape)} pixels and its truth "
            f"{shape_text(truth.labels.shape)}; resample it to the truth's grid"
        )
    first, second = truth.geometry, prediction.geometry
    if first is None or second is None:
        return
    if _farthest(first, second, truth.labels.shape) > _OFF:
        for what in ("spacing", "origin", "direction"):
            own, true = getattr(second, what), getattr(first, what)
            if not np.allclose(own, true, rtol=1e-4, atol=1e-4):
                break
        raise InputError(
            f"{of} has {what} {_numbers(own)} and its truth {_numbers(true)}; resample it to the "
            f"truth's grid, or correct the header"
        )


def _farthest(first: Geometry, second: Geometry, shape: Sequence[int]) -> float:
    """How far apart corners of the same index lie, in voxels of the first."""
    axes = len(first.spacing)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in reversed(shape)])).reshape(axes, -1)
    places = [
        np.reshape(g.direction, (axes, axes)) @ (corners * np.array(g.spacing)[:, None])
        + np.array(g.origin)[:, None]
        for g in (first, second)
    ]
    apart = np.linalg.norm(places[0] - places[1], axis=0).max()
    spacing = np.abs(np.array(first.spacing) - second.spacing) / first.spacing
    # A single plane has no second corner to show another spacing.
    return max(float(apart / min(first.spacing)), float(spacing.max()) if 1 in shape else 0.0)


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
