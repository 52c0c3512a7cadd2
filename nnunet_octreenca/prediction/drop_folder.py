"""A folder into which scanners drop files: which cases in it are complete.

The folder is looked at again and again, since network drives tell nobody of changes.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TypeAlias

from nnunet_octreenca.dicom_file import frames_of, is_dicom, kind_of_header, read_header
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.cases import Case, arriving_case, list_cases
from nnunet_octreenca.images.companions import with_companions
from nnunet_octreenca.images.open_image import kind_of
from nnunet_octreenca.result_record import is_own_folder

_INDEX_FILES = (".mrxs", ".vms", ".vmu")  # of slides in several files

_Signature: TypeAlias = tuple[int, int, int]
"""Number of files, bytes, and the latest time of change in ns."""

_Key: TypeAlias = tuple[tuple[str, _Signature | None], ...]
"""Names of all files of a case, each with its signature, or None where it is missing."""


@dataclass(frozen=True)
class Arrival:
    """A case that is complete, or will not be.

    Attributes:
        case: its name and files.
        problem: why it cannot be segmented, as a sentence; empty if it can.
    """

    case: Case
    problem: str = ""

    @property
    def name(self) -> str:
        """Of its first file or folder, which no other case of the folder has."""
        return self.case.files[0].name


@dataclass
class _Entry:
    """A file or folder in the drop folder.

    Attributes:
        own: (size, time of change) of itself.
        signature: of all files in it.
        since: when that was seen first.
        folder: what it is.
    """

    own: tuple[int, int]
    signature: _Signature
    since: float
    folder: bool


class DropFolder:
    """The cases of a folder that files keep arriving in.

    A file is complete when size and time of change have stayed the same for `settle` seconds; a
    folder (a DICOM series, frames, OME-Zarr) when nothing in it changed for `close_after`
    seconds. A case waits for all channels and the voxels beside its header, but not for longer
    than `close_after`. Hidden files, and files that are no images, are left alone.

    Args:
        path: the folder.
        channels: that the model takes.
        volumes: the network is 3-D: a folder of pictures is a video, as in `list_cases`, and a
            single slice of a DICOM series no case.
        output: folder of the results, which may lie in it.
        settle, close_after: seconds.
        clock: seconds on a scale that nobody can set.

    Raises:
        InputError: `path` is no folder or is `output`, or the seconds are not above 0.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        channels: int,
        volumes: bool = False,
        output: Path | str,
        settle: float,
        close_after: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.path, self._output = Path(path), Path(output).resolve()
        for name, seconds in (("settle", settle), ("close_after", close_after)):
            if not 0 < seconds < math.inf:
                raise InputError(f"{name} ({seconds}) must be a number of seconds above 0")
        if not self.path.is_dir():
            raise InputError(f"{path} is no folder; give the one that files are dropped into")
        if self.path.resolve() == self._output:
            raise InputError(
                f"{path} cannot be the folder of the results too, which would be taken for new "
                f"images; give another -o"
            )
        self._channels, self._volumes = channels, volumes
        self._settle, self._close_after, self._clock = settle, close_after, clock
        self._entries: dict[str, _Entry] = {}
        self._reported: dict[str, _Key] = {}
        self._known: set[str] = set()  # all names in those
        self._pending = False
        self.waiting = 0
        """Files and folders that were not complete yet at the last look."""

    def look(self) -> list[Arrival]:
        """The cases that have become complete since the last look, or since they last changed.

        Raises:
            OSError: the folder cannot be read; what was known of it stays known.
        """
        changed = self._scan()
        if not changed and not self._pending:
            return []
        self.waiting = 0
        found: list[Arrival] = []
        seen: set[str] = set()
        beside = self._beside()
        for name in sorted(self._entries):
            if name in seen or name in beside:
                continue
            arrival = self._arrival(name, seen)
            if arrival is not None:
                found.append(arrival)
        self._reported = {name: key for name, key in self._reported.items() if name in seen}
        self._known = {name for key in self._reported.values() for name, _ in key}
        self._pending = self.waiting > 0
        return found

    def knows(self, name: str) -> bool:
        """Whether a case was returned and is still there; by `Arrival.name`."""
        return name in self._reported

    def again(self, name: str) -> None:
        """Have `look` return a case once more."""
        self._reported.pop(name, None)
        self._pending = True

    def _scan(self) -> bool:
        """Bring the entries up to date; whether any has changed, come or gone."""
        now, found = self._clock(), {}
        for item in os.scandir(self.path):
            if item.name[0] == ".":
                continue
            try:
                entry = self._entry(item, now)
            except OSError:  # went meanwhile, is a broken link, or hidden from this user
                continue
            if entry is not None:
                found[item.name] = entry
        changed = found.keys() != self._entries.keys() or any(
            entry.since == now for entry in found.values()
        )
        self._entries = found
        return changed

    def _entry(self, item: os.DirEntry[str], now: float) -> _Entry | None:
        before = self._entries.get(item.name)
        about = item.stat()
        own, folder = (about.st_size, about.st_mtime_ns), item.is_dir()
        if not folder:
            if not item.is_file():  # a pipe would be waited for
                return None
            if before is not None and before.own == own and not before.folder:
                return before
            return _Entry(own, (1, *own), now, False)
        if before is None and self._is_ours(Path(item.path)):
            return None
        # What was taken is not looked through again until a file comes or goes: that would be
        # thousands of requests a second to a network drive.
        if before is not None and before.own == own and item.name in self._known:
            return before
        signature = _tree(item.path)
        if before is not None and before.signature == signature and before.folder:
            return _Entry(own, signature, before.since, True)
        return _Entry(own, signature, now, True)

    def _is_ours(self, folder: Path) -> bool:
        return folder.resolve() == self._output or is_own_folder(folder)

    def _beside(self) -> set[str]:
        """Names of the files and folders that belong to a slide's index file."""
        slides = [name for name in self._entries if name.lower().endswith(_INDEX_FILES)]
        return {file.name for name in slides for file in with_companions(self.path / name)[1:]}

    def _arrival(self, name: str, seen: set[str]) -> Arrival | None:
        """The case of an entry if it is complete and was not reported; marks its files as seen."""
        entry, path = self._entries[name], self.path / name
        seen.add(name)
        known = self._reported.get(name)
        if known is not None and known == self._key(dict(known)):
            seen |= dict(known).keys()
            return None
        if not self._is_quiet([entry], self._close_after if entry.folder else self._settle):
            return None
        if entry.folder:
            self._reported[name] = self._key([name])
            return self._of_folder(path)
        if kind_of(path) is None and not is_dicom(path):
            self._reported[name] = self._key([name])
            return None
        try:
            case, missing = arriving_case(path, self._channels)
            parts = [file.name for part in case.files for file in with_companions(part)]
        except (InputError, OSError) as error:
            self._reported[name] = self._key([name])
            return Arrival(Case(name, (path,)), str(error))
        key = self._key([*parts, *(file.name for file in missing)])
        seen |= dict(key).keys()
        entries = [self._entries[part] for part, there in key if there is not None]
        slow = bool(missing) or any(part.folder for part in entries)
        if not self._is_quiet(entries, self._close_after if slow else self._settle):
            return None
        first = case.files[0].name
        if self._reported.get(first) == key:
            return None
        self._reported[first] = key
        if missing:
            return Arrival(
                case,
                f"{missing[0].name} did not come within {self._close_after:g} s after the other "
                f"files of case {case.name}; drop it, and the case is taken",
            )
        return Arrival(case, self._slice_problem(path))

    def _key(self, names: Iterable[str]) -> _Key:
        """What tells apart two states of a case's files; None for a file that is not there."""
        there = self._entries
        return tuple(
            (name, there[name].signature if name in there else None)
            for name in dict.fromkeys(names)
        )

    def _is_quiet(self, entries: Sequence[_Entry], seconds: float) -> bool:
        """Whether none of them has changed for so long; otherwise they count as waiting."""
        quiet = self._clock() - max(entry.since for entry in entries) >= seconds
        self.waiting += not quiet
        return quiet

    def _of_folder(self, path: Path) -> Arrival:
        alone = Case(path.name, (path,))
        try:
            cases = list_cases(path, self._channels, frames=self._volumes)
        except (InputError, OSError) as error:
            return Arrival(alone, str(error))
        if len(cases) == 1 and cases[0].files == (path,):
            return Arrival(cases[0])
        # Folders deeper down often have the same names for every patient.
        return Arrival(
            alone,
            f"{path} holds {len(cases)} cases ({cases[0].files[0].name}) and is none itself; drop "
            f"each of them directly, under a name of its own",
        )

    def _slice_problem(self, path: Path) -> str:
        """Why a DICOM file alone is no case; empty for any other file."""
        if not self._volumes or not is_dicom(path):
            return ""
        try:
            header = read_header(path)
        except InputError:  # said again, and in full, where it is segmented
            return ""
        if kind_of_header(header) != "image" or frames_of(header) > 1:
            return ""
        return (
            f"{path} is one slice, and the model segments volumes; have each DICOM series dropped "
            f"in a folder of its own"
        )


def _tree(folder: str) -> _Signature:
    """Of all files below a folder."""
    count = size = latest = 0
    for place, _, names in os.walk(folder):
        for name in names:
            about = os.stat(os.path.join(place, name))  # noqa: PTH116, PTH118  called very often
            count, size, latest = count + 1, size + about.st_size, max(latest, about.st_mtime_ns)
    return count, size, latest
