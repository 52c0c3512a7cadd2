"""Volumes: NIfTI, NRRD, MetaImage and DICOM series, whole in memory in their own type."""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.dicom_series import is_dicom, series_files
from nnunet_octreenca.images.header_checks import require_memory
from nnunet_octreenca.images.source import Geometry, ImageInfo
from nnunet_octreenca.images.volume_checks import require_whole

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".ima")

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
        path: a file, or the folder of one DICOM series.

    Attributes:
        shape: (z, y, x), or (y, x) of a 2-D file.
        channels: components of a voxel, or the length of a fourth axis.
        dtype: as ITK reads it: floats where a NIfTI header has a slope.
        spacing: mm in the order of `shape`.
        geometry: of the file, for what is to be written beside it; `info`'s.

    Raises:
        InputError: the file is missing, truncated or damaged, its header promises more than it
            or this machine can hold, or a slice of a series is missing.
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path} does not exist")
        try:
            if path.is_dir():
                files: list[Path] | None = series_files(path)
                image = _read_series(files or [])
            else:
                image = _read_file(path)
                files = [path] if is_dicom(path) else None
        except RuntimeError as error:  # all that SimpleITK raises
            raise InputError(
                f"{path} cannot be read as a volume ({_reason(error)}); it is damaged or of "
                f"another format"
            ) from error
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
        self._voxels: NDArray = voxels
        self.channels = voxels.shape[0]
        self.shape = voxels.shape[1:]
        self.dtype = voxels.dtype
        self.geometry = _geometry(image, path, files)
        self.spacing = tuple(reversed(self.geometry.spacing))
        self.info = ImageInfo(geometry=self.geometry, kept_bytes=voxels.nbytes)

    def read(self, first: int, end: int) -> NDArray:
        """A view of the band."""
        return self._voxels[:, first:end]

    def close(self) -> None:
        """Give back the voxels, once no view of them is left; a second call does nothing."""
        self._voxels = self._voxels[:, :0].copy()


def _read_file(path: Path) -> Any:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.HasMetaDataKey("0008|0016") and _WHOLE_SLIDE in reader.GetMetaData("0008|0016"):
        raise InputError(
            f'{path} is a slide in DICOM; run pip install "nnunet-octreenca[slides]" to read it'
        )
    promised = _bytes(reader)
    require_whole(path, reader, promised)
    require_memory(path, promised)
    return reader.Execute()


def _read_series(files: list[Path]) -> Any:
    import SimpleITK as sitk

    header = sitk.ImageFileReader()
    header.SetFileName(str(files[0]))
    header.ReadImageInformation()
    require_memory(files[0].parent, len(files) * _bytes(header))
    if len(files) == 1:
        return header.Execute()
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    return reader.Execute()


def _bytes(header: Any) -> int:
    import SimpleITK as sitk

    one = sitk.Image([1] * header.GetDimension(), header.GetPixelID(), 1)
    return prod(header.GetSize()) * header.GetNumberOfComponents() * one.GetSizeOfPixelComponent()


def _geometry(image: Any, path: Path, files: list[Path] | None) -> Geometry:
    """Without the fourth axis, which is of channels."""
    dimension = image.GetDimension()
    axes = min(dimension, 3)
    direction = np.reshape(image.GetDirection(), (dimension, dimension))[:axes, :axes]
    return Geometry(
        tuple(image.GetSpacing()[:axes]),
        tuple(image.GetOrigin()[:axes]),
        tuple(map(float, direction.ravel())),
        path,
        files,
    )


def _reason(error: RuntimeError) -> str:
    """The last line of what ITK says, which is the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "unknown reason"
