"""What an image looks like to everything that reads it in bands."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.levels import Bounds
from nnunet_octreenca.nifti_place import NiftiPlace


@dataclass(frozen=True)
class Geometry:
    """Where a volume lies in the patient, in ITK's order of axes: x, y, z (2-D: x, y).

    Attributes:
        spacing: mm per axis.
        origin: mm, of the centre of the first voxel.
        direction: cosines, row by row.
        path: what was read, a file or a DICOM folder.
        dicom_files: the slices in their order, or the single DICOM file; None for other formats.
        nifti: what a NIfTI file says of its place; None for other formats.
    """

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    path: Path
    dicom_files: list[Path] | None
    nifti: NiftiPlace | None = None


@dataclass(frozen=True)
class ImageInfo:
    """What a file says about its image; the defaults stand for "nothing".

    Attributes:
        mpp: of a 2-D image, microns per pixel as it is read.
        base_shape: of a level of a pyramid, (y, x) of the finest level in pixels.
        bounds: of a slide of which a part was scanned, that part: (x, y, width, height) in pixels
            of the finest level. QuPath cuts the slide to it.
        geometry: of a volume, its place in the patient.
        is_video: the first axis is time.
        fps: of a video, frames per second; the mean where they differ.
        pixel_aspect: of a video, a pixel's width over its height.
        files: of a video in frames, their files in order.
        kept_bytes: that stay in memory between two bands, at most.
        notes: sentences about what was left out or chosen, for the user.
        name: what errors call the image: its path, or those of its channels.
    """

    mpp: float | None = None
    base_shape: tuple[int, int] | None = None
    bounds: Bounds | None = None
    geometry: Geometry | None = None
    is_video: bool = False
    fps: Fraction | None = None
    pixel_aspect: Fraction | None = None
    files: tuple[Path, ...] | None = None
    kept_bytes: int = 0
    notes: tuple[str, ...] = ()
    name: str = "the image"


NO_INFO = ImageInfo()


class ImageSource(Protocol):
    """An image that is read band by band along its first spatial axis, never as a whole.

    Attributes:
        shape: cells per axis, (y, x) or (z, y, x); of a video (frame, y, x).
        channels: how many, as the data set's `channel_names` counts them.
        dtype: of what `read` returns.
        spacing: mm per axis in the order of `shape`; 1.0 where the file says nothing.
        info: what else the file says; `NO_INFO` for computed images.
    """

    shape: tuple[int, ...]
    channels: int
    dtype: np.dtype[Any]
    spacing: tuple[float, ...]
    info: ImageInfo

    def read(self, first: int, end: int) -> Pixels:
        """Rows (2-D) or planes (3-D) `first` to `end - 1`: (channels, end - first, *shape[1:]).

        Any order and any overlap is allowed; ascending bands are what a source is fastest at.

        Raises:
            InputError: the file is damaged there.
        """
        ...

    def close(self) -> None:
        """Close what is open; a second call does nothing."""
        ...


class ArraySource:
    """An array in memory as an image that is read in bands.

    Args:
        array: (channels, y, x) or (channels, z, y, x) of any number type; not copied.
        spacing: mm per spatial axis in the array's order; ones if left out.

    Attributes:
        shape: (y, x) or (z, y, x).

    Raises:
        InputError: the array has no 2 or 3 spatial axes, or `spacing` another number of them.

    >>> import numpy as np
    >>> image = ArraySource(np.arange(24).reshape(1, 4, 6), spacing=(0.5, 0.5))
    >>> image.shape, image.channels
    ((4, 6), 1)
    >>> image.read(1, 3)[0, :, 0].tolist()
    [6, 12]
    """

    def __init__(self, array: Pixels, spacing: Sequence[float] | None = None) -> None:
        if array.ndim not in (3, 4):
            raise InputError(
                f"an array of shape {array.shape} is not an image; give (channels, y, x) or "
                f"(channels, z, y, x)"
            )
        self.array = array
        self.shape: tuple[int, ...] = tuple(array.shape[1:])
        self.channels: int = array.shape[0]
        self.dtype: np.dtype[Any] = array.dtype
        self.spacing: tuple[float, ...] = (1.0,) * len(self.shape)
        self.info = NO_INFO
        if spacing is not None:
            self.spacing = tuple(spacing)
        if len(self.spacing) != len(self.shape):
            raise InputError(f"spacing {self.spacing} must have {len(self.shape)} numbers")

    def read(self, first: int, end: int) -> Pixels:
        """Rows or planes `first` to `end - 1`, a view: (channels, end - first, *shape[1:])."""
        return self.array[:, first:end]

    def close(self) -> None:
        """Nothing is open."""
