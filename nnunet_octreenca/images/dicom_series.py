"""The slices of a DICOM series in their order, none missing."""

from pathlib import Path

import numpy as np

from nnunet_octreenca.errors import InputError

# Between two slices the distance may differ from the usual one by this share, or by what rounding
# of positions to a tenth of a millimetre makes; a missing slice makes it twice as much.
_UNEVEN = 0.2
_ROUNDING = 0.1  # mm


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, not of the folders in it."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and file.name.upper() != "DICOMDIR" and is_dicom(file)
    )


def series_files(folder: Path) -> list[Path]:
    """The slices of the one series in a folder, along their normal.

    Raises:
        InputError: there is none or more than one series, a file of it is damaged, slices are
            of different sizes or directions, or one is missing.
    """
    import SimpleITK as sitk

    present = dicom_files(folder)
    names = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    series = {
        name: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), name) for name in names
    }
    known = {Path(file) for files in series.values() for file in files}
    damaged = [file for file in present if file not in known]
    if damaged:
        raise InputError(
            f"{damaged[0]} cannot be read as DICOM; it is truncated or damaged "
            f"({len(damaged)} of {len(present)} files)"
        )
    if len(series) != 1:
        found = ", ".join(f"{name} ({len(files)} files)" for name, files in series.items())
        raise InputError(
            f"{folder} holds {len(series)} DICOM series{': ' if found else ''}{found}; put one "
            f"series into a folder of its own"
        )
    files = [Path(file) for file in next(iter(series.values()))]
    if len(files) > 1:
        _require_even(folder, files)
    return files


def _require_even(folder: Path, files: list[Path]) -> None:
    import SimpleITK as sitk

    positions, forms = [], set()
    for file in files:
        header = sitk.ImageFileReader()
        header.SetFileName(str(file))
        header.ReadImageInformation()
        direction = np.reshape(header.GetDirection(), (3, 3))
        positions.append(float(np.dot(header.GetOrigin(), direction[:, 2])))
        forms.add((header.GetSize(), *np.round(direction.ravel(), 3)))
        if len(forms) > 1:
            raise InputError(
                f"{file} differs in size or direction from the slices before it; {folder} should "
                f"hold one stack of parallel slices"
            )
    gaps = np.abs(np.diff(positions))
    usual = float(np.median(gaps))
    off = np.abs(gaps - usual) > max(_UNEVEN * usual, min(_ROUNDING, usual / 2))
    if off.any():
        at = int(np.argmax(off))
        raise InputError(
            f"between {files[at]} and {files[at + 1].name} the distance is {gaps[at]:.2f} mm, "
            f"elsewhere {usual:.2f} mm; a slice is missing or double"
        )
