"""Label maps read back from the files that `labels` writes."""

from pathlib import Path

import numpy as np

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.images.frames import natural_order
from nnunet_octreenca.images.volumes import VolumeSource
from nnunet_octreenca.labels.omezarr import NAME
from nnunet_octreenca.libraries import import_optional, unlimited_pillow


def read_labels(path: Path) -> Pixels | None:
    """The labels of a result; None of a format that holds them otherwise (polygons, runs, DICOM).

    Args:
        path: a file or folder of `labels.formats`, as it was written.
    """
    name = path.name.lower()
    if path.parent.name == "overlays":
        return None
    if name.endswith("_frames"):
        frames = sorted(path.iterdir(), key=lambda file: natural_order(file.name))
        return np.stack([_picture(file) for file in frames])
    if name.endswith(".png"):
        return _picture(path)
    if name.endswith(".ome.tif"):
        tifffile = import_optional("tifffile", "slides")
        return np.asarray(tifffile.imread(path, series=0, level=0))
    if name.endswith(".ome.zarr"):
        zarr = import_optional("zarr", "slides")
        return np.asarray(zarr.open_group(str(path), mode="r")[f"labels/{NAME}/0"])
    if name.endswith((".nii.gz", ".nii", ".nrrd", ".mha")):
        source = VolumeSource(path)
        return np.array(source.read(0, source.shape[0])[0])
    return None


def _picture(path: Path) -> Pixels:
    from PIL import Image

    with unlimited_pillow(), Image.open(path) as image:
        return np.asarray(image)
