"""Files and folders of a store with names on this machine's disk, fetched when they are read."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, cast

from nnunet_octreenca.deferred_files import deferring
from nnunet_octreenca.errors import InputError, OutputError
from nnunet_octreenca.stores.range_file import RangeFile, Ranges
from nnunet_octreenca.stores.scratch import Scratch
from nnunet_octreenca.stores.store import Entry, Store

_AT_A_TIME = 16  # small files: each request takes longer than its bytes


class StagedFiles:
    """A folder in which a store's objects have empty files as places, a `DeferredTree`.

    An empty place is what no reader takes for an image: who forgets to fetch gets an error, not
    zeros.

    Args:
        store: that they are in.
        folder: of the places; must be there.
        scratch: counts what is fetched.
        top: name of the place of the store's URL below the folder; empty for the folder itself.

    Attributes:
        folder: of the places.
    """

    def __init__(self, store: Store, folder: Path, scratch: Scratch, top: str = "") -> None:
        self._store, self.folder, self._scratch = store, folder.absolute(), scratch
        self._top = self.folder / top
        self._entries: dict[Path, Entry] = {}
        self._folders: dict[Path, Entry] = {}
        self._inodes: dict[Path, int] = {}  # of the places: what took one's place is no place
        self._ranges: dict[Path, Ranges] = {}
        self._whole: dict[Path, int] = {}  # and their bytes

    def add(self, entry: Entry, name: str | None = None) -> Path:
        """Make the place of a file or of a folder, which stays empty.

        Args:
            entry: of the store.
            name: below the folder, "/" between folders; the entry's if left out.

        Raises:
            InputError: the name would lie elsewhere, or this machine cannot have it.
        """
        name = entry.name if name is None else name
        path = Path(os.path.normpath(self.folder / name))
        if not path.is_relative_to(self.folder) or path == self.folder:
            raise InputError(f"{self._store.named(entry.path)} has a name that is none of a file")
        try:
            if entry.is_folder:
                path.mkdir(parents=True, exist_ok=True)
                self._folders[path] = entry
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                self._entries[path] = entry
                self._inodes[path] = path.stat().st_ino
        except OSError as error:
            raise InputError(
                f"{self._store.named(entry.path)} cannot have its name on this machine's disk "
                f"({error.strerror}); rename it"
            ) from error
        return path

    def entry_of(self, path: Path) -> Entry | None:
        """What a path is the place of; None where something else lies there by now."""
        path = path.absolute()
        if path in self._folders:
            return self._folders[path]
        entry = self._entries.get(path)
        with contextlib.suppress(OSError):
            if entry is not None and path.stat().st_ino == self._inodes[path]:
                return entry
        return None

    def open(self, path: Path) -> BinaryIO:
        """As `DeferredTree.open`; what has no ranges is fetched whole."""
        entry = self.entry_of(path)
        if entry is None or self.is_whole(path):
            return path.open("rb")
        if not entry.ranged or entry.size is None:
            self.fetch(path)
            return path.open("rb")
        return cast(BinaryIO, RangeFile(self.ranges(path)))

    def ranges(self, path: Path) -> Ranges:
        """What of a file is fetched in ranges; the same for all who open it."""
        path = path.absolute()
        if path not in self._ranges:
            entry = self._entries[path]
            assert entry.size is not None
            self._ranges[path] = Ranges(
                lambda begin, end: self._store.read(entry, begin, end),
                entry.size,
                path,
                self._scratch,
                self._store.named(entry.path),
            )
        return self._ranges[path]

    def fetch(self, path: Path) -> None:
        """As `DeferredTree.fetch`."""
        path = path.absolute()
        if path in self._entries:
            self._fetch(path)
            return
        files = [file for file in self._entries if file.is_relative_to(path)]
        files = [file for file in files if not self.is_whole(file)]
        sizes = sum(self._entries[file].size or 0 for file in files)
        self._scratch.reserve(sizes, self.shown(str(path)))  # before the first is fetched
        self._scratch.release(sizes)
        self.fetch_all(files)

    def fetch_all(self, paths: Iterable[Path]) -> None:
        """Have many small files lie whole in their places, several at a time."""
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            for _ in pool.map(self.fetch, paths):
                pass

    def _fetch(self, path: Path) -> None:
        if self.is_whole(path):
            return
        entry = self._entries[path]
        what = self._store.named(entry.path)
        if path in self._ranges:
            self._ranges.pop(path).close()
        fetched = 0
        if entry.size:
            self._scratch.reserve(entry.size, what)
            fetched = entry.size
        received = 0
        try:
            with path.open("wb") as file:
                for data in self._store.chunks(entry):
                    received += len(data)
                    if received > fetched:  # its size was not known before
                        self._scratch.reserve(received - fetched, what)
                        fetched = received
                    file.write(data)
        except FileNotFoundError:
            self._drop(path, fetched)
            raise InputError(f"{what} vanished while it was read") from None
        except OSError as error:
            self._drop(path, fetched)
            raise OutputError(
                f"{what} cannot be fetched into {self._scratch.place} ({error.strerror}); free "
                f"disk space or give another --scratch"
            ) from error
        except BaseException:
            self._drop(path, fetched)
            raise
        if entry.size is not None and received != entry.size:
            self._drop(path, fetched)
            raise InputError(f"{what} was changed while it was read: its size is another one")
        self._whole[path] = fetched

    def _drop(self, path: Path, fetched: int) -> None:
        self._scratch.release(fetched)
        with contextlib.suppress(OSError):
            path.write_bytes(b"")

    def keeping(self, path: Path) -> contextlib.AbstractContextManager[object]:
        """As `DeferredTree.keeping`."""
        entry = self.entry_of(path)
        if self.is_whole(path) or entry is None or not entry.ranged or entry.size is None:
            return contextlib.nullcontext()
        return self.ranges(path).keeping()

    def is_whole(self, path: Path) -> bool:
        """As `DeferredTree.is_whole`; what is no place of an object is."""
        path = path.absolute()
        return path in self._whole or path in self._folders or self.entry_of(path) is None

    def version(self, path: Path) -> str:
        """As `DeferredTree.version`."""
        entry = self.entry_of(path)
        return "" if entry is None else entry.version

    def refresh(self) -> None:
        """As `DeferredTree.refresh`: asks the store for every file once."""
        for path, entry in list(self._entries.items()):
            now = self._store.info(entry.path)
            if now is None:
                raise InputError(f"{self._store.named(entry.path)} vanished while it was read")
            self._entries[path] = now

    def fetched(self) -> dict[Path, int]:
        """Bytes of every file that lie on this machine's disk."""
        parts = {path: ranges.kept_bytes for path, ranges in self._ranges.items()}
        return {**parts, **self._whole}

    def changed(self) -> str | None:
        """What people call a file that is no longer what it was; None where all are.

        Raises:
            InputError: one vanished.
        """
        before = dict(self._entries)
        self.refresh()
        return next(
            (
                self._store.named(entry.path)
                for path, entry in before.items()
                if self._entries[path].version != entry.version
            ),
            None,
        )

    def replaced(self) -> list[Entry]:
        """The files of the store in whose places nothing lies any more, or something else."""
        return [entry for path, entry in self._entries.items() if self.entry_of(path) is None]

    def shown(self, text: str) -> str:
        """A text in which places are called what people call their objects."""
        if str(self.folder) not in text:
            return text
        for path, entry in sorted(self._entries.items(), key=lambda item: -len(str(item[0]))):
            text = text.replace(str(path), self._store.named(entry.path))
        for place in (self._top, self.folder):
            text = text.replace(str(place), self._store.shown)
        return text

    def close(self) -> None:
        """Remove what was fetched and give its room back."""
        for ranges in self._ranges.values():
            ranges.close()
        self._scratch.release(sum(self._whole.values()))
        self._ranges, self._whole = {}, {}


@contextlib.contextmanager
def staged(
    store: Store, entries: Sequence[Entry], scratch: Scratch, top: str = ""
) -> Iterator[StagedFiles]:
    """Context in which entries of a store have places in a new folder.

    Args:
        store: that they are in.
        entries: files and folders, by their names below the folder.
        scratch: where the folder is made; what is fetched is removed at the end.
        top: see `StagedFiles`.
    """
    folder = scratch.new_folder("images")
    files = StagedFiles(store, folder, scratch, top)
    try:
        for entry in entries:
            files.add(entry)
        with deferring(folder, files):
            yield files
    finally:
        files.close()
        shutil.rmtree(folder, ignore_errors=True)
