"""Volumes: NIfTI, NRRD, MetaImage and DICOM series, whole in memory in their own type."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.dicom_file import is_dicom
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import require_utf8
from nnunet_octreenca.images.dicom_pixels import read_voxels
from nnunet_octreenca.images.dicom_series import read_stack
from nnunet_octreenca.images.file_kinds import content_of
from nnunet_octreenca.images.finite import require_finite
from nnunet_octreenca.images.header_checks import require_memory
from nnunet_octreenca.images.nifti import read_nifti
from nnunet_octreenca.images.source import Geometry, ImageInfo
from nnunet_octreenca.images.volume_checks import require_own_files, require_whole

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".ima")

_NIFTI_ENDINGS = (".nii.gz", ".nii")
# Asked for by name: ITK finds a reader by an ending in lower case, and says less where none fits.
_ITK_READERS = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
_CONTENTS = {"NrrdImageIO": "NRRD", "MetaImageIO": "MetaImage"}
_SHEARED = 0.25  # of a voxel
_NOT_UPRIGHT = (
    "its axes are not at right angles (not orthonormal); save it as NIfTI, or resample it to an "
    "upright grid"
)
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # SOP class of microscopy images in tiles


class _Owned:
    """An array over the voxels of an ITK image that keeps the image alive; ITK's own does not."""

    def __init__(self, image: Any) -> None:
        import SimpleITK as sitk

        self._image = image
        self.__array_interface__ = sitk.GetArrayViewFromImage(image).__array_interface__


class VolumeSource:
    """A volume, read as it is opened; `read` gives views, which cannot be written to.

    Args:
        path: a file, or a folder of DICOM files.
        series: SeriesInstanceUID, where the folder holds several.

    Attributes:
        shape: (z, y, x), or (y, x) of a 2-D file.
        channels: components of a voxel, or the length of a fourth axis.
        dtype: as stored; float32 where a header scales by anything but whole numbers.
        spacing: mm in the order of `shape`.
        geometry: of the file, for what is written on the same grid; `info`'s.

    Raises:
        InputError: the file is missing, truncated, damaged or of another format, its header
            promises more than it or this machine can hold, voxels are NaN or infinite, or the
            planes of a DICOM series are no even, upright stack.
        EnvironmentMismatchError: the library that reads DICOM is not installed.
    """

    def __init__(self, path: Path | str, *, series: str | None = None) -> None:
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path} does not exist")
        self._notes: tuple[str, ...] = ()
        name = path.name.lower()
        if path.is_dir() or is_dicom(path):
            voxels = self._dicom(path, series)
        elif name.endswith(_NIFTI_ENDINGS):
            volume = read_nifti(path)
            voxels = volume.voxels
            self.geometry = Geometry(
                volume.spacing, volume.origin, volume.direction, path, None, volume.place
            )
        else:
            image = _read_file(path)
            voxels = _with_channels(path, image)
            self.geometry = _geometry(image, path)
            _require_upright(self.geometry, image.GetSize())
        require_finite(path, voxels)
        self._voxels: Pixels = voxels
        self.channels = voxels.shape[0]
        self.shape = voxels.shape[1:]
        self.dtype = voxels.dtype
        self.spacing = tuple(reversed(self.geometry.spacing))
        self.info = ImageInfo(geometry=self.geometry, kept_bytes=voxels.nbytes, notes=self._notes)

    def _dicom(self, path: Path, series: str | None) -> Pixels:
        stack = read_stack(path, series)
        first = stack.headers[stack.planes[0].file]
        if str(first.get("SOPClassUID", "")) == _WHOLE_SLIDE:
            raise InputError(
                f'{path} is a slide in DICOM; run pip install "nnunet-octreenca[slides]" to read it'
            )
        self._notes = stack.notes
        self.geometry = Geometry(stack.spacing, stack.origin, stack.direction, path, stack.files)
        return read_voxels(path, stack)

    def read(self, first: int, end: int) -> Pixels:
        """A view of the band."""
        return self._voxels[:, first:end]

    def close(self) -> None:
        """Release the voxels, once no view of them is left; a second call does nothing."""
        self._voxels = self._voxels[:, :0].copy()


def _read_file(path: Path) -> Any:
    import SimpleITK as sitk

    name = path.name.lower()
    kind = next((kind for ending, kind in _ITK_READERS.items() if name.endswith(ending)), None)
    content = content_of(path)
    if content is not None and content != _CONTENTS.get(kind or ""):
        raise InputError(f"{path} does not hold what its name says: it is {content}")
    if kind is None:
        raise InputError(
            f"{path} is not a DICOM file: it has neither its mark (DICM at byte 128) nor begins "
            f"with an element"
        )
    require_utf8(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(kind)
    reader.SetFileName(str(path))
    try:
        require_own_files(path)
        reader.ReadImageInformation()
        promised = _bytes(reader)
        require_whole(path, promised)
        require_memory(path, promised)
        return reader.Execute()
    except RuntimeError as error:  # all that SimpleITK raises
        raise InputError(f"{path} cannot be read as a volume: {_reason(error)}") from error


def _with_channels(path: Path, image: Any) -> Pixels:
    """A view (channels, z, y, x) or (channels, y, x) of ITK's voxels."""
    voxels = np.asarray(_Owned(image))
    dimension, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    if dimension not in (2, 3, 4) or (dimension == 4 and components > 1):
        raise InputError(
            f"{path} has {dimension} axes and {components} values a voxel; only volumes with "
            f"channels can be read"
        )
    if components > 1:
        voxels = np.moveaxis(voxels, -1, 0)
    elif dimension < 4:
        voxels = voxels[None]
    if voxels.dtype.kind not in "iuf":
        raise InputError(f"{path} holds {image.GetPixelIDTypeAsString()}; save its magnitude")
    return voxels


def _bytes(header: Any) -> int:
    import SimpleITK as sitk

    one = sitk.Image([1] * header.GetDimension(), header.GetPixelID(), 1)
    voxels = prod(header.GetSize()) * header.GetNumberOfComponents()
    return int(voxels * one.GetSizeOfPixelComponent())


def _geometry(image: Any, path: Path) -> Geometry:
    """Without the fourth axis, which is of channels."""
    dimension = image.GetDimension()
    axes = min(dimension, 3)
    direction = np.reshape(image.GetDirection(), (dimension, dimension))[:axes, :axes]
    return Geometry(
        tuple(image.GetSpacing()[:axes]),
        tuple(image.GetOrigin()[:axes]),
        tuple(map(float, direction.ravel())),
        path,
        None,
    )


def _require_upright(geometry: Geometry, size: Sequence[int]) -> None:
    """Refuse axes that are not at right angles: the farthest voxel off by a quarter of one."""
    axes = len(geometry.spacing)
    direction = np.reshape(geometry.direction, (axes, axes))
    left, _, right = np.linalg.svd(direction)
    off = np.abs((direction - left @ right) * geometry.spacing @ np.asarray(size[:axes]))
    if off.max() > _SHEARED * min(geometry.spacing):
        raise InputError(f"{geometry.path} cannot be read as a volume: {_NOT_UPRIGHT}")


def _reason(error: RuntimeError) -> str:
    """What ITK says, with what to do; its last line is the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = lines[-1] if lines else "unknown reason"
    if "orthonormal" in str(error).lower() or "Bad direction" in str(error):
        return _NOT_UPRIGHT
    if "pixel type" in cause.lower() or "unsupported" in cause.lower():
        return f"{cause}; save it as integers or floats"
    return f"{cause}; the file is damaged, or its header is wrong"
