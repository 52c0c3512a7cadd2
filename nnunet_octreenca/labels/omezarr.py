"""A label map as an OME-Zarr label image (NGFF 0.4), as napari, QuPath and MoBIE open it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_octreenca.arrays import Labels
from nnunet_octreenca.bands import split_range
from nnunet_octreenca.deferred_files import is_deferred
from nnunet_octreenca.labels.output import (
    atomic_folder,
    check_axes,
    class_name,
    greatest_label,
    halvings,
)
from nnunet_octreenca.labels.palette import colour
from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from zarr import Group

NAME = "segmentation"
"""The label image's name within the group `labels`."""

_CHUNK = {2: (1024, 1024), 3: (16, 256, 256)}
_UNITS = {"y": "micrometer", "x": "micrometer", "z": "micrometer", "t": "second"}


def write_label_zarr(
    labels: Labels,
    path: Path | str,
    *,
    names: dict[int, str],
    mpp: float | Sequence[float] | None = None,
    axes: str | None = None,
    image_path: Path | str | None = None,
) -> None:
    """Write an OME-Zarr group with the label image `labels/segmentation` and its pyramid.

    NGFF 0.4 on Zarr 2, which every reader knows; few read 0.5 yet. The image-label
    metadata hold colour and class name of each label. The group's own `multiscales` point to the
    same arrays, so that the folder also opens as an image, without a second copy on disk. A
    level takes every second pixel in y and x of the one before. Chunks are compressed (zstd) and
    written one band at a time; chunks of background only are not stored.

    Args:
        labels: (y, x) or (plane, y, x), integers from 0 to 65535.
        path: the folder, `.ome.zarr`.
        names: label to class name.
        mpp: microns per pixel (seconds per frame on a time axis), one number or one for each axis
            in the order of `labels`; ones without a unit if left out.
        axes: "yx", "zyx" or "tyx"; by default the first two.
        image_path: the segmented image, named in the metadata if it is an OME-Zarr itself.

    Raises:
        OutputError: the labels do not fit, or the disk is full.
        EnvironmentMismatchError: zarr or ome-zarr is not installed.
    """
    check_axes(labels, path, (2, 3))
    zarr = import_optional("zarr", "slides")
    writer = import_optional("ome_zarr.writer", "slides")
    version = import_optional("ome_zarr.format", "slides").FormatV04()
    axes = axes or "zyx"[-labels.ndim :]
    described = [_axis(axis, mpp is not None) for axis in axes]
    sizes = np.broadcast_to(1.0 if mpp is None else mpp, labels.ndim)
    dtype = np.uint8 if greatest_label(labels, path) < 256 else np.uint16
    with atomic_folder(path) as temporary:
        root = zarr.create_group(str(temporary), zarr_format=2)
        group = root.create_group("labels")
        image = group.create_group(NAME)
        levels = []
        for number, step in enumerate(halvings(labels.shape[-2:], _CHUNK[2][0])):
            _write_level(image, str(number), labels[..., ::step, ::step], dtype)
            scale = sizes * ([1] * (labels.ndim - 2) + [step, step])
            levels.append((str(number), [{"type": "scale", "scale": scale.tolist()}]))
        for target, prefix in ((image, ""), (root, f"labels/{NAME}/")):
            datasets = [
                {"path": prefix + level, "coordinateTransformations": transformations}
                for level, transformations in levels
            ]
            writer.write_multiscales_metadata(
                target, datasets, fmt=version, axes=[dict(axis) for axis in described], name=NAME
            )
        writer.write_label_metadata(
            group,
            NAME,
            colors=[{"label-value": n, "rgba": [*colour(n), 255 if n else 0]} for n in names],
            properties=[{"label-value": n, "class": class_name(names, n)} for n in names],
            fmt=version,
            **_source(image_path, Path(path)),
        )


def _axis(axis: str, with_unit: bool) -> dict[str, str]:
    described = {"name": axis, "type": "time" if axis == "t" else "space"}
    return {**described, "unit": _UNITS[axis]} if with_unit else described


def _write_level(group: "Group", name: str, level: Labels, dtype: type) -> None:
    chunks = tuple(min(c, n) for c, n in zip(_CHUNK[level.ndim], level.shape, strict=True))
    blosc = import_optional("numcodecs", "slides").Blosc(cname="zstd", clevel=5)
    array = group.create_array(
        name,
        shape=level.shape,
        dtype=dtype,
        chunks=chunks,
        compressors=blosc,
        fill_value=0,
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )
    for first, end in split_range(0, level.shape[0], chunks[0]):
        array[first:end] = level[first:end].astype(dtype, copy=False)


def _source(image_path: Path | str | None, path: Path) -> dict[str, object]:
    # Relative to the label image's own folder, as NGFF wants it.
    if (
        image_path is None
        or is_deferred(Path(image_path))
        or not any((Path(image_path) / name).exists() for name in (".zattrs", "zarr.json"))
    ):
        return {}
    here = path.absolute() / "labels" / NAME
    return {"source": {"image": Path(os.path.relpath(image_path, here)).as_posix()}}
