"""A label map with its geometry, by SimpleITK."""

import re
import struct
from collections.abc import Sequence
from pathlib import Path

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.files import require_utf8
from nnunet_octreenca.labels.output import atomic_output, check_axes

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")

_NIFTI_HEADER = 352  # bytes before the voxels, as ITK writes it
_DATA_BEGIN = b"ElementDataFile = LOCAL\n"  # the last line of a MetaImage header
_LONGEST_HEADER = 2**16


def write_volume(
    labels: Pixels,
    path: Path | str,
    *,
    spacing: Sequence[float] | None = None,
    origin: Sequence[float] | None = None,
    direction: Sequence[float] | None = None,
    kinds: str = "iu",
) -> None:
    """Write a label map in its own type, compressed where the format can.

    The geometry is SimpleITK's: axes (x, y, z), the reverse of the labels'. NIfTI keeps it in
    single precision.

    Args:
        labels: (z, y, x) or (y, x), uint8 or int16.
        path: the file, with one of `ENDINGS`.
        spacing: mm per voxel; ones if left out.
        origin: mm, the first voxel's centre; zeros if left out.
        direction: row by row, 9 or 4 numbers; the axes themselves if left out.
        kinds: of numpy's types that are written; "f" for a map of values.

    Raises:
        OutputError: the ending is another, the geometry is none, or the disk is full.
        InputError: the path is not UTF-8, at which ITK would end the process.
    """
    import SimpleITK as sitk

    path = Path(path)
    check_axes(labels, path, (2, 3), kinds)
    require_utf8(path)
    ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise OutputError(f"{path} does not end in {', '.join(ENDINGS)}; choose one of them")
    image = sitk.GetImageFromArray(labels)
    try:
        if spacing is not None:
            image.SetSpacing([float(step) for step in spacing])
        if origin is not None:
            image.SetOrigin([float(part) for part in origin])
        if direction is not None:
            image.SetDirection([float(part) for part in direction])
    except (RuntimeError, TypeError) as error:
        raise OutputError(
            f"{path} cannot have spacing {spacing}, origin {origin}, direction {direction}: "
            f"SimpleITK refuses them for {labels.ndim} axes"
        ) from error
    with atomic_output(path) as temporary:
        # SimpleITK knows a format by the ending only.
        named = temporary.with_name(temporary.name + ending)
        try:
            sitk.WriteImage(image, named, useCompression=True)
            if not _complete(named, ending, labels.nbytes):
                raise RuntimeError("the file is shorter than its labels; the disk may be full")
            named.replace(temporary)
        except RuntimeError as error:
            raise OutputError(
                f"{path} cannot be written (SimpleITK: {str(error).strip().splitlines()[-1]}); "
                f"check free disk space and write permission"
            ) from error
        finally:
            named.unlink(missing_ok=True)


def _complete(path: Path, ending: str, voxel_bytes: int) -> bool:
    """Whether all voxels are in the file: on a full disk ITK writes less and reports success."""
    size = path.stat().st_size
    if ending == ".nii":
        return size == _NIFTI_HEADER + voxel_bytes
    with path.open("rb") as file:
        if ending == ".mha":
            header = file.read(_LONGEST_HEADER)
            compressed = re.search(rb"CompressedDataSize = (\d+)", header)
            place = header.find(_DATA_BEGIN)
            if compressed is None or place < 0:
                return False
            return size == place + len(_DATA_BEGIN) + int(compressed[1])
        # A gzip stream ends with the length of what it holds, modulo 2^32.
        file.seek(-4, 2)
        length = struct.unpack("<I", file.read())[0]
    expected = voxel_bytes + (_NIFTI_HEADER if ending == ".nii.gz" else 0)
    return bool(length == expected % 2**32)
