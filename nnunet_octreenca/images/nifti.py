"""NIfTI, read with nibabel's header: voxels, and both ways in which it says where they lie."""

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.file_kinds import content_of_bytes
from nnunet_octreenca.images.finite import require_finite
from nnunet_octreenca.images.header_checks import DEFLATE_AT_BEST, require_memory
from nnunet_octreenca.images.nifti_fields import (
    grid_of,
    promised_bytes,
    require_bits,
    require_place,
    scale_of,
    voxels_begin,
)
from nnunet_octreenca.nifti_place import PLACE, NiftiPlace

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
_LONGEST_HEADER = 540  # bytes, of NIfTI-2
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # of xyzt_units: unknown (mm), m, mm, micrometres
# A direction counts as orthonormal where the farthest voxel moves by less than this share of one.
_SHEARED = 0.25
# Below it, what float32 leaves of the first part's square is rounding: nibabel's threshold.
_HALF_TURN = 3 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class NiftiVolume:
    """What a NIfTI file holds.

    Attributes:
        voxels: (channels, z, y, x), or (channels, y, x) of a 2-D file.
        spacing: mm (x, y, z): of the qform where it has a code, as ITK has it, else of the sform.
        origin, direction: as ITK has them (left, posterior, superior); the direction is the
            nearest orthonormal one.
        place: for labels in NIfTI.
    """

    voxels: Pixels
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    place: NiftiPlace


def read_nifti(path: Path) -> NiftiVolume:
    """Read a NIfTI file, gzipped or not whatever its name says.

    Values are stored x slope + intercept, computed in double precision and rounded to float32;
    integers stay integers where the header has neither. The fourth axis, or the fifth where the
    fourth has length 1, is of channels, and so are the colours of RGB voxels.

    Raises:
        InputError: the file is another format, truncated or damaged, promises more than it or the
            machine can hold, has voxels or axes that cannot be read, voxels that are NaN or
            infinite, or a field in its header that cannot be meant; the field is named.
    """
    header, layers = _open_header(path)
    dtype, shape = _form(path, header)
    offset = voxels_begin(path, header)
    require_place(path, header, min(len(shape), 3))
    promised = promised_bytes(shape, dtype, offset)
    stored = path.stat().st_size
    said = f"dim {' x '.join(map(str, shape))}, vox_offset {offset}"
    if layers and promised > DEFLATE_AT_BEST**layers * stored:
        raise InputError(
            f"the header of {path} ({said}) promises {promised:,} bytes, which the file's "
            f"{stored:,} bytes cannot hold; it is damaged or truncated"
        )
    if not layers:
        _require_bytes(path, said, promised, stored)
    slope, intercept = _scale(path, header)
    scaled = (slope, intercept) != (1.0, 0.0)
    require_memory(path, promised + (4 * prod(shape) if scaled else 0))
    if layers:
        if layers == 2:
            with gzip.open(path) as file:
                data, more = np.frombuffer(_inflate_again(path, file.read()), np.uint8), 0
        else:
            data, more = _inflate_whole(path, promised)
        _require_bytes(path, said, promised, len(data) + more)
        raw = np.frombuffer(data.data, dtype, prod(shape), offset)
    else:
        raw = np.fromfile(path, dtype, prod(shape), offset=offset)
    voxels = _channels(path, raw.reshape(shape[::-1]), shape)
    if scaled:
        voxels = _rescaled(voxels, slope, intercept)
    elif voxels.dtype.kind == "f" and voxels.dtype.itemsize > 8:
        voxels = voxels.astype(np.float64)
    elif not voxels.dtype.isnative:
        voxels = voxels.astype(voxels.dtype.newbyteorder("="))
    if scaled:
        by = f"scl_slope {slope:g} and scl_inter {intercept:g}"
        require_finite(path, voxels, stored=raw, scaled_by=by)
    else:
        require_finite(path, voxels)
    voxels.flags.writeable = False
    return NiftiVolume(voxels, *_geometry(path, header, shape, voxels.ndim - 1))


def require_sound_nifti(path: Path) -> None:
    """Refuse what `read_nifti` would, for readers that mend silently: ITK reads NaN as 0.

    Voxels are looked at where they can be NaN or infinite: floats, and integers with a slope.

    Raises:
        InputError: as `read_nifti`.
    """
    header, _ = _open_header(path)
    dtype, shape = _form(path, header)
    voxels_begin(path, header)
    require_place(path, header, min(len(shape), 3))
    if dtype.kind == "f" or _scale(path, header) != (1.0, 0.0):
        read_nifti(path)


def _open_header(path: Path) -> tuple[Any, int]:
    """The header, and how many layers of gzip lie around it."""
    with path.open("rb") as file:
        begin = file.read(2)
    layers, name_says = 0, path.name.lower().endswith(".gz")
    if begin == _GZIP:
        head = _inflate(path, _LONGEST_HEADER).tobytes()
        layers = 1
        if head[:2] == _GZIP:
            head, layers = _inflate_again(path, head, _LONGEST_HEADER), 2
    else:
        with path.open("rb") as file:
            head = file.read(_LONGEST_HEADER)
    return _header(path, head, gzipped=layers > 0, named_gz=name_says), layers


def _header(path: Path, head: bytes, *, gzipped: bool, named_gz: bool) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    kind: Callable[..., Any]
    if head[344:348] == b"n+1\0":
        kind, length = Nifti1Header, 348
    elif head[4:7] == b"n+2":
        kind, length = Nifti2Header, 540
    else:
        content = content_of_bytes(head)
        if head[344:348] == b"ni1\0":
            raise InputError(f"{path} is a NIfTI header without its voxels; save it as one file")
        if content is None:
            inside = "after decompression " if gzipped else ""
            end = "and is no gzip" if named_gz and not gzipped else ""
            content = f"{inside}of no format that its first bytes would tell {end}".strip()
            if len(head) < 348:
                content = f"only {len(head)} bytes long, and truncated"
        elif gzipped:
            content = f"gzip around {content}"
        raise InputError(f"{path} is no NIfTI file: it is {content}")
    # nibabel would tell the byte order by dim[0], which may be what is damaged.
    orders = [order for order in "<>" if np.frombuffer(head, f"{order}i4", 1)[0] == length]
    try:
        order = orders[0] if orders else None
        return kind(head[:length], endianness=order, check=False)  # type: ignore[no-untyped-call]
    except (HeaderDataError, ValueError, TypeError) as error:
        raise InputError(f"{path} has a damaged header ({error})") from error


def _form(path: Path, header: Any) -> tuple[np.dtype, tuple[int, ...]]:
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V0")
    if dtype.kind == "c":
        raise InputError(f"{path} holds complex numbers; save its magnitude")
    if dtype.kind not in "iufV" or (dtype.kind == "V" and dtype.itemsize not in (3, 4)):
        raise InputError(
            f"{path} has voxels of a type that cannot be read (datatype "
            f"{int(header['datatype'])}); save it as integers or floats"
        )
    require_bits(path, header, dtype)
    return dtype, grid_of(path, header)


def _scale(path: Path, header: Any) -> tuple[float, float]:
    if header.get_data_dtype().kind == "V":
        return 1.0, 0.0  # the standard: colours are not scaled
    return scale_of(path, header)


def _channels(path: Path, voxels: Pixels, shape: tuple[int, ...]) -> Pixels:
    """Axes (..., z, y, x) as (channels, z, y, x) or (channels, y, x)."""
    if voxels.dtype.kind == "V":
        if len([length for length in shape[3:] if length > 1]):
            raise InputError(f"{path} has {len(shape)} axes of colours; save it as channels")
        grid = voxels.shape[-3:]
        parts = np.ascontiguousarray(voxels).view(np.uint8).reshape(*grid, voxels.dtype.itemsize)
        return np.moveaxis(parts, -1, 0)
    long = [length for length in shape[3:] if length > 1]
    if len(long) > 1:
        raise InputError(
            f"{path} has {len(shape)} axes, {' x '.join(map(str, shape))}; only volumes with "
            f"channels can be read"
        )
    if len(shape) == 1:
        raise InputError(f"{path} has a single axis of {shape[0]}; it is no image")
    grid = voxels.shape[-2:] if len(shape) == 2 else voxels.shape[-3:]
    return voxels.reshape(-1, *grid)


def _rescaled(voxels: Pixels, slope: float, intercept: float) -> NDArray[np.float32]:
    """Plane by plane, so that no double-precision copy of the whole is made."""
    scaled = np.empty(voxels.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # looked at afterwards
        for channel, target in zip(voxels, scaled, strict=True):
            for plane, out in zip(channel, target, strict=True):
                out[...] = plane.astype(np.float64) * slope + intercept
    return scaled


def _geometry(
    path: Path, header: Any, shape: tuple[int, ...], axes: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], NiftiPlace]:
    """Spacing, origin, direction and place."""
    fields = {name: np.array(header[name]) for name in PLACE}
    pixdim = np.array(header["pixdim"], np.float64)
    qform, sform = int(header["qform_code"]) > 0, int(header["sform_code"]) > 0
    mm = _MM.get(int(header["xyzt_units"]) % 8, 1.0)
    affine = np.stack([np.array(header[f"srow_{axis}"], np.float64) for axis in "xyz"])
    columns = np.linalg.norm(affine[:, :3], axis=0)
    sizes = np.abs(pixdim[1:4])
    sizes[len(shape[:3]) :] = 1.0
    if sform and not qform:
        sizes = np.where(columns > 0, columns, sizes)
    if not np.isfinite(sizes).all() or not (sizes > 0).all():
        raise InputError(
            f"{path} says that its voxels are {' x '.join(f'{size:g}' for size in sizes)} in size; "
            f"correct pixdim"
        )
    if qform:
        affine = _qform(header, sizes)
    elif not sform:  # readers differ in what they do then
        affine = np.column_stack([np.diag(sizes), np.zeros(3)])
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:, :3] / sizes)) < 1e-3:
        raise InputError(f"{path} has axes that span no volume: {affine[:, :3].tolist()}")
    matrix = np.diag([-1.0, -1.0, 1.0]) @ affine  # from right, anterior, superior
    cosines = matrix[:, :3] / np.linalg.norm(matrix[:, :3], axis=0)
    left, _, right = np.linalg.svd(cosines)
    direction = left @ right
    # The whole sform, whichever was taken: labels must lie on the image for its readers too.
    sheared = False
    for rows in [affine, *([_sform(header)] if sform else [])]:
        lengths = np.linalg.norm(rows[:, :3], axis=0)
        if not lengths.all():
            continue
        unit = rows[:, :3] / lengths
        u, _, v = np.linalg.svd(unit)
        extent = np.array([*shape[:3], 1, 1, 1][:3])
        off = np.abs(((unit - u @ v) * lengths) @ extent).max()
        sheared |= bool(off > _SHEARED * lengths.min())
    place = NiftiPlace(
        2 if header["sizeof_hdr"] == 540 else 1, fields, tuple(map(float, pixdim)), sheared
    )
    return (
        tuple(float(size) * mm for size in sizes[:axes]),
        tuple(float(part) * mm for part in matrix[:axes, 3]),
        tuple(map(float, direction[:axes, :axes].ravel())),
        place,
    )


def _qform(header: Any, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 4), of a quaternion whose first part, not negative, is left out in the file."""
    from nibabel.quaternions import quat2mat

    parts = [float(header[f"quatern_{part}"]) for part in "bcd"]
    left = 1.0 - sum(part * part for part in parts)
    first = 0.0 if left < _HALF_TURN else np.sqrt(left)
    rotation = np.asarray(quat2mat([first, *parts]), np.float64)  # which makes it of length 1
    scale = np.array([*sizes[:2], -sizes[2] if header["pixdim"][0] == -1 else sizes[2]])
    offset = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return np.column_stack([rotation * scale, offset])


def _sform(header: Any) -> NDArray[np.float64]:
    return np.stack([np.array(header[f"srow_{axis}"], np.float64) for axis in "xyz"])


def _inflate(path: Path, count: int) -> NDArray[np.uint8]:
    """The first `count` decompressed bytes, or as many as there are."""
    return _inflate_whole(path, count, whole=False)[0]


def _inflate_whole(path: Path, count: int, *, whole: bool = True) -> tuple[NDArray[np.uint8], int]:
    """The first `count` decompressed bytes, or as many as there are, and how many come after.

    Args:
        path: of the file.
        count: bytes.
        whole: read on to the end, where the checksum is; else nothing comes after.
    """
    data = np.empty(count, np.uint8)
    found, more = 0, 0
    try:
        with gzip.open(path) as file:
            while found < count:
                read = file.readinto(data.data[found : found + _CHUNK])
                if not read:
                    break
                found += read
            while whole and (rest := file.read(_CHUNK)):
                more += len(rest)
    except EOFError as error:
        raise InputError(f"{path} cannot be decompressed ({error}); it is truncated") from error
    except (OSError, zlib.error) as error:
        raise InputError(f"{path} cannot be decompressed ({error}); it is damaged") from error
    return data[:found], more


def _inflate_again(path: Path, data: bytes, count: int = 0) -> bytes:
    """What was compressed twice; `count` bytes, or all (0)."""
    stream = zlib.decompressobj(wbits=31)
    try:
        found = stream.decompress(data, count)
    except zlib.error as error:
        raise InputError(f"{path} cannot be decompressed ({error}); it is damaged") from error
    if not count and not stream.eof:
        raise InputError(f"{path} was compressed twice and cannot be decompressed; it is truncated")
    return found


def _require_bytes(path: Path, said: str, promised: int, found: int) -> None:
    if found < promised:
        raise InputError(
            f"{path} is truncated: its header ({said}) promises {promised:,} bytes and {found:,} "
            f"are there"
        )
    if found > promised:
        raise InputError(
            f"{path} does not fit its header ({said}), which promises {promised:,} bytes while "
            f"{found:,} are there; correct the header"
        )
