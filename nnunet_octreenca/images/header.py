"""What a file's header says of its image, without the pixels: enough to plan memory with."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_octreenca.dicom_file import is_dicom
from nnunet_octreenca.files import require_utf8
from nnunet_octreenca.images.open_image import kind_of, open_channels
from nnunet_octreenca.images.video import video_shape


@dataclass(frozen=True)
class ImageHeader:
    """Size and type of an image.

    Attributes:
        shape: cells per axis, (y, x) or (z, y, x); of a video (frame, y, x).
        channels: as `ImageSource` counts them.
        dtype: of the pixels, or a larger type where the header does not settle it.
        spacing: mm per axis in the order of `shape`.
        kept_bytes: that an open image keeps in memory.
    """

    shape: tuple[int, ...]
    channels: int
    dtype: np.dtype[Any]
    spacing: tuple[float, ...]
    kept_bytes: int


def read_header(
    files: Sequence[Path],
    *,
    channels: int,
    mpp: float | None = None,
    series: str | None = None,
) -> ImageHeader:
    """The header of a case; videos are not decoded, and of volumes in files no voxel is read.

    Args:
        files: in the order of the channels.
        channels, mpp, series: as for `open_channels`.

    Raises:
        InputError: as `open_channels`.
        EnvironmentMismatchError: the library that reads the file is not installed.
    """
    first = files[0]
    kind = kind_of(first)
    if kind == "video":
        shape = video_shape(first)
        return ImageHeader(shape, 3, np.dtype(np.uint8), (1.0,) * 3, 0)
    if kind == "volume" and first.is_file() and not is_dicom(first):
        header = _volume_header(first, len(files))
        if header is not None:
            return header
    source = open_channels(files, channels=channels, mpp=mpp, series=series)
    try:
        kept = source.info.kept_bytes
        return ImageHeader(source.shape, source.channels, source.dtype, source.spacing, kept)
    finally:
        source.close()


def _volume_header(path: Path, files: int) -> ImageHeader | None:
    """ITK's view of a header; None where it has none, and the reader of the file shall say why."""
    import SimpleITK as sitk

    require_utf8(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    size, spacing = reader.GetSize(), reader.GetSpacing()
    axes = min(len(size), 3)
    channels = files * reader.GetNumberOfComponents() * prod(size[axes:])
    dtype = np.dtype(np.float32)  # voxels may be scaled to it
    shape = tuple(int(cells) for cells in reversed(size[:axes]))
    return ImageHeader(
        shape,
        channels,
        dtype,
        tuple(float(mm) for mm in reversed(spacing[:axes])),
        2 * prod(shape) * channels * dtype.itemsize,  # as stored, and converted
    )
