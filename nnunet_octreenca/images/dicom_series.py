"""The planes of a DICOM image in order: one stack, even, upright, none missing or duplicated.

The rule for what is no such stack (several phases, a gap, a tilted gantry) is to refuse it and to
name two of its planes: nothing is sorted out by guessing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.dicom_file import dicom_files, kind_of_header, not_dicom, read_header
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.dicom_planes import Plane, planes_of
from nnunet_octreenca.images.file_kinds import content_of

if TYPE_CHECKING:
    from pydicom import Dataset

# Between two slices the distance may differ from the usual one by this share, or by what rounding
# of positions to a tenth of a millimetre makes; a missing slice makes it twice as much.
_UNEVEN = 0.2
_ROUNDING = 0.1  # mm
# Planes closer than this share of a pixel lie at one place.
_ONE_PLACE = 0.01
# Planes may lie off the straight line of their stack, and the line may lean, by this share of
# a pixel, or by what rounding of positions makes.
_BESIDE = 0.25
# Direction cosines, and pixel sizes as a share, are compared to this: half a pixel in 500.
_TURNED = 1e-3


@dataclass(frozen=True)
class DicomStack:
    """The planes of one volume, in the order of its z axis.

    Attributes:
        planes: what each says.
        headers: of the files, by path.
        spacing: mm (x, y, z).
        origin: mm, of the first plane's first pixel.
        direction: cosines, row by row; the columns are the axes x, y, z.
        notes: sentences about what else was there and was left out.
    """

    planes: list[Plane]
    headers: dict[Path, "Dataset"]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """The files, each once, in the order of their first planes."""
        return list(dict.fromkeys(plane.file for plane in self.planes))


def read_stack(path: Path, series: str | None = None) -> DicomStack:
    """The volume in a DICOM file, or in the one series of images in a folder.

    Args:
        path: a file or a folder.
        series: SeriesInstanceUID of the series in the folder; needed where there are several.

    Raises:
        InputError: there is no image or more than one series, a file is damaged, or the planes
            are no even, upright stack of one time and kind.
        EnvironmentMismatchError: pydicom is not installed.
    """
    if path.is_dir():
        headers, notes = _series(path, series)
    else:
        headers, notes = {path: read_header(path)}, ()
        _require_image(path, headers[path])
    planes = [plane for file, header in headers.items() for plane in planes_of(file, header)]
    _require_alike(planes)
    if len(planes) == 1:
        step = _thickness(headers[planes[0].file])
    else:
        planes, step = _sorted(path, planes, headers)
    first = planes[0]
    rows, columns = first.axes if first.axes is not None else np.eye(3)[:2]
    direction = np.stack([rows, columns, np.cross(rows, columns)], axis=1)
    pixel = first.spacing or (1.0, 1.0)
    origin = np.zeros(3) if first.position is None else first.position
    return DicomStack(
        planes,
        headers,
        (pixel[1], pixel[0], step),
        (float(origin[0]), float(origin[1]), float(origin[2])),
        tuple(map(float, direction.ravel())),
        notes,
    )


def _series(folder: Path, wanted: str | None) -> tuple[dict[Path, "Dataset"], tuple[str, ...]]:
    """The headers of the images of one series, and a line about what is left out."""
    present = dicom_files(folder)
    images: dict[str, dict[Path, Dataset]] = defaultdict(dict)
    others: Counter[str] = Counter()
    cut = not_dicom(folder)
    damaged = [
        InputError(
            f"{file} cannot be read as DICOM (it is {content_of(file) or 'something else'}); it is "
            f"truncated or damaged"
        )
        for file in cut
    ]
    for file in present:
        try:
            header = read_header(file)
        except InputError as error:
            damaged.append(error)
            continue
        kind = kind_of_header(header)
        if kind == "image":
            images[str(header.get("SeriesInstanceUID", ""))][file] = header
        else:
            others[kind] += 1
    if damaged:
        raise InputError(f"{damaged[0]} ({len(damaged)} of {len(present) + len(cut)} files)")
    if (folder / "DICOMDIR").is_file():
        others["DICOMDIR"] += 1
    beside = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    if not images:
        raise InputError(
            f"{folder} holds no DICOM series of images{f', but {beside}' if beside else ''}"
        )
    found = "; ".join(map(_described, images.values()))
    if wanted is None and len(images) > 1:
        raise InputError(
            f"{folder} holds {len(images)} DICOM series: {found}; choose one with --series UID"
        )
    if wanted is not None and wanted not in images:
        raise InputError(f"{folder} holds no DICOM series {wanted}, but {found}")
    chosen = images.pop(next(iter(images)) if wanted is None else wanted)
    if images:
        files = sum(map(len, images.values()))
        beside = ", ".join(
            part for part in (beside, f"{files} images of {len(images)} other series") if part
        )
    return chosen, (f"{folder.name}: left out {beside}",) if beside else ()


def _described(headers: dict[Path, "Dataset"]) -> str:
    header = next(iter(headers.values()))
    said = [header.get(keyword) for keyword in ("Modality", "SeriesNumber", "SeriesDescription")]
    words = " ".join(str(word) for word in said if word not in (None, ""))
    number = f"{len(headers)} file{'s' * (len(headers) != 1)}"
    uid = header.get("SeriesInstanceUID") or "without a SeriesInstanceUID"
    return f"{uid} ({', '.join(part for part in (words, number) if part)})"


def _require_image(path: Path, header: "Dataset") -> None:
    kind = kind_of_header(header)
    if kind not in ("image", "RTDOSE"):
        raise InputError(f"{path} is a DICOM {kind}, no image; give the images it belongs to")


def _require_alike(planes: Sequence[Plane]) -> None:
    """Refuse planes that cannot be of one volume, and name two of them."""
    first = planes[0]
    for plane in planes[1:]:
        different = ""
        if plane.shape != first.shape:
            different = f"has {_times(plane.shape)} pixels and {first.name} {_times(first.shape)}"
        elif not _close(plane.axes, first.axes, _TURNED):
            different = (
                f"has the direction {_listed(plane.axes)} and {first.name} {_listed(first.axes)}"
            )
        elif not _close(plane.spacing, first.spacing, _TURNED * min(first.spacing or (1.0,))):
            different = (
                f"has the pixel size {_listed(plane.spacing)} mm and {first.name} "
                f"{_listed(first.spacing)} mm"
            )
        elif _said_once(plane.slope, first.slope, 1.0):
            different = f"has the RescaleSlope {plane.slope} and {first.name} {first.slope}"
        elif _said_once(plane.intercept, first.intercept, 0.0):
            different = (
                f"has the RescaleIntercept {plane.intercept} and {first.name} {first.intercept}"
            )
        else:
            for keyword, value in plane.alike.items():
                other = first.alike[keyword]
                if value and other and value != other:
                    different = f"has {keyword} {value} and {first.name} {other}"
                    break
        if different:
            raise InputError(
                f"{plane.file.parent / plane.name} {different}; the slices of a volume must agree "
                f"in it: put those that do into a separate folder"
            )


def _said_once(one: float | None, other: float | None, nothing: float) -> bool:
    """Whether one plane has a number that changes values, and the other has none at all."""
    return (one is None) != (other is None) and {one, other} != {None, nothing}


def _sorted(
    path: Path, planes: list[Plane], headers: dict[Path, "Dataset"]
) -> tuple[list[Plane], float]:
    """The planes along their normal, and the distance between them."""
    lost = next((plane for plane in planes if plane.position is None or plane.axes is None), None)
    if lost is not None:
        raise InputError(
            f"{lost.file.parent / lost.name} does not say where it lies (ImagePositionPatient, "
            f"ImageOrientationPatient), as the {len(planes)} planes of {path} must to be a volume; "
            f"give projections one by one"
        )
    first_axes = planes[0].axes
    assert first_axes is not None
    normal = np.cross(first_axes[0], first_axes[1])
    places = np.array([plane.position for plane in planes])
    order = np.argsort(places @ normal, kind="stable")
    planes, places = [planes[at] for at in order], places[order]
    along = places @ normal
    gaps = np.diff(along)
    pixel = min(planes[0].spacing or (1.0, 1.0))
    _require_several_places(path, planes, gaps, pixel, headers)
    usual = float(np.median(gaps))
    off = np.abs(gaps - usual) > max(_UNEVEN * usual, min(_ROUNDING, usual / 2))
    if off.any():
        at = int(np.argmax(off))
        raise InputError(
            f"between {planes[at].file.parent / planes[at].name} and {planes[at + 1].name} the "
            f"distance is {gaps[at]:.2f} mm, elsewhere {usual:.2f} mm; a slice is missing or "
            f"duplicated"
        )
    _require_upright(planes, places, along, first_axes, pixel)
    return planes, float((along[-1] - along[0]) / (len(planes) - 1))


def _require_several_places(
    path: Path,
    planes: list[Plane],
    gaps: Pixels,
    pixel: float,
    headers: dict[Path, "Dataset"],
) -> None:
    same = gaps <= _ONE_PLACE * pixel
    if not same.any():
        return
    at = int(np.argmax(same))
    one, other = planes[at], planes[at + 1]
    uids = [headers[plane.file].get("SOPInstanceUID") for plane in (one, other)]
    if one.file != other.file and uids[0] and uids[0] == uids[1]:
        raise InputError(
            f"{one.file.parent / one.name} and {other.name} are the same slice "
            f"(SOPInstanceUID {uids[0]}); remove one of them"
        )
    differ = [
        f"{keyword} {one.apart[keyword] or '(none)'} and {other.apart[keyword] or '(none)'}"
        for keyword in one.apart
        if one.apart[keyword] != other.apart[keyword]
    ]
    told = f" (they differ in {'; '.join(differ[:3])})" if differ else ""
    places = 1 + int((~same).sum())
    raise InputError(
        f"{one.file.parent / one.name} and {other.name} lie at one place{told}: the {len(planes)} "
        f"planes of {path} lie at {places} place{'s' * (places != 1)}, which are several phases, "
        f"echoes or repetitions and no single volume; give one of them in a separate folder"
    )


def _require_upright(
    planes: list[Plane], places: Pixels, along: Pixels, axes: Any, pixel: float
) -> None:
    """Refuse planes that are shifted against their normal, as by a tilted gantry."""
    beside = (places - places[0]) @ np.asarray(axes).T  # mm along x and y
    share = ((along - along[0]) / (along[-1] - along[0]))[:, None]
    limit = max(_BESIDE * pixel, min(_ROUNDING, pixel / 2))
    from_line = np.abs(beside - share * beside[-1]).max(axis=1)
    if from_line.max() > limit:
        at = int(np.argmax(np.abs(np.diff(beside, axis=0)).max(axis=1)))
        shift = float(np.linalg.norm(beside[at + 1] - beside[at]))
        raise InputError(
            f"{planes[at + 1].file.parent / planes[at + 1].name} is shifted by {shift:.2f} mm "
            f"within its plane against {planes[at].name}; the slices of a volume must lie on one "
            f"another: give those that do in a separate folder"
        )
    lean = float(np.linalg.norm(beside[-1]))
    if lean > limit:
        angle = np.degrees(np.arctan2(lean, along[-1] - along[0]))
        raise InputError(
            f"{planes[0].file.parent} is a stack that leans by {angle:.1f} degrees (a tilted "
            f"gantry): from {planes[0].name} to {planes[-1].name} the planes shift by "
            f"{lean:.1f} mm against their normal; resample it to an upright grid, for example with "
            f"dcm2niix, and give the NIfTI file"
        )


def _thickness(header: "Dataset") -> float:
    """mm that a single plane stands for; 1 where nothing is said."""
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    own = (header.get("PerFrameFunctionalGroupsSequence") or [None])[0]
    items = [
        item
        for group in (own, shared)
        if group is not None
        for item in group.get("PixelMeasuresSequence") or []
    ]
    for item in [header, *items]:
        for keyword in ("SpacingBetweenSlices", "SliceThickness"):
            try:
                value = abs(float(item.get(keyword) or 0))
            except ValueError:
                continue
            if 0 < value < np.inf:
                return value
    return 1.0


def _close(one: ArrayLike | None, other: ArrayLike | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is None and other is None
    return bool(np.allclose(one, other, rtol=0, atol=tolerance))


def _listed(numbers: Any) -> str:
    if numbers is None:
        return "(none)"
    return "(" + ", ".join(f"{number:.5g}" for number in np.ravel(numbers)) + ")"


def _times(numbers: Iterable[int]) -> str:
    return " x ".join(map(str, numbers))
