"""Whether a worker's disk has room: a full one must not fail the cases of an archive one by one."""

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from nnunet_octreenca.errors import NoRoomError
from nnunet_octreenca.resources import FULL_DISK, free_disk

_TRIED = 64 << 10  # bytes; an empty file fits on a full disk
_LITTLE = 1 << 30  # bytes; the labels of nearly every image fit in less


def try_to_write(folder: Path) -> None:
    """Write some bytes to the disk of a folder, and remove them.

    Raises:
        OSError: they cannot be written.
    """
    path = folder / f".octreenca_probe_{uuid4().hex}"
    try:
        with path.open("wb") as file:
            file.write(os.urandom(_TRIED))  # which no disk compresses
            file.flush()
            os.fsync(file.fileno())  # disks of other machines may say so only now
    finally:
        with suppress(OSError):
            path.unlink()


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk, or a quota that is used up, is behind an error.

    >>> import errno
    >>> is_full(OSError(errno.ENOSPC, "No space left on device")), is_full(ValueError("no"))
    (True, False)
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


class Room:
    """What the cases of a worker tell of its disk.

    Args:
        folders: of the results, and of what is fetched.
    """

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._refused = False

    def is_over(self, error: BaseException | None) -> bool:
        """Whether the next case would find no room either.

        A single case may need more than is left while the others fit.

        Args:
            error: that a case has just failed with; None if it was done.
        """
        if error is None:
            self._refused = False
            return False
        if isinstance(error, NoRoomError):  # by what it would need
            again, self._refused = self._refused, True
            return again or any(free_disk(folder) < _LITTLE for folder in self._folders)
        if is_full(error):
            return True
        try:  # some libraries do not say why they cannot write
            for folder in self._folders:
                try_to_write(folder)
        except OSError as said:
            return is_full(said)
        return False
