"""Small files of a run that its client and all its workers see, beside the records of cases.

They lie where the results go: in OUT/.octreenca on a shared disk, or below the URL of OUT.
"""

import json
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from nnunet_octreenca.errors import OctreeNCAError, OutputError
from nnunet_octreenca.files import load_json, write_json
from nnunet_octreenca.locks import FolderLock
from nnunet_octreenca.result_record import RECORDS
from nnunet_octreenca.stores.store import Store, store_of
from nnunet_octreenca.stores.store_lock import StoreLock
from nnunet_octreenca.stores.urls import local_path

NO_SHARE = (OSError, OctreeNCAError)
"""What writing raises, of a disk or of a store."""

_PURPOSE = "the client of a cluster"
_AT_A_TIME = 16  # requests to a store


class SharedFiles(Protocol):
    """JSON files with names such as "cluster/run.json".

    Attributes:
        shown: the folder or URL of the results, for people.
    """

    shown: str

    def named(self, name: str) -> str:
        """What people call a file."""
        ...

    def read(self, name: str) -> Any:
        """Its content; None where there is none, or it is damaged."""
        ...

    def read_all(self, folder: str) -> dict[str, Any]:
        """Name without folder and ending to content of all that a folder holds."""
        ...

    def write(self, name: str, content: Any) -> None:
        """Write a file, whole or not at all.

        Raises:
            OSError, OctreeNCAError: it cannot be written.
        """
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def clear(self, folder: str) -> None:
        """Remove all that a folder holds, as far as possible."""
        ...

    def lock(self, name: str) -> AbstractContextManager[object]:
        """Context in which one client alone is at the results.

        Raises:
            LockedError: (`with`) another one is.
            OutputError: (`with`) nothing can be written.
        """
        ...


def shared_files(output: str) -> SharedFiles:
    """Those beside some results.

    Args:
        output: folder or URL of the results.
    """
    folder = local_path(output)
    return StoredFiles(output) if folder is None else DiskFiles(folder)


class DiskFiles:
    """On a disk that all machines share.

    Args:
        folder: of the results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.shown = folder, str(folder)

    def path(self, name: str) -> Path:
        """Where a file lies."""
        return self.folder / RECORDS / name

    def named(self, name: str) -> str:
        """As `SharedFiles.named`."""
        return str(self.path(name))

    def read(self, name: str) -> Any:
        """As `SharedFiles.read`."""
        try:
            return load_json(self.path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def read_all(self, folder: str) -> dict[str, Any]:
        """As `SharedFiles.read_all`."""
        names = sorted(path.name for path in self.path(folder).glob("*.json"))
        return {name.removesuffix(".json"): self.read(f"{folder}/{name}") for name in names}

    def write(self, name: str, content: Any) -> None:
        """As `SharedFiles.write`."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)

    def exists(self, name: str) -> bool:
        """As `SharedFiles.exists`."""
        return self.path(name).exists()

    def remove(self, name: str) -> None:
        """As `SharedFiles.remove`."""
        self.path(name).unlink(missing_ok=True)

    def clear(self, folder: str) -> None:
        """As `SharedFiles.clear`."""
        shutil.rmtree(self.path(folder), ignore_errors=True)

    def lock(self, name: str) -> AbstractContextManager[object]:
        """As `SharedFiles.lock`."""
        path = self.path(name)
        return FolderLock(path.parent, _PURPOSE, name=path.name, subject=self.shown)


class StoredFiles:
    """In a store.

    Args:
        url: of the results.
    """

    def __init__(self, url: str) -> None:
        self._store: Store = store_of(url, OutputError)
        self.shown = self._store.shown

    def _path(self, name: str) -> str:
        return self._store.below(f"{RECORDS}/{name}")

    def named(self, name: str) -> str:
        """As `SharedFiles.named`."""
        return self._store.named(self._path(name))

    def read(self, name: str) -> Any:
        """As `SharedFiles.read`."""
        data = self._store.read_small(self._path(name))
        try:
            return None if data is None else load_json(data.decode())
        except ValueError:
            return None

    def read_all(self, folder: str) -> dict[str, Any]:
        """As `SharedFiles.read_all`."""
        names = sorted(entry.name for entry in self._store.inside(self._path(folder)))
        names = [name for name in names if name.endswith(".json")]
        found = _at_once(self.read, [f"{folder}/{name}" for name in names])
        stems = [name.removesuffix(".json") for name in names]
        return dict(zip(stems, found, strict=True))

    def write(self, name: str, content: Any) -> None:
        """As `SharedFiles.write`."""
        self._store.write(self._path(name), json.dumps(content, indent=4).encode())

    def exists(self, name: str) -> bool:
        """As `SharedFiles.exists`."""
        return self._store.info(self._path(name)) is not None

    def remove(self, name: str) -> None:
        """As `SharedFiles.remove`."""
        self._store.remove(self._path(name))

    def clear(self, folder: str) -> None:
        """As `SharedFiles.clear`."""
        _at_once(self._store.remove, [entry.path for entry in self._store.walk(self._path(folder))])

    def lock(self, name: str) -> AbstractContextManager[object]:
        """As `SharedFiles.lock`."""
        return StoreLock(self._store, self._path(name), self.shown, _PURPOSE)


def _at_once(call: Any, arguments: Iterable[str]) -> list[Any]:
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return list(pool.map(call, arguments))
