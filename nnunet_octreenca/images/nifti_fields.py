"""A NIfTI header's fields, each refused by its name and value where it cannot be meant.

Readers differ in what they make of such fields: a negative pixdim is a mirrored axis to some, its
absolute value to others, 1 to others again. Nothing is guessed here.
"""

from math import isfinite, isinf, isnan, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError

_CODES = range(6)  # of qform_code and sform_code: unknown, scanner, aligned, Talairach, MNI, other
_UNIT_LENGTH = 1e-3  # by which b, c, d of a rotation may exceed 1


def grid_of(path: Path, header: Any) -> tuple[int, ...]:
    """Voxels per axis (x, y, z, ...), as `dim` has them.

    Raises:
        InputError: there are fewer than 1 or more than 7 axes, or an axis of less than 1 voxel.
    """
    dim = [int(length) for length in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise _refused(path, "dim[0]", dim[0], "must be 1 to 7, the number of axes")
    for axis in range(1, dim[0] + 1):
        if dim[axis] < 1:
            raise _refused(path, f"dim[{axis}]", dim[axis], f"must be 1 or more (dim is {dim})")
    return tuple(dim[1 : dim[0] + 1])


def require_bits(path: Path, header: Any, dtype: np.dtype[Any]) -> None:
    """Compare `bitpix` with `datatype`.

    Raises:
        InputError: they say different sizes of a voxel.
    """
    bits = 8 * dtype.itemsize
    if int(header["bitpix"]) != bits:
        raise _refused(
            path,
            "bitpix",
            int(header["bitpix"]),
            f"must be {bits} where datatype is {int(header['datatype'])}",
        )


def voxels_begin(path: Path, header: Any) -> int:
    """The byte at which voxels begin.

    Raises:
        InputError: `vox_offset` is no whole number, or lies within the header.
    """
    least = 544 if header["sizeof_hdr"] == 540 else 352
    offset = float(header["vox_offset"])
    if offset == 0:  # some writers leave it 0 in a file that begins with its header
        return least
    if not (isfinite(offset) and offset.is_integer() and offset >= least):
        raise _refused(path, "vox_offset", offset, f"must be a whole number from {least} bytes")
    return int(offset)


def scale_of(path: Path, header: Any) -> tuple[float, float]:
    """Slope and intercept; (1, 0) where the header has none.

    A slope of 0 means none, and so does NaN, which nibabel keeps for "undefined".

    Raises:
        InputError: one is infinite, or the intercept is no number where the slope is one.
    """
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    none = slope == 0 or isnan(slope)
    if isinf(slope):
        raise _refused(path, "scl_slope", slope, "must be finite, or 0 for none")
    if isinf(intercept) or (isnan(intercept) and not none):
        raise _refused(path, "scl_inter", intercept, "must be finite")
    if isnan(slope) and intercept and not isnan(intercept):
        rule = f"must be a number where scl_inter is {intercept:g}"
        raise _refused(path, "scl_slope", slope, rule)
    return (1.0, 0.0) if none else (slope, intercept)


def require_place(path: Path, header: Any, axes: int) -> None:
    """Look at the numbers that say where the voxels lie, before anything is computed from them.

    Args:
        path: of the file.
        header: its.
        axes: of space that it has, 1 to 3.

    Raises:
        InputError: one of them is NaN, infinite, negative where it is a length, or larger than
            its type can tell two voxels apart at.
    """
    codes = {name: int(header[name]) for name in ("qform_code", "sform_code")}
    for name, code in codes.items():
        if code not in _CODES:
            raise _refused(path, name, code, f"must be 0 to {_CODES[-1]}")
    by_sform = codes["sform_code"] > 0 and codes["qform_code"] == 0
    pixdim = np.asarray(header["pixdim"], np.float64)
    for axis in range(1, axes + 1):
        size = pixdim[axis]
        if not np.isfinite(size) or size < 0 or (size == 0 and not by_sform):
            raise _refused(path, f"pixdim[{axis}]", size, "must be above 0, the voxel's size")
    if codes["qform_code"] > 0:
        _require_rotation(path, header, pixdim[0])
        _require_near(path, header, [f"qoffset_{axis}" for axis in "xyz"], pixdim[1 : axes + 1])
    if codes["sform_code"] > 0:
        _require_rows(path, header)


def _require_rotation(path: Path, header: Any, qfac: float) -> None:
    if qfac not in (-1, 0, 1):  # 0 counts as 1
        raise _refused(path, "pixdim[0]", qfac, "must be 1 or -1, the handedness of the qform")
    names = [f"quatern_{part}" for part in "bcd"]
    parts = [float(header[name]) for name in names]
    for name, part in zip(names, parts, strict=True):
        if not isfinite(part) or abs(part) > 1 + _UNIT_LENGTH:
            raise _refused(path, name, part, "must be from -1 to 1")
    length = sum(part * part for part in parts)
    if length > 1 + _UNIT_LENGTH:
        told = ", ".join(f"{part:g}" for part in parts)
        raise _refused(path, "quatern_b, c, d", f"({told})", "must not be longer than 1")


def _require_rows(path: Path, header: Any) -> None:
    for axis in "xyz":
        for column, number in enumerate(np.asarray(header[f"srow_{axis}"], np.float64)):
            if not np.isfinite(number):
                raise _refused(path, f"srow_{axis}[{column}]", number, "must be finite")


def _require_near(path: Path, header: Any, names: list[str], sizes: NDArray[np.float64]) -> None:
    """Refuse offsets at which numbers of their type lie further apart than voxels."""
    for name in names:
        offset = np.asarray(header[name])
        if not np.isfinite(offset) or np.spacing(np.abs(offset)) > sizes.min():
            raise _refused(path, name, float(offset), "is no place that voxels can lie at")


def promised_bytes(shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> int:
    """Bytes from the file's begin to the last voxel's end; never overflows."""
    return offset + prod(shape) * dtype.itemsize


def _refused(path: Path, field: str, value: Any, rule: str) -> InputError:
    shown = f"{value:g}" if isinstance(value, float) else value
    return InputError(f"{path} has a damaged header: {field} is {shown}, and {rule}; correct it")
