"""OME-Zarr images (NGFF 0.4 and 0.5) in bands of chunk rows."""

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.deferred_files import fetch, is_deferred
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonMapping
from nnunet_octreenca.images.downsample import Downsampled
from nnunet_octreenca.images.header_checks import require_memory
from nnunet_octreenca.images.levels import MICRONS_PER_MM, Level, choose_level
from nnunet_octreenca.images.source import NO_INFO, ImageInfo, ImageSource
from nnunet_octreenca.images.stripes import StripedSource
from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from zarr import Array, Group

# Millimetres in the units of length that the specification names and images come in.
_MM = {
    "angstrom": 1e-7,
    "picometer": 1e-9,
    "nanometer": 1e-6,
    "micrometer": 1e-3,
    "millimeter": 1.0,
    "centimeter": 10.0,
    "meter": 1000.0,
    "inch": 25.4,
}
_AXES = "tczyx"
_METADATA = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}


def open_omezarr(
    path: Path | str, *, channels: int | None = None, mpp: float | None = None
) -> ImageSource:
    """Open the image of an OME-Zarr folder.

    Args:
        path: the folder; the first image of it if Bio-Formats wrote several.
        channels: not needed, the axes are named; there for the other readers' sake.
        mpp: microns per pixel of the level to read, or to average down to; the finest level's
            if left out.

    Returns:
        (y, x), or (z, y, x) where the axis z is longer than 1. `info` holds
        `mpp` and `base_shape`.

    Raises:
        InputError: no such folder, no image in it, several time points, or no such resolution.
        EnvironmentMismatchError: zarr is not installed.
    """
    path = Path(path)
    zarr = import_optional("zarr", "slides")
    _fetch_metadata(path)
    try:
        group = zarr.open_group(path, mode="r")
        if "bioformats2raw.layout" in _attributes(group):
            group = group["0"]
        multiscales = _attributes(group)["multiscales"][0]
        axes = [
            str(axis["name"] if isinstance(axis, Mapping) else axis).lower()
            for axis in multiscales["axes"]
        ]
        units = [
            axis.get("unit") if isinstance(axis, Mapping) else None for axis in multiscales["axes"]
        ]
        arrays = [group[dataset["path"]] for dataset in multiscales["datasets"]]
        scales = [_scale(dataset, multiscales, len(axes)) for dataset in multiscales["datasets"]]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read as OME-Zarr ({error}); it should hold the multiscales of one "
            f"image, NGFF 0.4 or 0.5"
        ) from error
    _require_axes(path, axes, arrays[0].shape)
    spacings = [
        tuple(
            abs(scale[axis]) * _MM[unit] if (unit := units[axis]) in _MM else None
            for axis in (axes.index(name) for name in "zyx" if name in axes)
        )
        for scale in scales
    ]
    levels = [
        Level((array.shape[axes.index("y")], array.shape[axes.index("x")]), _mpp(spacing[-2:]))
        for array, spacing in zip(arrays, spacings, strict=True)
    ]
    stack = "z" in axes and arrays[0].shape[axes.index("z")] > 1
    if mpp is not None and stack:
        raise InputError(f"{path} is a stack of planes; a resolution (--mpp) is for 2-D images")
    index, factor = choose_level(levels, mpp, path)
    spacing = [1.0 if n is None else n for n in spacings[index]][-3 if stack else -2 :]
    fetch(path / arrays[index].path)
    chosen = levels[index].mpp
    info = ImageInfo(
        mpp=None if chosen is None else sum(chosen) / 2,
        base_shape=levels[0].shape,
        notes=_missing_chunks(path, arrays[index]),
    )
    source = OmeZarrSource(path, arrays[index], axes, spacing, info)
    if factor is None:
        return source
    assert mpp is not None
    return Downsampled(source, factor, mpp, levels[0].shape)


def _fetch_metadata(path: Path) -> None:
    """Have what a deferred folder says of its arrays on the disk, without their chunks."""
    if is_deferred(path):
        for file in path.rglob("*"):
            if file.name in _METADATA:
                fetch(file)


def _attributes(group: "Group") -> JsonMapping:
    attributes = group.attrs
    own: JsonMapping = attributes.get("ome", attributes)  # type: ignore[assignment]
    return own  # NGFF 0.5 has a key of its own


def _scale(dataset: JsonMapping, multiscales: JsonMapping, axes: int) -> list[float]:
    """The level's own scale times the one that holds for all levels."""
    scale = [1.0] * axes
    for part in (dataset, multiscales):
        for transformation in part.get("coordinateTransformations", ()):
            if transformation["type"] == "scale":
                scale = [a * b for a, b in zip(scale, transformation["scale"], strict=True)]
    return scale


def _require_axes(path: Path, axes: list[str], shape: tuple[int, ...]) -> None:
    known = "".join(axes)
    if (
        len(shape) != len(axes)
        or not {"y", "x"} <= set(axes) <= set(_AXES)
        or known != "".join(name for name in _AXES if name in axes)
    ):
        raise InputError(
            f"{path} has the axes {known!r} and the shape {shape}; they should be of t, c, z, y, x "
            f"in this order"
        )
    if prod(shape) == 0:
        raise InputError(f"{path} has the shape {shape}; an axis is empty")
    if "t" in axes and shape[0] > 1:
        raise InputError(f"{path} has {shape[0]} time points; save the one to segment by itself")


def _missing_chunks(path: Path, array: "Array[Any]") -> tuple[str, ...]:
    """A sentence where chunks have no file, which may be meant: they hold the fill value."""
    folder = getattr(array.store, "root", None)
    if folder is None or array.shards is not None:
        return ()
    files = Path(folder, array.path).rglob("*")
    there = sum(
        file.name[0] != "." and file.name != "zarr.json" and file.is_file() for file in files
    )
    chunks = prod(array.cdata_shape)
    if there >= chunks:
        return ()
    return (
        f"{path.name}: {chunks - there:,} of {chunks:,} chunks are not there and are read as the "
        f"fill value, {array.fill_value}; copy the folder again if it should be whole",
    )


def _mpp(spacing: Sequence[float | None]) -> tuple[float, float] | None:
    y, x = spacing
    return None if not y or not x else (y * MICRONS_PER_MM, x * MICRONS_PER_MM)


class OmeZarrSource(StripedSource):
    """One level of an OME-Zarr image.

    Args:
        path: of the folder; named in the errors.
        array: the level's `zarr.Array`.
        axes: names of its axes, of t, c, z, y, x in this order.
        spacing: mm (y, x), or (z, y, x) for a stack.
        info: what the folder says.
    """

    def __init__(
        self,
        path: Path,
        array: "Array[Any]",
        axes: Sequence[str],
        spacing: Sequence[float],
        info: ImageInfo = NO_INFO,
    ) -> None:
        self._path = path
        self._array = array
        self._axes = axes
        self._banded = "z" if len(spacing) == 3 else "y"
        sizes = dict(zip(axes, array.shape, strict=True))
        chunk = dict(zip(axes, array.chunks, strict=True))[self._banded]
        super().__init__(
            [sizes[name] for name in "zyx"[-len(spacing) :]],
            sizes.get("c", 1),
            array.dtype.newbyteorder("="),
            spacing,
            chunk,
            info,
        )
        require_memory(path, self._stripe_bytes)
        codecs = [type(codec).__name__ for codec in array.compressors]
        self._blosc = any("Blosc" in name for name in codecs) and array.shards is None

    def _read_stripe(self, first: int, end: int) -> Pixels:
        if self._blosc:
            self._require_whole_chunks(first, end)
        whole = {"c": slice(None), "z": slice(None), "y": slice(None), "x": slice(None)}
        selection: dict[str, int | slice] = {**whole, "t": 0, self._banded: slice(first, end)}
        if self._banded == "y":
            selection["z"] = 0
        try:
            pixels = np.asarray(self._array[tuple(selection[name] for name in self._axes)])
        except Exception as error:  # each codec raises its own type
            raise InputError(
                f"{self._path} cannot be decoded in {self._banded} {first} to {end - 1} "
                f"({error}); it is damaged there"
            ) from error
        return pixels if "c" in self._axes else pixels[None]

    def _require_whole_chunks(self, first: int, end: int) -> None:
        """Blosc decodes a truncated chunk to whatever lies behind it in memory."""
        array = self._array
        folder = getattr(array.store, "root", None)
        if folder is None:  # not of files
            return
        size = dict(zip(self._axes, array.chunks, strict=True))[self._banded]
        ranges = [
            range(first // size, -(-end // size)) if name == self._banded else range(count)
            for name, count in zip(self._axes, array.cdata_shape, strict=True)
        ]
        for coordinates in product(*ranges):
            chunk = Path(folder, array.path, array.metadata.encode_chunk_key(coordinates))
            try:
                with chunk.open("rb") as file:
                    promised = max(16, int.from_bytes(file.read(16)[12:], "little"))
            except FileNotFoundError:  # was never written: the fill value
                continue
            if chunk.stat().st_size < promised:
                raise InputError(
                    f"{chunk} is truncated: it has {chunk.stat().st_size} of {promised:,} bytes"
                )
