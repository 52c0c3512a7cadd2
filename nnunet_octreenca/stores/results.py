"""The folder of results in a store: what it has of a case, and new results put there."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from nnunet_octreenca.deferred_files import deferring
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.result_record import (
    FOLDER,
    QUALITY,
    QUALITY_TABLE,
    RECORDS,
    WRITING,
    lock_name,
    read_case_record,
    record_path,
    write_case_record,
)
from nnunet_octreenca.stores.scratch import Scratch
from nnunet_octreenca.stores.staged import StagedFiles
from nnunet_octreenca.stores.store import Entry, Store, store_of
from nnunet_octreenca.stores.store_lock import StoreLock

# Written last: without them nobody takes a folder for an image.
_ROOT_METADATA = ("zarr.json", ".zattrs", ".zgroup")


class StoredResults:
    """Results below a URL. A case's are made in a folder of this machine and then put there.

    Args:
        url: of the folder.
        scratch: where the folder on this machine is made.

    Attributes:
        folder: on this machine.
        url, shown: the URL, and without its secrets.

    Raises:
        OutputError: the store cannot be written to.
        EnvironmentMismatchError: what reaches the store is not installed.
    """

    def __init__(self, url: str, scratch: Scratch) -> None:
        self._store = store_of(url, OutputError)
        self.require_writable()
        self._scratch = scratch
        self.folder = scratch.new_folder("results")
        self.url = url
        self.shown = self._store.shown

    def require_writable(self) -> None:
        """Write and remove an object.

        Raises:
            OutputError: results cannot be written there.
        """
        self._store.require_writable()

    @cached_property
    def _listed(self) -> dict[str, Entry]:
        """What was there when the run began, by its name below the URL."""
        found = {entry.name: entry for entry in self._store.inside(self._store.root)}
        for folder in (FOLDER, QUALITY):
            if folder in found:
                inner = self._store.inside(self._store.below(folder))
                found |= {f"{folder}/{entry.name}": entry for entry in inner}
        return found

    @contextmanager
    def case(self, name: str, outputs: Sequence[Path]) -> Iterator["CaseResults"]:
        """Context in which a case is this run's, and what the store has of it has places.

        Args:
            name: of the case.
            outputs: all that may be written for it, in `folder`.

        Raises:
            LockedError: another run is at it.
            OutputError: the store cannot be read or written.
        """
        files = StagedFiles(self._store, self.folder, self._scratch)
        lock = self._store.below(f"{RECORDS}/{lock_name(name)}")
        with StoreLock(self._store, lock, f"case {name} of {self.shown}") as held:
            try:
                self._place(files, name, outputs)
                with deferring(self.folder, files):
                    yield CaseResults(self._store, self.folder, files, held, name, outputs)
            finally:
                files.close()
                self._clear(outputs)

    def _place(self, files: StagedFiles, name: str, outputs: Sequence[Path]) -> None:
        record = self._store.info(self._store.below(f"{RECORDS}/{name}.json"))
        if record is not None:
            files.fetch(files.add(record, f"{RECORDS}/{name}.json"))
        known = read_case_record(record_path(self.folder, name))
        since = set(known.outputs) if known is not None else set()
        for path in outputs:
            below = path.relative_to(self.folder).as_posix()
            entry = self._listed.get(below)
            if entry is None and below in since:  # another run's, which has ended
                entry = self._store.info(self._store.below(below))
            if entry is None:
                continue
            place = files.add(entry, below)
            if entry.is_folder:
                for inner in self._store.walk(entry.path):
                    files.add(inner, f"{below}/{inner.name}")
            elif path.parent.name == QUALITY and path.suffix == ".json":
                files.fetch(place)

    def _clear(self, outputs: Sequence[Path]) -> None:
        """Remove what lies on this machine, but what the table of quality is made of."""
        for path in outputs:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif not (path.parent.name == QUALITY and path.suffix == ".json"):
                path.unlink(missing_ok=True)

    def has_table(self) -> bool:
        """Whether the store has a table of quality."""
        return self._store.info(self._store.below(QUALITY_TABLE)) is not None

    @contextmanager
    def quality(self) -> Iterator[None]:
        """Context in which the records of quality of all cases lie in `folder`; puts the table."""
        files = StagedFiles(self._store, self.folder, self._scratch)
        table = self.folder / QUALITY_TABLE
        try:
            for entry in self._store.inside(self._store.below(QUALITY)):
                files.add(entry, f"{QUALITY}/{entry.name}")
            files.fetch_all((self.folder / QUALITY).glob("*.json"))
            yield
            if table.exists():
                self._store.put(table, self._store.below(QUALITY_TABLE))
        finally:
            files.close()
            table.unlink(missing_ok=True)


def _metadata_last(path: Path) -> tuple[bool, int]:
    """A key that leaves files in their order and puts metadata behind them, the root's last."""
    metadata = path.name in _ROOT_METADATA
    return metadata, -len(path.parts) if metadata else 0


class CaseResults:
    """What the store has of one case, and what was made of it anew.

    Args:
        store: of the results.
        folder: on this machine.
        files: places of what was there.
        lock: that keeps other runs from the case.
        name: of the case.
        outputs: all that may have been written for it.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        files: StagedFiles,
        lock: StoreLock,
        name: str,
        outputs: Sequence[Path],
    ) -> None:
        self._store, self._folder, self._files = store, folder, files
        self._lock, self._name, self._outputs = lock, name, outputs

    def shown(self, text: str) -> str:
        """A text in which the folder on this machine is called by its URL."""
        return self._files.shown(text)

    def publish(self) -> None:
        """Put the new results into the store: the record says that they are whole, and is last.

        Raises:
            LockedError: another run has taken the case.
            OutputError: the store does not take them; what it has is recorded as unfinished.
        """
        self._lock.require_held()
        record = read_case_record(record_path(self._folder, self._name))
        assert record is not None
        place = record_path(self._folder, self._name)
        remote = self._store.below(f"{RECORDS}/{self._name}.json")
        write_case_record(
            self._folder,
            replace(record, state=WRITING, outputs=dict.fromkeys(record.outputs)),
        )
        self._store.put(place, remote)
        new = [path for path in self._made() if path != place]
        # Folders that are replaced are no image from now on.
        before = [entry for entry in self._files.replaced() if entry.path != remote]
        for entry in before:
            if entry.name.rpartition("/")[2] in _ROOT_METADATA:
                self._store.remove(entry.path)
        for path in sorted(new, key=_metadata_last):
            self._store.put(path, self._store.below(self._below(path)))
        written = {self._store.below(self._below(path)) for path in new}
        for entry in before:
            if entry.path not in written:
                self._store.remove(entry.path)
        self._lock.require_held()  # a large upload may take longer than a lock lasts
        write_case_record(self._folder, record)
        self._store.put(place, remote)

    def _below(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _made(self) -> list[Path]:
        """The files of the case that this run has written."""
        found: list[Path] = []
        for output in self._outputs:
            if output.is_dir():
                found += (Path(folder, n) for folder, _, names in os.walk(output) for n in names)
            elif output.exists() and output.name != lock_name(self._name):
                found.append(output)
        return [path for path in found if self._files.entry_of(path) is None]
