"""The cases that a file or a folder holds."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_octreenca.dicom_file import dicom_files, is_dicom
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.frames import frame_files, natural_order
from nnunet_octreenca.images.open_image import ENDINGS, READABLE, is_zarr, kind_of
from nnunet_octreenca.images.slide_reader import open_reader

_CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's CASE_0000
_ALL_ENDINGS = tuple(ending for endings in ENDINGS.values() for ending in endings)


@dataclass(frozen=True)
class Case:
    """One image to segment.

    Attributes:
        name: for its results, without ending and channel number.
        files: for `open_channels`, in the order of the channels; mostly a single file, or the
            folder of frames, of a DICOM series or of an OME-Zarr image.
    """

    name: str
    files: tuple[Path, ...]


def list_cases(path: Path | str, channels: int, *, frames: bool = False) -> list[Case]:
    """The cases of a file or of a folder, in natural order.

    A folder may hold images of one kind, one case a file, or nnU-Net's CASE_0000, CASE_0001 for
    channels in files of their own; folders of OME-Zarr images or of DICOM series; or be one of
    these itself.

    Args:
        path: the file or folder; folders in a folder are looked into, but not those in them.
        channels: that the model takes.
        frames: a folder of pictures is the frames of one video, and a folder of such folders is
            several. Otherwise each picture is a case.

    Raises:
        InputError: nothing readable is there, kinds are mixed, a channel is missing, or two
            cases have the same name.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.is_file():
        return [_single(path, channels)]
    if is_zarr(path) or kind_of(path) == "OME-Zarr folder" or dicom_files(path):
        return [Case(_stem(path.name), (path,))]
    if frames and _is_video(path):
        return [Case(path.name, (path,))]
    entries = sorted(
        (entry for entry in path.iterdir() if entry.name[0] != "."),
        key=lambda entry: natural_order(entry.name),
    )
    files = [entry for entry in entries if entry.is_file() and kind_of(entry)]
    folders = [
        entry
        for entry in entries
        if entry.is_dir()
        and _is_case(entry, frames)
        and not entry.with_name(entry.name + ".mrxs").exists()
    ]
    if files and folders:
        raise InputError(
            f"{path} holds images ({files[0].name}) and folders of images ({folders[0].name}); "
            f"give one or the other"
        )
    if not files and not folders:
        raise InputError(f"{path} holds no image but {_summary(entries)}; readable are: {READABLE}")
    _require_one_kind(path, files)
    cases = [Case(_stem(folder.name), (folder,)) for folder in folders]
    cases += _group(files, channels)
    _require_unique(path, cases)
    return cases


def _stem(name: str) -> str:
    for ending in sorted(_ALL_ENDINGS, key=len, reverse=True):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def _single(path: Path, channels: int) -> Case:
    """A file; with the others of its case if it is called CASE_0000 and they lie beside."""
    if kind_of(path) is None and not is_dicom(path):
        raise InputError(f"{path} is of no kind that can be read; readable are: {READABLE}")
    stem = _stem(path.name)
    match = _CHANNEL.fullmatch(stem)
    if match is None or match[2] != "0000":
        return Case(stem, (path,))
    ending = path.name[len(stem) :]
    files = [path.with_name(f"{match[1]}_{channel:04d}{ending}") for channel in range(channels)]
    return Case(match[1], tuple(files) if all(file.is_file() for file in files) else (path,))


def _is_case(folder: Path, frames: bool) -> bool:
    if is_zarr(folder) or kind_of(folder) == "OME-Zarr folder" or dicom_files(folder):
        return True
    return frames and _is_video(folder)


def _is_video(folder: Path) -> bool:
    """Whether a folder holds frames; TIFF files of several planes are volumes, not frames."""
    files = frame_files(folder)
    if not files or kind_of(files[0]) != "TIFF":
        return bool(files)
    first = open_reader(files[0])
    first.close()
    return first.planes == 1


def _require_one_kind(path: Path, files: Sequence[Path]) -> None:
    """TIFF files may be slides or pictures; else results of one folder would not be alike."""
    kinds = Counter(kind_of(file) for file in files)
    if len(set(kinds) - {"TIFF"}) > 1 or {"TIFF", "volume"} <= set(kinds):
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        raise InputError(f"{path} holds different kinds of images ({found}); give a folder of one")


def _group(files: Sequence[Path], channels: int) -> list[Case]:
    """One case a file, or a case of the files that differ in nnU-Net's channel number only.

    Numbers that no channel of the model can have are part of the names.
    """
    matches = [_CHANNEL.fullmatch(_stem(file.name)) for file in files]
    numbers = [int(match[2]) for match in matches if match]
    if not files or len(numbers) < len(files) or max(numbers) >= channels:
        return [Case(_stem(file.name), (file,)) for file in files]
    groups: dict[str, dict[int, Path]] = defaultdict(dict)
    for file, match in zip(files, matches, strict=True):
        assert match is not None
        if int(match[2]) in groups[match[1]]:
            raise InputError(
                f"{file} and {groups[match[1]][int(match[2])].name} are the same channel of the "
                f"same case; remove one"
            )
        groups[match[1]][int(match[2])] = file
    usual = max(len(group) for group in groups.values())
    for name, group in groups.items():
        missing = [channel for channel in range(usual) if channel not in group]
        if missing:
            raise InputError(
                f"{name}_{missing[0]:04d} is missing in {files[0].parent}; the model takes "
                f"{channels} channels"
            )
    return [
        Case(name, tuple(group[channel] for channel in range(usual)))
        for name, group in groups.items()
    ]


def _require_unique(path: Path, cases: Sequence[Case]) -> None:
    names: dict[str, Case] = {}
    for case in cases:
        other = names.setdefault(case.name, case)
        if other is not case:
            raise InputError(
                f"{other.files[0].name} and {case.files[0].name} in {path} would both be the case "
                f"{case.name!r}; rename one"
            )


def _summary(entries: Sequence[Path]) -> str:
    if not entries:
        return "is empty"
    kinds = Counter(
        "folders" if entry.is_dir() else entry.suffix or "files without ending" for entry in entries
    )
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
