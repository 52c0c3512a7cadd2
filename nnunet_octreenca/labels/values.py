"""Maps of real numbers in the grid of a label map: NIfTI, NRRD, MetaImage, and TIFF of pictures."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels.formats import LabelInfo, check_labels, default_formats
from nnunet_octreenca.labels.nifti import write_nifti
from nnunet_octreenca.labels.output import atomic_output, check_axes
from nnunet_octreenca.labels.volume import write_volume

_LARGEST_TIFF = (1 << 32) - (1 << 24)  # bytes, with room for offsets of 32 bits
_OF_VOLUMES = ("nii.gz", "nii", "nrrd", "mha")


def values_ending(info: LabelInfo) -> str:
    """Of the file that `write_values` writes: a volume keeps its format, pictures become TIFF.

    >>> values_ending(LabelInfo({}, "volume", image_path=Path("a.nrrd")))
    '.nrrd'
    >>> values_ending(LabelInfo({}, "picture", image_path=Path("a.png")))
    '.tif'
    """
    if info.kind != "volume":
        return ".tif"
    (name,) = default_formats(info.kind, info.image_path or "")
    return f".{name}" if name in _OF_VOLUMES else ".nii.gz"


def check_values(shape: tuple[int, ...], path: Path, info: LabelInfo) -> None:
    """Refuse, before anything is computed, what `write_values` could not write.

    Args:
        shape: of the map.
        path: with `values_ending`.
        info: of the image.

    Raises:
        OutputError: the format cannot hold it.
        InputError: the path is not UTF-8, and the format's library needs it to be.
    """
    ending = values_ending(info)
    if ending != ".tif":
        stem = path.with_name(path.name.removesuffix(ending))
        check_labels([ending[1:]], shape, stem, info)
    elif 4 * prod(shape) > _LARGEST_TIFF:
        raise OutputError(
            f"{path} cannot hold a map of {' x '.join(map(str, shape))} pixels: a TIFF ends at "
            f"4 GiB, some 1,000 megapixels; read the slide at a coarser --mpp, or leave out "
            f"--quality"
        )


def write_values(values: NDArray[np.float32], path: Path, info: LabelInfo) -> None:
    """Write a map of float32, whole or not at all, where the labels of the image lie.

    Args:
        values: (y, x), (z, y, x), or (frame, y, x) of a video.
        path: with `values_ending`.
        info: of the image.

    Raises:
        OutputError: the format cannot hold it, or the disk is full.
    """
    if values_ending(info) == ".tif":
        _tiff(values, path)
    elif info.nifti is not None:
        write_nifti(values, path, info.nifti, kinds="f")
    else:
        write_volume(
            values, path, spacing=info.spacing, origin=info.origin, direction=info.direction,
            kinds="f",
        )  # fmt: skip


def _tiff(values: NDArray[np.float32], path: Path) -> None:
    """A page of a picture, one for each frame of a video."""
    from PIL import Image

    check_axes(values, path, (2, 3), "f")

    def pages() -> Iterator[Any]:
        for page in values if values.ndim == 3 else values[None]:
            yield Image.fromarray(page)

    rest = pages()
    first = next(rest)
    with atomic_output(path) as temporary:
        first.save(
            temporary, format="TIFF", compression="tiff_adobe_deflate", save_all=True,
            append_images=list(rest) if values.ndim == 3 else [],
        )  # fmt: skip
