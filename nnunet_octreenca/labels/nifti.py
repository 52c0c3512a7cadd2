"""A label map of a NIfTI image, with the place that the image's own header says."""

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels.output import atomic_output, check_axes
from nnunet_octreenca.nifti_place import NiftiPlace

_LONGEST_AXIS = 32767  # of NIfTI-1
_PLANES = 64 << 20  # bytes written at a time


def write_nifti(labels: Pixels, path: Path | str, place: NiftiPlace, *, kinds: str = "iu") -> None:
    """Write labels with sform, qform, both codes, units and voxel size as the image has them.

    Whichever of them a reader prefers, it finds the labels where it finds the image.

    Args:
        labels: (z, y, x) or (y, x), uint8 or int16.
        path: the file, `.nii` or `.nii.gz`.
        place: of the image.
        kinds: of numpy's types that are written; "f" for a map of values.

    Raises:
        OutputError: the labels are no integers of these axes, or the disk is full.
    """
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    path = Path(path)
    check_axes(labels, path, (2, 3), kinds)
    kind: Callable[..., Any] = Nifti1Header
    offset = 352
    if place.version == 2 or max(labels.shape) > _LONGEST_AXIS:
        kind, offset = Nifti2Header, 544
    header = kind(endianness="<")
    try:
        header.set_data_dtype(labels.dtype)
    except Exception as error:
        raise OutputError(f"{path} cannot hold labels of type {labels.dtype}") from error
    header.set_data_shape(labels.shape[::-1])
    for name, value in place.fields.items():
        header[name] = value
    header["xyzt_units"] = int(place.fields["xyzt_units"]) % 8  # of space; labels have no time
    header["pixdim"][:4] = place.pixdim[:4]
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["vox_offset"] = offset
    rows = max(1, _PLANES // max(1, labels[:1].nbytes))
    with atomic_output(path) as temporary, _opened(temporary, path) as file:
        file.write(header.binaryblock + bytes(4))  # no extension
        for first in range(0, len(labels), rows):
            band = labels[first : first + rows]
            file.write(np.ascontiguousarray(band, band.dtype.newbyteorder("<")).data)


@contextmanager
def _opened(temporary: Path, path: Path) -> Iterator[IO[bytes]]:
    with temporary.open("wb") as raw:
        if path.name.lower().endswith(".gz"):
            # Neither name nor time, so that the same labels make the same file.
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                yield packed  # type: ignore[misc]
        else:
            yield raw
