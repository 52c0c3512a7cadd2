"""Stand-ins for the images that a DICOM segmentation must refer to, with nobody's data in them."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.libraries import import_optional

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
# May be empty in a DICOM image, and missing in those that were made anonymous.
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


def read_headers(files: Sequence[Path | str], path: Path | str) -> list[Any]:
    """The headers of a series, sorted along its slices' normal as SimpleITK sorts them.

    Args:
        files: one single-frame file a slice in any order, or one multi-frame file.
        path: the output, for the error's sentence.

    Raises:
        OutputError: a file is no DICOM image.
    """
    pydicom = import_optional("pydicom", "dicom")
    headers = []
    for file in files:
        try:
            headers.append(pydicom.dcmread(file, stop_before_pixels=True))
        except (OSError, pydicom.errors.InvalidDicomError) as error:
            raise OutputError(
                f"{path} cannot reference {file}, which cannot be read ({error}); choose another "
                f"output format"
            ) from error
    for header in headers:
        for keyword in _PATIENT:
            if keyword not in header:
                setattr(header, keyword, "")
    if len(headers) > 1:
        headers.sort(key=lambda header: _along_normal(header, path))
    return headers


def series_geometry(
    headers: Sequence[Any], path: Path | str
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


def _axes(header: Any) -> tuple[Any, Any, Any]:
    cosines = np.array([float(part) for part in header.ImageOrientationPatient])
    return cosines[:3], cosines[3:], np.cross(cosines[:3], cosines[3:])


def _along_normal(header: Any, path: Path | str) -> float:
    if "ImagePositionPatient" not in header or "ImageOrientationPatient" not in header:
        raise OutputError(
            f"{path} cannot reference a series whose slices lack a position; choose another output "
            f"format"
        )
    position = np.array([float(part) for part in header.ImagePositionPatient])
    return float(position @ _axes(header)[2])


def volume_reference(shape: Sequence[int], affine: NDArray[np.float64]) -> Any:
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


def slide_reference(shape: Sequence[int], mpp: Sequence[float], tile: int) -> Any:
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
    header.SpecimenDescriptionSequence = []
    path = dataset()
    path.OpticalPathIdentifier = "1"
    header.OpticalPathSequence = [path]
    header.NumberOfOpticalPaths = 1
    return header


def _anonymous(sop_class: str, modality: str) -> Any:
    highdicom = import_optional("highdicom", "dicom")
    pydicom = import_optional("pydicom", "dicom")
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = _EXPLICIT_LITTLE_ENDIAN
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
