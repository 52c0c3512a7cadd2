"""DICOM series of a few small slices."""

import locale
from pathlib import Path

import numpy as np

UID = "1.2.826.0.1.3680043.2.1125.1"


def write_series(
    folder: Path,
    voxels: np.ndarray,
    *,
    positions=None,
    series: str = "1",
    spacing=(2.0, 0.6, 0.5),
    directions=None,
) -> list[Path]:
    """One file a slice, named against their order; CT with an intercept of -1000.

    Args:
        folder: made if need be.
        voxels: (z, y, x) int16.
        positions: mm along z of each slice; by the spacing if left out.
        series: last part of its UID.
        spacing: mm (z, y, x).
        directions: of each slice, six cosines each.

    Returns:
        The files in the order of the slices.
    """
    import SimpleITK as sitk

    folder.mkdir(exist_ok=True)
    before = locale.setlocale(locale.LC_CTYPE)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    files = []
    for number, plane in enumerate(voxels):
        image = sitk.GetImageFromArray(plane[None].astype(np.int16))
        image.SetSpacing(spacing[::-1])
        z = number * spacing[0] if positions is None else positions[number]
        cosines = (1, 0, 0, 0, 1, 0) if directions is None else directions[number]
        tags = {
            "0008|0060": "CT",
            "0020|000d": UID,
            "0020|000e": f"{UID}.{series}",
            "0008|0018": f"{UID}.{series}.{number}",
            "0020|0032": f"10\\20\\{z}",
            "0020|0037": "\\".join(map(str, cosines)),
            "0020|0013": str(number),
            "0018|0050": str(spacing[0]),
            "0028|1052": "-1000",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        files.append(folder / f"{series}_{len(voxels) - number:03d}.dcm")
        writer.SetFileName(str(files[-1]))
        writer.Execute(image)
    # GDCM's writer sets the whole process to the locale "C", where text is ASCII.
    locale.setlocale(locale.LC_CTYPE, before)
    return files
