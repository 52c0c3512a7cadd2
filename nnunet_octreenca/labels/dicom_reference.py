"""Stand-ins for the images that a DICOM segmentation must refer to, without any patient's data."""

import datetime
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.dicom_file import frames_of, read_header
from nnunet_octreenca.errors import InputError, OutputError
from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from pydicom import Dataset

_Vector: TypeAlias = NDArray[np.float64]
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
# May be empty in a DICOM image, and missing in anonymised ones.
_PATIENT = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)


def read_headers(files: Sequence[Path | str], path: Path | str) -> list["Dataset"]:
    """The headers of a series, sorted along its slices' normal as SimpleITK sorts them.

    What a segmentation must have and a source may lack is put in where a value exists: a frame of
    reference, the slices' thickness (from their positions), empty data of the patient. Text is
    decoded, and marked as UTF-8 from here on, as ours is. Headers without a position have no
    frame of reference either: a projection's segmentation lies on its pixels alone.

    Args:
        files: one single-frame file a slice in any order, or multi-frame files, of which the first
            is referred to.
        path: the output, for the error's sentence.

    Raises:
        OutputError: a file is no DICOM image.
    """
    highdicom = import_optional("highdicom", "dicom")
    headers = []
    for file in files:
        try:
            headers.append(read_header(file))
        except InputError as error:
            raise OutputError(
                f"{path} cannot reference {file} ({error}); choose another output format"
            ) from error
    frame_of_reference, study, series = highdicom.UID(), highdicom.UID(), highdicom.UID()
    for header in headers:
        _as_unicode(header)
        for keyword in _PATIENT:
            if keyword not in header:
                setattr(header, keyword, "")
        for keyword, uid in (("StudyInstanceUID", study), ("SeriesInstanceUID", series)):
            if not header.get(keyword):
                setattr(header, keyword, uid)
        if not header.get("SOPInstanceUID"):
            header.SOPInstanceUID = highdicom.UID()
        if not is_placed(header):
            for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator"):
                if keyword in header:
                    delattr(header, keyword)
        elif not header.get("FrameOfReferenceUID"):
            header.FrameOfReferenceUID = frame_of_reference
    if len(headers) > 1 and frames_of(headers[0]) > 1:
        # highdicom refers to one multi-frame file; the others' planes have the same frame of
        # reference, and their own positions.
        headers = headers[:1]
    if len(headers) > 1:
        headers.sort(key=lambda header: _along_normal(header, path))
    _set_measures(headers, path)
    return headers


def is_placed(header: "Dataset") -> bool:
    """Whether an image says where it lies, itself or in its frames' groups."""
    if "PerFrameFunctionalGroupsSequence" in header:
        return True
    detector = (header.get("DetectorInformationSequence") or [header])[0]
    return all(
        item.get("ImagePositionPatient") and item.get("ImageOrientationPatient")
        for item in (detector,)
    ) or bool(header.get("ImagePositionPatient") and header.get("ImageOrientationPatient"))


def _as_unicode(header: "Dataset") -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of text that its character set does not have
        header.decode()
        for element in header:
            if element.VR == "PN" and element.value:
                names = element.value
                several = element.VM > 1
                element.value = [str(name) for name in names] if several else str(names)
    header.SpecificCharacterSet = "ISO_IR 192"


def _set_measures(headers: Sequence["Dataset"], path: Path | str) -> None:
    """Thickness and pixel size, of which highdicom takes the first header's."""
    if not headers or "PerFrameFunctionalGroupsSequence" in headers[0]:
        return
    thickness = 1.0
    if len(headers) > 1:
        first, last = (_along_normal(header, path) for header in (headers[0], headers[-1]))
        thickness = abs(last - first) / (len(headers) - 1) or 1.0
    for header in headers:
        if not header.get("SliceThickness"):
            header.SliceThickness = thickness
        if not header.get("PixelSpacing"):
            other = header.get("ImagerPixelSpacing") or header.get("NominalScannedPixelSpacing")
            header.PixelSpacing = other or [1, 1]


def series_geometry(
    headers: Sequence["Dataset"], path: Path | str
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Spacing, origin and direction (x, y, z) of sorted slices, as SimpleITK has them.

    Raises:
        OutputError: there are fewer than two slices, or they lack a position.
    """
    if len(headers) < 2:
        raise OutputError(f"{path} needs the volume's spacing, origin and direction")
    first, last = headers[0], headers[-1]
    step = (_along_normal(last, path) - _along_normal(first, path)) / (len(headers) - 1)
    rows, columns, normal = _axes(first)
    spacing = (float(first.PixelSpacing[1]), float(first.PixelSpacing[0]), step)
    origin = tuple(float(part) for part in first.ImagePositionPatient)
    direction = np.stack([rows, columns, normal], axis=1).ravel().tolist()
    return spacing, origin, tuple(direction)


def _axes(header: "Dataset") -> tuple[_Vector, _Vector, _Vector]:
    cosines = np.array([float(part) for part in header.ImageOrientationPatient])
    return cosines[:3], cosines[3:], np.cross(cosines[:3], cosines[3:])


def _along_normal(header: "Dataset", path: Path | str) -> float:
    if "ImagePositionPatient" not in header or "ImageOrientationPatient" not in header:
        raise OutputError(
            f"{path} cannot reference a series whose slices lack a position; choose another output "
            f"format"
        )
    position = np.array([float(part) for part in header.ImagePositionPatient])
    return float(position @ _axes(header)[2])


def volume_reference(shape: Sequence[int], affine: NDArray[np.float64]) -> "Dataset":
    """A header that stands for the first plane of a volume which is no DICOM.

    Args:
        shape: voxels (z, y, x).
        affine: (4, 4), from indices (z, y, x) to positions (x, y, z) in mm.
    """
    format_ds = import_optional("pydicom.valuerep", "dicom").format_number_as_ds
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    rows, columns = affine[:3, 2] / steps[2], affine[:3, 1] / steps[1]
    header = _anonymous(_SECONDARY_CAPTURE, "OT")
    header.Rows, header.Columns = shape[1:]
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.ImagePositionPatient = [format_ds(float(part)) for part in affine[:3, 3]]
    header.ImageOrientationPatient = [format_ds(float(part)) for part in (*rows, *columns)]
    header.PixelSpacing = [format_ds(float(step)) for step in steps[1:]]
    header.SliceThickness = format_ds(float(steps[0]))
    return header


def slide_reference(shape: Sequence[int], mpp: Sequence[float], tile: int) -> "Dataset":
    """A header of a tiled whole-slide image of this size.

    Args:
        shape: pixels (y, x).
        mpp: microns per pixel (y, x).
        tile: rows and columns of a tile.
    """
    highdicom = import_optional("highdicom", "dicom")
    dataset = import_optional("pydicom", "dicom").Dataset
    header = _anonymous(_WHOLE_SLIDE, "SM")
    header.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    header.Rows = header.Columns = tile
    header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns = shape
    header.NumberOfFrames = int(np.prod([-(-n // tile) for n in shape]))
    header.TotalPixelMatrixFocalPlanes = 1
    header.SamplesPerPixel = 3
    header.PhotometricInterpretation = "RGB"
    header.DimensionOrganizationType = "TILED_FULL"
    # Rows run along the slide's y axis, columns along its x axis.
    header.ImageOrientationSlide = [0, 1, 0, 1, 0, 0]
    origin = dataset()
    origin.XOffsetInSlideCoordinateSystem = 0
    origin.YOffsetInSlideCoordinateSystem = 0
    header.TotalPixelMatrixOriginSequence = [origin]
    header.ImagedVolumeWidth = shape[1] * mpp[1] / 1000
    header.ImagedVolumeHeight = shape[0] * mpp[0] / 1000
    header.ImagedVolumeDepth = 0.001
    groups = dataset()
    groups.PixelMeasuresSequence = highdicom.PixelMeasuresSequence(
        pixel_spacing=[size / 1000 for size in mpp], slice_thickness=0.001
    )
    header.SharedFunctionalGroupsSequence = [groups]
    header.ContainerIdentifier = "anonymous"
    header.IssuerOfTheContainerIdentifierSequence = []
    header.ContainerTypeCodeSequence = []
    header.SpecimenDescriptionSequence = [
        highdicom.SpecimenDescription(specimen_id="anonymous", specimen_uid=highdicom.UID())
    ]
    path = dataset()
    path.OpticalPathIdentifier = "1"
    header.OpticalPathSequence = [path]
    header.NumberOfOpticalPaths = 1
    return header


def _anonymous(sop_class: str, modality: str) -> "Dataset":
    highdicom = import_optional("highdicom", "dicom")
    pydicom = import_optional("pydicom", "dicom")
    header: Dataset = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = highdicom.UID(_EXPLICIT_LITTLE_ENDIAN)
    header.SOPClassUID = sop_class
    for keyword in (
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SOPInstanceUID",
        "FrameOfReferenceUID",
    ):
        setattr(header, keyword, highdicom.UID())
    header.Modality = modality
    header.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _PATIENT:
        setattr(header, keyword, "")
    now = datetime.datetime.now()
    header.StudyDate, header.StudyTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    return header
