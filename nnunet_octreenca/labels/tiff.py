"""A label map as a pyramidal OME-TIFF, as QuPath, Fiji, napari and OpenSlide open it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nnunet_octreenca.arrays import Labels
from nnunet_octreenca.labels.output import (
    atomic_output,
    check_axes,
    class_name,
    greatest_label,
    halvings,
)
from nnunet_octreenca.labels.palette import PALETTE
from nnunet_octreenca.libraries import import_optional
from nnunet_octreenca.resources import processors

# Offsets of a classic TIFF are 32 bits; what is left is for tags and the tiles' own overhead.
_CLASSIC_BYTES = 2**32 - 2**26
_BUFFER = 2**24  # bytes of tiles that wait to be compressed; tifffile's own default is 256 MiB
_NAMESPACE = "nnunet_octreenca/classes"
_BOUNDS_NAMESPACE = "nnunet_octreenca/bounds"


def write_label_tiff(
    labels: Labels,
    path: Path | str,
    *,
    names: dict[int, str],
    mpp: float | Sequence[float] | None = None,
    axes: str | None = None,
    bounds: tuple[int, int, int, int] | None = None,
    tile: int = 512,
) -> None:
    """Write a tiled, deflated OME-TIFF with half-size levels in SubIFDs.

    Every level takes every second pixel of the one before, until the longest side is at most
    `tile`. Up to label 255 the file is uint8 with a colour map (`palette.PALETTE`), else uint16
    without. The class names are in the OME-XML, a map annotation of label to name. Nothing is
    copied but the tiles being compressed.

    Args:
        labels: (y, x) or (plane, y, x), integers from 0 to 65535.
        path: the file, `.ome.tif` so that readers look for the OME-XML.
        names: label to class name.
        mpp: microns per pixel, one number or one for each axis in the order of `labels`; if left
            out, the file says nothing.
        axes: "YX", "ZYX" or "TYX"; by default the first two.
        bounds: (x, y, width, height) in pixels of the slide's level 0 of what was scanned, to be
            written to the OME-XML under OpenSlide's names. The labels cover the whole slide.
        tile: rows and columns of a tile, a multiple of 16.

    Raises:
        OutputError: the labels do not fit, or the disk is full.
        EnvironmentMismatchError: tifffile or imagecodecs is not installed.
    """
    check_axes(labels, path, (2, 3))
    tifffile = import_optional("tifffile", "slides")
    import_optional("imagecodecs", "slides")
    dtype = np.dtype(np.uint8 if greatest_label(labels, path) < 256 else np.uint16)
    steps = halvings(labels.shape[-2:], tile)
    colours: dict[str, object] = {"photometric": "minisblack"}
    if dtype == np.uint8:
        colours = {"photometric": "palette", "colormap": PALETTE.T.astype(np.uint16) * 257}
    microns = np.broadcast_to(mpp, labels.ndim).tolist() if mpp is not None else None
    metadata = _metadata(axes or "ZYX"[-labels.ndim :], microns, names, bounds)
    pixels = sum(-(-labels.size // step**2) for step in steps)
    with (
        atomic_output(path) as temporary,
        tifffile.TiffWriter(
            temporary, ome=True, bigtiff=pixels * dtype.itemsize > _CLASSIC_BYTES
        ) as tiff,
    ):
        for step in steps:
            level = labels[..., ::step, ::step]
            tiff.write(
                _tiles(level, tile, dtype),
                shape=level.shape,
                dtype=dtype,
                tile=(tile, tile),
                compression="zlib",
                subifds=len(steps) - 1 if step == 1 else None,
                subfiletype=0 if step == 1 else 1,
                metadata=metadata if step == 1 else None,
                maxworkers=processors(),
                buffersize=_BUFFER,
                **_resolution(microns, step),
                **colours,
            )


def _tiles(level: Labels, tile: int, dtype: np.dtype) -> Iterator[Labels]:
    height, width = level.shape[-2:]
    for plane in level.reshape(-1, height, width) if level.ndim == 2 else level:
        for y in range(0, height, tile):
            for x in range(0, width, tile):
                yield _tile(plane[y : y + tile, x : x + tile], dtype)


def _tile(pixels: Labels, dtype: np.dtype) -> Labels:
    return pixels.astype(dtype, order="C")


def _resolution(microns: list[float] | None, step: int) -> dict[str, object]:
    if microns is None:
        return {}
    y, x = (10_000 / (size * step) for size in microns[-2:])
    return {"resolution": (x, y), "resolutionunit": "CENTIMETER"}


def _metadata(
    axes: str,
    microns: list[float] | None,
    names: dict[int, str],
    bounds: tuple[int, int, int, int] | None,
) -> dict[str, object]:
    annotations: list[dict[str, str]] = [
        {
            "Namespace": _NAMESPACE,
            **{str(label): class_name(names, label) for label in sorted(names)},
        }
    ]
    if bounds is not None:
        told = zip(("x", "y", "width", "height"), map(str, bounds), strict=True)
        annotations.append(
            {
                "Namespace": _BOUNDS_NAMESPACE,
                **{f"openslide.bounds-{name}": value for name, value in told},
            }
        )
    metadata: dict[str, object] = {
        "axes": axes,
        "Channel": {"Name": ["segmentation"]},
        "MapAnnotation": annotations,
    }
    for axis, size in zip(axes, microns or (), strict=False):
        if axis != "T":
            metadata[f"PhysicalSize{axis}"] = size
            metadata[f"PhysicalSize{axis}Unit"] = "µm"
    return metadata
