"""What each plane of a DICOM image says of itself: slices, and frames of multi-frame files."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.dicom_file import frames_of
from nnunet_octreenca.errors import InputError, first_line

if TYPE_CHECKING:
    from pydicom import Dataset

# In the order in which they are looked for; mm, (row, column).
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


@dataclass(frozen=True)
class Plane:
    """What one slice, or one frame of a file, says of itself.

    Attributes:
        file: that it lies in.
        frame: its number in the file, from 0; None in a file of a single plane.
        shape: pixels (y, x).
        position: mm, of the first pixel's centre; None where nothing is said.
        axes: (2, 3), cosines of the x axis (along a row) and of the y axis; None likewise.
        spacing: mm (y, x), None where nothing is said.
        slope, intercept: of the stored values; None where nothing is said.
        alike: what all planes of a volume must agree in, name to value.
        apart: what tells phases, echoes and repetitions apart, name to value.
    """

    file: Path
    frame: int | None
    shape: tuple[int, int]
    position: NDArray[np.float64] | None
    axes: NDArray[np.float64] | None
    spacing: tuple[float, float] | None
    slope: float | None
    intercept: float | None
    alike: dict[str, str]
    apart: dict[str, str]

    @property
    def name(self) -> str:
        """The file's name, and the frame as DICOM counts it, from 1."""
        return self.file.name + ("" if self.frame is None else f" frame {self.frame + 1}")


_ALIKE = (
    "Modality",
    "PhotometricInterpretation",
    "SamplesPerPixel",
    "Units",
    "RescaleType",
    "FrameOfReferenceUID",
)
_APART = {
    "TemporalPositionIdentifier": "FrameContentSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "TriggerTime": "CardiacSynchronizationSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "NominalPercentageOfCardiacPhase": "CardiacSynchronizationSequence",
    "EchoTime": "MREchoSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "EchoNumbers": "",
    "DiffusionBValue": "MRDiffusionSequence",
    "ImageType": "",
    "FrameType": "MRImageFrameTypeSequence",
    "StackID": "FrameContentSequence",
    "FrameReferenceTime": "",
    "ContrastBolusAgent": "",
    "ConvolutionKernel": "",
    "AcquisitionNumber": "",
    "AcquisitionTime": "",
    "FrameAcquisitionDateTime": "FrameContentSequence",
}


def planes_of(path: Path, header: "Dataset") -> list[Plane]:
    """The planes of an image file in the order in which it stores them.

    Raises:
        InputError: a number in the header is not one, or frames of a file have no position.
    """
    count = frames_of(header)
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    if count > 1 and groups and len(groups) != count:
        raise InputError(
            f"{path} has {count} frames and describes {len(groups)} of them; it is damaged"
        )
    try:
        if count > 1 and not groups:
            return _stack(path, header, count)
        single = count == 1
        return [
            _plane(path, None if single else number, header, shared, group)
            for number, group in enumerate(list(groups)[:count] if groups else [None])
        ]
    except (TypeError, ValueError, IndexError, AttributeError, NotImplementedError) as error:
        raise InputError(
            f"{path} has a header that cannot be understood ({first_line(error)}); correct it, "
            f"or leave the file out"
        ) from error


class _Attributes:
    """An image's attributes as one frame has them: its own group, the shared one, the file's."""

    def __init__(self, header: "Dataset", shared: "Dataset | None", own: "Dataset | None") -> None:
        self._header, self._groups = header, [group for group in (own, shared) if group is not None]

    def get(self, keyword: str, sequence: str = "") -> Any:
        for group in self._groups:
            for item in (group.get(sequence) or []) if sequence else []:
                if keyword in item and item.get(keyword) is not None:
                    return item.get(keyword)
        return self._header.get(keyword)


def _plane(
    path: Path,
    frame: int | None,
    header: "Dataset",
    shared: "Dataset | None",
    own: "Dataset | None",
) -> Plane:
    attributes = _Attributes(header, shared, own)
    position = _numbers(attributes.get("ImagePositionPatient", "PlanePositionSequence"), 3)
    cosines = _numbers(attributes.get("ImageOrientationPatient", "PlaneOrientationSequence"), 6)
    axes = None if cosines is None else cosines.reshape(2, 3)
    if axes is not None:
        lengths = np.linalg.norm(axes, axis=1)
        if not np.allclose(lengths, 1, atol=1e-2) or abs(axes[0] @ axes[1]) > 1e-2:
            raise ValueError(
                f"ImageOrientationPatient {cosines} is not a pair of perpendicular axes"
            )
        axes = np.asarray(axes / lengths[:, None], np.float64)
    spacing = None
    for keyword in _SPACINGS:
        group = "PixelMeasuresSequence" if keyword == "PixelSpacing" else ""
        found = _numbers(attributes.get(keyword, group), 2)
        if found is not None:
            if not (found > 0).all():
                raise ValueError(f"{keyword} {found} is not above 0")
            spacing = (float(found[0]), float(found[1]))
            break
    rescale = "PixelValueTransformationSequence"
    slope, intercept = (
        _number(attributes.get(keyword, rescale))
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if slope == 0:
        raise ValueError("RescaleSlope 0 makes all voxels equal")
    alike = {keyword: str(header.get(keyword) or "") for keyword in _ALIKE}
    alike["RescaleType"] = str(attributes.get("RescaleType", rescale) or "")
    apart = {key: str(attributes.get(key, group) or "") for key, group in _APART.items()}
    shape = (int(header.Rows), int(header.Columns))
    return Plane(path, frame, shape, position, axes, spacing, slope, intercept, alike, apart)


def _stack(path: Path, header: "Dataset", count: int) -> list[Plane]:
    """Frames without per-frame groups; dose and nuclear medicine say where they lie."""
    offsets: NDArray[np.float64] | None
    first = _plane(path, 0, header, None, (header.get("DetectorInformationSequence") or [None])[0])
    detector = (header.get("DetectorInformationSequence") or [None])[0]
    place, axes = first.position, first.axes
    offsets = _numbers(header.get("GridFrameOffsetVector"), count)
    if detector is not None and place is None:
        place = _numbers(detector.get("ImagePositionPatient"), 3)
        cosines = _numbers(detector.get("ImageOrientationPatient"), 6)
        if cosines is not None:
            axes = np.asarray(cosines.reshape(2, 3), np.float64)
    pointers = header.get("FrameIncrementPointer")
    step = _number(header.get("SpacingBetweenSlices"))
    if offsets is None and step and _is_slice_vector(pointers):
        offsets = np.asarray(np.arange(count) * step, np.float64)
    if offsets is None or place is None or axes is None:
        raise InputError(
            f"{path} has {count} frames and does not say where each lies; frames of one place are "
            f"a film, no volume: save it as a video or as single images, or, if it is a volume, as "
            f"NIfTI"
        )
    normal = np.cross(axes[0], axes[1])
    # A dose grid's offsets may count from the first plane or be positions along z already.
    offsets = np.asarray(offsets - offsets[0], np.float64)
    scale = _number(header.get("DoseGridScaling"))
    return [
        Plane(
            path,
            number,
            first.shape,
            np.asarray(place + offset * normal, np.float64),
            axes,
            first.spacing,
            first.slope if scale is None else scale,
            first.intercept,
            first.alike,
            first.apart,
        )
        for number, offset in enumerate(offsets)
    ]


def _is_slice_vector(pointers: Any) -> bool:
    """Whether frames go from slice to slice and along nothing else."""
    return pointers is not None and str(pointers).replace(" ", "").strip("()") == "0054,0080"


def _number(value: Any) -> float | None:
    if value is None or value == "":
        return None
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"{value} is not finite")
    return number


def _numbers(value: Any, count: int) -> NDArray[np.float64] | None:
    if value is None or (hasattr(value, "__len__") and len(value) == 0):
        return None
    numbers = np.array([float(part) for part in value])
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"{value} should be {count} numbers")
    return numbers
