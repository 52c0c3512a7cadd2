"""The scratch folder of a run: what is fetched lies there while it is needed, up to a limit."""

import atexit
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from copy import copy
from pathlib import Path

from nnunet_octreenca.errors import InputError, NoRoomError, OutputError
from nnunet_octreenca.locks import FolderLock, is_locked
from nnunet_octreenca.resources import free_disk

_PREFIX = "octreenca_scratch_"
_YOUNG = 60.0  # seconds in which a new folder gets its lock
_RESERVE = 256 << 20  # bytes of the disk that are left to others where no limit is given


class Scratch:
    """A folder of this process, removed when the process ends, however it does.

    What killed processes left in the same place is removed first.

    Args:
        place: where the folder is made; the system's folder for temporary files if left out.
        limit: bytes that may be fetched into it at a time; what is free on the disk if left out.

    Attributes:
        folder: the folder.

    Raises:
        OutputError: the place is no folder that can be written to.
    """

    def __init__(self, place: Path | str | None = None, limit: int | None = None) -> None:
        self.place = Path(place or tempfile.gettempdir())
        self.limit, self._used = limit, 0
        self._guard = threading.Lock()
        self._whole: Scratch | None = None  # which counts what this part has, too
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self.place)
            self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.place)).absolute()
        except OSError as error:
            raise OutputError(
                f"{self.place} cannot be used as scratch folder ({error}); give another --scratch"
            ) from error
        self._lock = FolderLock(self.folder, "a prediction").acquire()
        atexit.register(self.close)

    def part(self, limit: int) -> "Scratch":
        """The same folder, for what may have no more than some of its bytes.

        Args:
            limit: bytes.
        """
        part = copy(self)
        part.limit, part._used = limit, 0
        part._guard, part._whole = threading.Lock(), self
        return part

    def new_folder(self, name: str) -> Path:
        """A new folder in the folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}_", dir=self.folder))

    def reserve(self, wanted: int, what: str) -> None:
        """Count bytes that are about to be fetched.

        Raises:
            InputError: they are more than the limit leaves.
            OutputError: they are more than the disk has left.
        """
        if not self.try_reserve(wanted):
            raise self._no_room(wanted, what)

    def try_reserve(self, wanted: int) -> bool:
        """The same; whether there is room."""
        with self._guard:
            limited = self.limit is not None and self._used + wanted > self.limit
            if limited or self._free() < wanted:
                return False
            if self._whole is not None and not self._whole.try_reserve(wanted):
                return False
            self._used += wanted
            return True

    def release(self, given: int) -> None:
        """The bytes are no longer there."""
        with self._guard:
            self._used -= given
        if self._whole is not None:
            self._whole.release(given)

    def _free(self) -> int:
        return free_disk(self.folder) - (_RESERVE if self.limit is None else 0)

    def _no_room(self, wanted: int, what: str) -> InputError | OutputError:
        size = f"{wanted / 1e6:,.1f} MB"
        if self.limit is not None and self._used + wanted > self.limit:
            return InputError(
                f"{what} must be fetched whole ({size}), and --scratch-limit allows "
                f"{(self.limit - self._used) / 1e6:,.1f} MB more; raise it, or save slides as "
                f"tiled TIFF, of which only what is needed is read"
            )
        if self._whole is not None:
            return self._whole._no_room(wanted, what)
        return NoRoomError(
            f"{what} must be fetched ({size}), and {self.place} has "
            f"{max(self._free(), 0) / 1e6:,.1f} MB left; free disk space or give another --scratch"
        )

    def close(self) -> None:
        """Remove the folder; a second call does nothing."""
        atexit.unregister(self.close)
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove_abandoned(place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            young = time.time() - folder.stat().st_mtime < _YOUNG
            if not young and not is_locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
