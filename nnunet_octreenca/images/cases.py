"""The cases that a file or a folder holds."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_octreenca.dicom_file import dicom_files, is_dicom, kind_of_header, read_header
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.frames import FRAME_ENDINGS, frame_files, natural_order
from nnunet_octreenca.images.open_image import ENDINGS, READABLE, is_zarr, kind_of
from nnunet_octreenca.images.slide_reader import open_reader
from nnunet_octreenca.images.volume_checks import named_files
from nnunet_octreenca.result_record import is_own_folder, recorded_results

_CHANNEL = re.compile(r"(.+)_([0-9]{4})")  # nnU-Net's CASE_0000
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


def list_cases(
    path: Path | str,
    channels: int,
    *,
    frames: bool = False,
    output: Path | str | None = None,
    tell: Callable[[str], object] | None = None,
) -> list[Case]:
    """The cases of a file or of a folder, in natural order.

    A folder may hold images of one kind, one case a file, or nnU-Net's CASE_0000, CASE_0001 for
    channels in separate files; folders of OME-Zarr images or of DICOM series; or be one of
    these itself. Its content decides. Results of earlier runs, the folder for the results, and
    pictures that are fewer than the other images (previews) are left out.

    Args:
        path: the file or folder; folders in a folder are looked into, but not those in them.
        channels: that the model takes.
        frames: a folder of pictures is the frames of one video, and a folder of such folders is
            several. Otherwise each picture is a case.
        output: the folder for the results, which may be `path` or lie in it.
        tell: takes a line about what a folder holds and what is left out.

    Raises:
        InputError: nothing readable is there, kinds are mixed, a channel is missing, or two
            cases have the same name.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.is_file():
        return [_single(path, channels)]
    name = _stem(_own_name(path))
    if is_zarr(path) or kind_of(path) == "OME-Zarr folder":
        return [Case(name, (path,))]
    listing = _Listing(path, None if output is None else Path(output))
    dicom = listing.dicom()
    if dicom:
        cases, what = [Case(name, (path,))], f"DICOM, {_counted(len(dicom), 'file')}"
        listing.leave_out(file for file in listing.files if file not in dicom)
        listing.leave_out(listing.folders(frames))
    else:
        folders = listing.folders(frames)
        files = listing.images(folders)
        if files and folders:
            raise InputError(
                f"{path} holds images ({files[0].name}) and folders of images "
                f"({folders[0].name}); give one or the other"
            )
        if not files and not folders:
            raise InputError(
                f"{path} holds no image but {listing.summary()}; readable are: {READABLE}"
            )
        _require_one_kind(path, files)
        if frames and _are_frames(files):
            cases, what = [Case(name, (path,))], f"a video of {_counted(len(files), 'frame')}"
        else:
            cases = [Case(_stem(folder.name), (folder,)) for folder in folders]
            cases += _group(files, channels)
            what = _counted(len(cases), "case")
        _require_unique(path, cases)
    if tell is not None:
        tell(f"{path}: {what}{listing.left_out()}")
    return cases


def arriving_case(path: Path, channels: int) -> tuple[Case, list[Path]]:
    """The case that a file belongs to while others of it may still be missing.

    Args:
        path: the file.
        channels: that the model takes.

    Returns:
        The case, and the channels and voxels of it that are not there.

    Raises:
        InputError: it is no image.
    """
    case = _single(path, channels)
    stem = _stem(path.name)
    match = _CHANNEL.fullmatch(stem)
    numbered = match is not None and channels > 1 and int(match[2]) < channels
    if match is not None and numbered and not _hold_all_channels([path], channels):
        ending = path.name[len(stem) :]
        names = [f"{match[1]}_{number:04d}{ending}" for number in range(channels)]
        case = Case(match[1], tuple(map(path.with_name, names)))
    needed = [file for part in case.files for file in (part, *_needed_beside(part))]
    return case, [file for file in needed if not file.exists()]


def _needed_beside(path: Path) -> list[Path]:
    """Files and folders without which an image cannot be read."""
    if path.suffix.lower() == ".mrxs":
        return [path.with_suffix("")]
    return named_files(path) if path.is_file() else []


class _Listing:
    """The visible entries of a folder, without those of earlier runs; and what is left out.

    Args:
        path: the folder.
        output: the folder for the results; None where there is none.
    """

    def __init__(self, path: Path, output: Path | None) -> None:
        entries = sorted(
            (entry for entry in path.iterdir() if entry.name[0] != "."),
            key=lambda entry: natural_order(entry.name),
        )
        target = None if output is None else output.resolve()
        recorded = recorded_results(path)
        if target == path.resolve():
            recorded |= _unrecorded(entries)
        self._results: list[Path] = []
        self._entries: list[Path] = []
        for entry in entries:
            folder = entry.is_dir()
            own = entry.name in recorded or (folder and is_own_folder(entry))
            if own or (folder and target is not None and entry.resolve() == target):
                self._results.append(entry)
            else:
                self._entries.append(entry)
        self.path = path
        # A broken link stays a case, which fails by its name; else it would be missed.
        files = [entry for entry in self._entries if not entry.is_dir()]
        self.files = [file for file in files if _may_be_image(file)]
        self._left_out = [file for file in files if not _may_be_image(file)]

    def leave_out(self, entries: Iterable[Path]) -> None:
        """Count what is no case."""
        self._left_out += entries

    def dicom(self) -> set[Path]:
        """The DICOM files if the folder is one of DICOM, together with those that are damaged.

        Raises:
            InputError: there are other volumes, slides or videos too, or as many pictures.
        """
        dicom = set(dicom_files(self.path)).intersection(self.files)
        dicom = {file for file in dicom if kind_of(file) in (None, "volume")}
        if not dicom:
            return dicom
        damaged = {file for file in self.files if file.suffix.lower() in (".dcm", ".ima")}
        series = dicom | damaged
        others = [file for file in self.files if file not in series]
        images = [file for file in others if kind_of(file)]
        pictures = [file for file in images if kind_of(file) == "picture"]
        if len(pictures) < len(images) or len(pictures) >= len(dicom):
            if images and not any(map(_is_image, sorted(dicom))):
                self.leave_out(dicom)
                self.files = others
                return set()
            if images:
                raise InputError(
                    f"{self.path} holds different kinds of images ({len(dicom)} DICOM, "
                    f"{_kinds(images)}); give a folder of one"
                )
        return series

    def folders(self, frames: bool) -> list[Path]:
        """The folders that are cases; the others are left out."""
        folders = [entry for entry in self._entries if entry.is_dir()]
        slides = {file.stem for file in self.files if file.suffix.lower() == ".mrxs"}
        cases = {f: _is_case(f, frames) for f in folders if f.name not in slides}
        self.leave_out(folder for folder, is_case in cases.items() if not is_case)
        return [folder for folder, is_case in cases.items() if is_case]

    def images(self, folders: Sequence[Path]) -> list[Path]:
        """The images, without pictures that are fewer than the others and than the folders."""
        images = [file for file in self.files if kind_of(file)]
        self.leave_out(file for file in self.files if not kind_of(file))
        pictures = [file for file in images if kind_of(file) == "picture"]
        others = [file for file in images if kind_of(file) not in ("picture", "TIFF")]
        others += folders
        if pictures and len(pictures) < len(others):
            self.leave_out(pictures)
            images = [file for file in images if kind_of(file) != "picture"]
        return images

    def left_out(self) -> str:
        """The end of the line about the folder."""
        parts = []
        if self._results:
            parts.append(f"{_counted(len(self._results), 'result')} of earlier runs")
        pictures = [e for e in self._left_out if e.is_file() and kind_of(e) == "picture"]
        folders = [e for e in self._left_out if e.is_dir()]
        other = len(self._left_out) - len(pictures) - len(folders)
        if pictures:
            parts.append(f"{_counted(len(pictures), 'picture')} ({pictures[0].name})")
        if folders:
            parts.append(f"{_counted(len(folders), 'folder')} ({folders[0].name})")
        if other:
            parts.append(f"{_counted(other, 'other file')}")
        return f"; left out: {', '.join(parts)}" if parts else ""

    def summary(self) -> str:
        """What there is instead of images."""
        said = _summary(self._entries) if self._entries or not self._results else ""
        if not self._results:
            return said
        results = f"{_counted(len(self._results), 'result')} of earlier runs"
        return f"{results}, {said}" if said else results


def _unrecorded(entries: Sequence[Path]) -> set[str]:
    """Results in the folder of their images that an interrupted run left without a picture.

    These are X_frames and X_overlay.mp4 next to X, and X.nii.gz next to X_0000.nii.gz.
    """
    stems = {_stem(entry.name) for entry in entries}
    found = set()
    for entry in entries:
        name = entry.name
        of_video = any(
            name.endswith(ending) and name.removesuffix(ending) in stems
            for ending in ("_frames", "_overlay.mp4")
        )
        of_channels = kind_of(entry) == "volume" and f"{_stem(name)}_0000" in stems
        if of_video or of_channels:
            found.add(name)
    return found


def _may_be_image(file: Path) -> bool:
    return kind_of(file) is not None or is_dicom(file)


def _is_image(dicom: Path) -> bool:
    """Whether a DICOM file holds an image; what is damaged may have been one."""
    try:
        return kind_of_header(read_header(dicom)) == "image"
    except Exception:
        return True


def _own_name(path: Path) -> str:
    """The last part of a path, also of "." and ".."."""
    name = path.name
    return name if name not in ("", "..") else path.resolve().name or "root"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _stem(name: str) -> str:
    for ending in sorted(_ALL_ENDINGS, key=len, reverse=True):
        stem = name[: -len(ending)]
        if name.lower().endswith(ending) and stem.strip("."):  # else results would be hidden
            return stem
    return name


def _single(path: Path, channels: int) -> Case:
    """A file; with the others of its case if it is called CASE_0000 and they are next to it."""
    if kind_of(path) is None and not is_dicom(path):
        raise InputError(f"{path} is not of a kind that can be read; readable are: {READABLE}")
    stem = _stem(path.name)
    match = _CHANNEL.fullmatch(stem)
    if match is None or match[2] != "0000":
        return Case(stem, (path,))
    ending = path.name[len(stem) :]
    files = [path.with_name(f"{match[1]}_{channel:04d}{ending}") for channel in range(channels)]
    if all(file.is_file() for file in files) and not _hold_all_channels([path], channels):
        return Case(match[1], tuple(files))
    return Case(match[1], (path,))


def _is_case(folder: Path, frames: bool) -> bool:
    if is_zarr(folder) or kind_of(folder) == "OME-Zarr folder" or dicom_files(folder):
        return True
    return frames and _is_video(folder)


def _is_video(folder: Path) -> bool:
    return not is_own_folder(folder) and _are_frames(frame_files(folder))


def _are_frames(files: Sequence[Path]) -> bool:
    """Whether files can be frames; TIFF files of several planes are volumes, not frames."""
    if not files or not all(file.suffix.lower() in FRAME_ENDINGS for file in files):
        return False
    if kind_of(files[0]) != "TIFF":
        return True
    for file in files:  # the first that can be opened decides
        try:
            reader = open_reader(file)
        except Exception:  # whatever a library raises, said where the case is opened
            continue
        reader.close()
        return reader.planes == 1
    return True


def _require_one_kind(path: Path, files: Sequence[Path]) -> None:
    """TIFF files may be slides or pictures; else results of one folder would not be alike."""
    kinds = Counter(kind_of(file) for file in files)
    if len(set(kinds) - {"TIFF"}) > 1 or {"TIFF", "volume"} <= set(kinds):
        raise InputError(
            f"{path} holds different kinds of images ({_kinds(files)}); give a folder of one"
        )


def _kinds(files: Sequence[Path]) -> str:
    kinds = Counter(kind_of(file) for file in files)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _group(files: Sequence[Path], channels: int) -> list[Case]:
    """One case a file, or a case of the files that differ in nnU-Net's channel number only.

    Numbers that no channel of the model can have are part of the names, as cameras give them; so
    are numbers of files that hold all channels each, unless all of them are 0000.
    """
    matches = [_CHANNEL.fullmatch(_stem(file.name)) for file in files]
    numbers = [int(match[2]) for match in matches if match]
    if not files or len(numbers) < len(files) or max(numbers) >= channels:
        return [Case(_stem(file.name), (file,)) for file in files]
    if any(numbers) and _hold_all_channels(files, channels):
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


def _hold_all_channels(files: Sequence[Path], channels: int) -> bool:
    """Whether a file has all channels of the model, as colours have. Volumes are not opened."""
    for file in files:
        kind = kind_of(file)
        if kind == "video" and channels == 3:
            return True
        if kind in ("picture", "slide", "TIFF"):
            try:
                reader = open_reader(file, channels=channels)
            except Exception:  # whatever a library raises, said where the case is opened
                continue
            reader.close()
            if reader.channels == channels:
                return True
    return False


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
