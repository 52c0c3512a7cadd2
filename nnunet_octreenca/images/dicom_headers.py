"""DICOM headers: which files are DICOM, and what each plane of an image says of itself."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.libraries import import_optional

# SOP classes that have rows and columns and are no image of a patient: SEG, label map, dose.
_DERIVED = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",
    "1.2.840.10008.5.1.4.1.1.481.2": "RTDOSE",
}
_DIRECTORY = "1.2.840.10008.1.3.10"
_VALUE_REPRESENTATIONS = (b"CS", b"UI", b"UL", b"SH", b"LO", b"DA", b"TM", b"OB", b"PN", b"ST")

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
    alike: dict[str, Any]
    apart: dict[str, Any]

    @property
    def name(self) -> str:
        """The file's name, and the frame as DICOM counts it, from 1."""
        return self.file.name + ("" if self.frame is None else f" frame {self.frame + 1}")


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, or as those do that were saved without preamble."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or _begins_with_an_element(head)


def _begins_with_an_element(head: bytes) -> bool:
    """Whether the first bytes are a low element of group 2 or 8, in any of DICOM's encodings."""
    if len(head) < 16:
        return False
    for order in ("little", "big"):
        group, element = (int.from_bytes(head[at : at + 2], order) for at in (0, 2))  # type: ignore[arg-type]
        if group in (2, 8) and element <= 0x0120:
            if head[4:6] in _VALUE_REPRESENTATIONS:
                return True
            length = int.from_bytes(head[4:8], order)  # type: ignore[arg-type]
            # Implicit: an even, short length, and text, a UID or a group's length behind it.
            if 2 <= length <= 64 and length % 2 == 0:
                text = head[8 : 8 + length].rstrip(b"\0")
                return (element == 0 and length == 4) or all(32 <= byte < 127 for byte in text)
    return False


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, not of the folders in it; neither DICOMDIR nor hidden files."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file()
        and file.name.upper() != "DICOMDIR"
        and file.name[0] != "."
        and is_dicom(file)
    )


def not_dicom(folder: Path) -> list[Path]:
    """Files of a folder that are called DICOM and do not begin so: empty ones, cut ones."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in (".dcm", ".ima")
        and file.name[0] != "."
        and file.is_file()
        and not is_dicom(file)
    )


def read_header(path: Path | str) -> Any:
    """A file's elements up to its pixels, as a `pydicom.Dataset`; with or without preamble.

    Raises:
        InputError: it is no DICOM, or ends before its header or its pixels do.
        EnvironmentMismatchError: pydicom is not installed.
    """
    pydicom = import_optional("pydicom", "dicom")
    path = Path(path)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pydicom, on values that are none of ours
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            left = path.stat().st_size - file.tell()
    except Exception as error:  # a damaged file can raise anything
        raise InputError(
            f"{path} cannot be read as DICOM ({_first_line(error)}); it is truncated or damaged"
        ) from error
    sop_class = pydicom.uid.UID(str(header.get("SOPClassUID", "")))
    if "Rows" not in header and (not sop_class or "Image Storage" in sop_class.name):
        raise InputError(
            f"{path} cannot be read as DICOM (it ends before it says its size); it is truncated or "
            f"damaged"
        )
    if kind_of_header(header) == "image":
        _require_pixels(path, header, left)
    return header


def kind_of_header(header: Any) -> str:
    """ "image", or what else the file is: SEG, RTSTRUCT, SR, PR, DICOMDIR, ..."""
    sop_class = str(header.get("SOPClassUID", ""))
    if sop_class in _DERIVED:
        return _DERIVED[sop_class]
    if sop_class == _DIRECTORY or "DirectoryRecordSequence" in header:
        return "DICOMDIR"
    if "Rows" in header and "Columns" in header:
        return "image"
    return str(header.get("Modality", "")) or "object without pixels"


def transfer_syntax(header: Any) -> Any:
    """How the pixels are stored; implicit little endian where nothing is said."""
    uid = import_optional("pydicom.uid", "dicom")
    meta = getattr(header, "file_meta", None)
    given = meta.get("TransferSyntaxUID") if meta is not None else None
    if given:
        return uid.UID(str(given))
    implicit, little = header.original_encoding
    if little is False:
        return uid.ExplicitVRBigEndian
    return uid.ImplicitVRLittleEndian if implicit is not False else uid.ExplicitVRLittleEndian


def frames_of(header: Any) -> int:
    """Frames of an image, 1 where nothing is said."""
    return max(1, int(header.get("NumberOfFrames") or 1))


def _require_pixels(path: Path, header: Any, left: int) -> None:
    """Refuse native pixels that the file is too short for."""
    syntax = transfer_syntax(header)
    if syntax.is_compressed or getattr(syntax, "is_deflated", False):
        return
    bits = int(header.get("BitsAllocated") or 8)
    values = int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel") or 1)
    promised = frames_of(header) * values * bits // 8
    if str(header.get("PhotometricInterpretation", "")) == "YBR_FULL_422":
        promised = promised * 2 // 3
    if left < promised:
        raise InputError(
            f"{path} cannot be read as DICOM (it promises {promised:,} bytes of pixels and "
            f"{max(left, 0):,} are there); it is truncated or damaged"
        )


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


def planes_of(path: Path, header: Any) -> list[Plane]:
    """The planes of an image file in the order in which it stores them.

    Raises:
        InputError: a number in the header is none, or frames of a file have no place.
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
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"{path} has a header that cannot be understood ({_first_line(error)}); correct it, "
            f"or leave the file out"
        ) from error


class _Attributes:
    """An image's attributes as one frame has them: its own group, the shared one, the file's."""

    def __init__(self, header: Any, shared: Any, own: Any) -> None:
        self._header, self._groups = header, [group for group in (own, shared) if group is not None]

    def get(self, keyword: str, sequence: str = "") -> Any:
        for group in self._groups:
            for item in (group.get(sequence) or []) if sequence else []:
                if keyword in item and item.get(keyword) is not None:
                    return item.get(keyword)
        return self._header.get(keyword)


def _plane(path: Path, frame: int | None, header: Any, shared: Any, own: Any) -> Plane:
    attributes = _Attributes(header, shared, own)
    position = _numbers(attributes.get("ImagePositionPatient", "PlanePositionSequence"), 3)
    cosines = _numbers(attributes.get("ImageOrientationPatient", "PlaneOrientationSequence"), 6)
    axes = None if cosines is None else cosines.reshape(2, 3)
    if axes is not None:
        lengths = np.linalg.norm(axes, axis=1)
        if not np.allclose(lengths, 1, atol=1e-2) or abs(axes[0] @ axes[1]) > 1e-2:
            raise ValueError(f"ImageOrientationPatient {cosines} is no pair of perpendicular axes")
        axes = axes / lengths[:, None]
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


def _stack(path: Path, header: Any, count: int) -> list[Plane]:
    """Frames without groups of their own; dose and nuclear medicine say where they lie."""
    first = _plane(path, 0, header, None, (header.get("DetectorInformationSequence") or [None])[0])
    detector = (header.get("DetectorInformationSequence") or [None])[0]
    place, axes = first.position, first.axes
    offsets = _numbers(header.get("GridFrameOffsetVector"), count)
    if detector is not None and place is None:
        place = _numbers(detector.get("ImagePositionPatient"), 3)
        cosines = _numbers(detector.get("ImageOrientationPatient"), 6)
        axes = axes if cosines is None else cosines.reshape(2, 3)
    pointers = header.get("FrameIncrementPointer")
    step = _number(header.get("SpacingBetweenSlices"))
    if offsets is None and step and _is_slice_vector(pointers):
        offsets = np.arange(count) * step
    if offsets is None or place is None or axes is None:
        raise InputError(
            f"{path} has {count} frames and does not say where each lies; frames of one place are "
            f"a film, no volume: save it as a video or as single images, or, if it is a volume, as "
            f"NIfTI"
        )
    normal = np.cross(axes[0], axes[1])
    # A dose grid's offsets may count from the first plane or be positions along z already.
    offsets = offsets - offsets[0]
    scale = _number(header.get("DoseGridScaling"))
    return [
        Plane(
            path,
            number,
            first.shape,
            place + offset * normal,
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
