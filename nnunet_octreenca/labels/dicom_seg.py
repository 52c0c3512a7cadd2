"""A label map as a DICOM segmentation, of a volume or of a slide."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca import __version__
from nnunet_octreenca.arrays import Labels
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels.dicom_reference import (
    is_placed,
    read_headers,
    series_geometry,
    slide_reference,
    volume_reference,
)
from nnunet_octreenca.labels.output import (
    atomic_output,
    check_axes,
    class_name,
    greatest_label,
)
from nnunet_octreenca.labels.palette import colour
from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from highdicom import Volume
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom import Dataset
    from typing_extensions import Unpack

_JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_CODES = "99OCTREENCA"  # schemes that begin with 99 are private


class SegPlace(TypedDict, total=False):
    """Where labels lie: arguments that `write_dicom_seg` and `check_dicom_seg` share."""

    spacing: Sequence[float] | None
    origin: Sequence[float] | None
    direction: Sequence[float] | None
    dicom_files: Sequence[Path | str] | None
    mpp: float | Sequence[float] | None


def write_dicom_seg(
    labels: Labels,
    path: Path | str,
    *,
    names: dict[int, str],
    labelmap: bool = False,
    tile: int = 512,
    **place: "Unpack[SegPlace]",
) -> None:
    """Write a DICOM segmentation with one segment for each class above 0.

    Segment numbers are the labels. The type is BINARY: one bit per pixel and class in the frames
    where the class occurs, which every viewer with segmentations opens. LABELMAP is far smaller
    with many classes (one byte per pixel, JPEG-LS), but new (2024) and read by few viewers. BINARY
    takes up to a quarter byte per pixel and class of memory, LABELMAP a little over one byte per
    pixel.

    A volume from a DICOM series refers to it, in the same study, patient and frame of reference.
    Other volumes and slides refer to an image that does not exist, of an unnamed patient.

    Args:
        labels: (z, y, x) for a volume, (y, x) for a slide; uint8 or int16, not negative.
        path: the file, `.dcm`.
        names: label to class name.
        spacing, origin, direction: of a volume, as SimpleITK has them, axes (x, y, z), in mm;
            by default from `dicom_files`, else ones, zeros and the axes themselves.
        dicom_files: the volume's own files, one for each plane or one in all.
        mpp: of a slide, microns per pixel, one number or (y, x).
        labelmap: write LABELMAP.
        tile: rows and columns of a slide's tiles.

    Raises:
        OutputError: the labels or the geometry do not fit, or the disk is full.
        EnvironmentMismatchError: highdicom is not installed.
    """
    segmentation = _segmentation(
        labels,
        path,
        names=names,
        place=place,
        labelmap=labelmap,
        tile=tile,
    )
    with atomic_output(path) as temporary:
        segmentation.save_as(temporary)


def check_dicom_seg(
    shape: tuple[int, ...],
    path: Path | str,
    *,
    names: dict[int, str],
    **place: "Unpack[SegPlace]",
) -> None:
    """Refuse what `write_dicom_seg` would, before there are labels.

    A segmentation of a volume with a single labelled voxel is made and thrown away; of a slide,
    whose header is ours, the pixel size is asked for.

    Raises:
        OutputError: as `write_dicom_seg`.
        EnvironmentMismatchError: highdicom is not installed.
    """
    if len(shape) == 2:
        _require_mpp(path, place.get("mpp"))
        return
    labels = np.zeros(shape, np.uint8)
    labels[0, 0, 0] = 1
    _segmentation(
        labels,
        path,
        names={label: name for label, name in names.items() if label <= 1},
        place=place,
        labelmap=False,
        tile=512,
    )


def _segmentation(
    labels: Labels,
    path: Path | str,
    *,
    names: dict[int, str],
    place: SegPlace,
    labelmap: bool,
    tile: int,
) -> "Segmentation":
    """The data set of `write_dicom_seg`."""
    check_axes(labels, path, (2, 3))
    highdicom = import_optional("highdicom", "dicom")
    greatest = greatest_label(labels, path)
    if labels.dtype != np.uint8:
        # Not negative, so that the same bits mean the same.
        labels = labels.view(np.uint16) if labels.itemsize == 2 else labels.astype(np.uint16)
    affine = None
    options: dict[str, object] = {}
    if labels.ndim == 3:
        headers = read_headers(place.get("dicom_files") or (), path)
        _check_planes(headers, labels, path)
        geometry = (place.get("spacing"), place.get("origin"), place.get("direction"))
        if headers and geometry == (None, None, None):
            geometry = series_geometry(headers, path)
        affine = _affine(*geometry)
        headers = headers or [volume_reference(labels.shape, affine)]
    else:
        mpp = np.broadcast_to(_require_mpp(path, place.get("mpp")), 2).tolist()
        headers = [slide_reference(labels.shape, mpp, tile)]
        options = {"tile_pixel_array": True, "tile_size": (tile, tile)}
    # Numbered without a gap, as BINARY wants it; at least one.
    classes = range(1, max(1, greatest, *names) + 1)
    try:
        placed = affine is not None and is_placed(headers[0])
        pixels = labels if affine is None or not placed else _volume(labels, affine, headers[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of highdicom, on the form of patients' names
            segmentation: Segmentation = highdicom.seg.Segmentation(
                source_images=headers,
                pixel_array=pixels,
                segmentation_type="LABELMAP" if labelmap else "BINARY",
                segment_descriptions=[_segment(label, names) for label in classes],
                series_instance_uid=highdicom.UID(),
                series_number=1,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="nnunet_octreenca",
                manufacturer_model_name="nnunet_octreenca",
                software_versions=__version__,
                device_serial_number="0",
                content_label="SEGMENTATION",
                transfer_syntax_uid=_JPEG_LS_LOSSLESS if labelmap else _EXPLICIT_LITTLE_ENDIAN,
                **options,
            )
        if labels.ndim == 2 or not placed:
            segmentation.PatientOrientation = ""  # without a position in a patient
    except (AttributeError, TypeError, ValueError) as error:
        raise OutputError(
            f"{path} cannot be written as a DICOM segmentation (highdicom: {error}); choose "
            f"another output format"
        ) from error
    return segmentation


def _require_mpp(path: Path | str, mpp: float | Sequence[float] | None) -> float | Sequence[float]:
    if mpp is None:
        raise OutputError(f"{path} needs the pixel size of the slide; give it with --mpp")
    return mpp


def _segment(label: int, names: dict[int, str]) -> "SegmentDescription":
    highdicom = import_optional("highdicom", "dicom")
    codes = import_optional("pydicom.sr.codedict", "dicom").codes
    # A DICOM LO holds 64 characters; a backslash would part two values.
    name = class_name(names, label).replace("\\", "/")[:64] or f"label {label}"
    description: SegmentDescription = highdicom.seg.SegmentDescription(
        segment_number=label,
        segment_label=name,
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=highdicom.sr.CodedConcept(f"LABEL{label}", _CODES, name),
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="nnunet_octreenca",
            version=__version__,
            family=codes.DCM.ArtificialIntelligence,
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*colour(label)),
    )
    return description


def _volume(labels: Labels, affine: NDArray[np.float64], header: "Dataset") -> "Volume":
    volume: Volume = import_optional("highdicom", "dicom").Volume(
        labels,
        affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=header.FrameOfReferenceUID,
    )
    return volume


def _affine(
    spacing: Sequence[float] | None,
    origin: Sequence[float] | None,
    direction: Sequence[float] | None,
) -> NDArray[np.float64]:
    # From (z, y, x) indices to (x, y, z) positions.
    axes = np.eye(3) if direction is None else np.reshape(direction, (3, 3))
    affine = np.eye(4)
    affine[:3, :3] = (axes * (1.0 if spacing is None else spacing))[:, ::-1]
    affine[:3, 3] = 0.0 if origin is None else origin
    return affine


def _check_planes(headers: list["Dataset"], labels: Labels, path: Path | str) -> None:
    if len(headers) > 1 and (len(headers), headers[0].Rows, headers[0].Columns) != labels.shape:
        found = (len(headers), headers[0].Rows, headers[0].Columns)
        raise OutputError(
            f"{path} cannot reference its DICOM series: the series has shape {found}, the labels "
            f"{labels.shape}"
        )
