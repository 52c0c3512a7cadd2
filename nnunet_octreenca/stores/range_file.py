"""A store's object as a seekable file, of which only what is read is fetched."""

import errno
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_octreenca.errors import InputError, OctreeNCAError, OutputError
from nnunet_octreenca.stores.scratch import Scratch

BLOCK = 128 << 10
"""Bytes that are fetched at least: a request takes as long as some of these."""
LONGEST = 64
"""Blocks of a request at most, where one follows the other."""
_KEPT = 2 * LONGEST  # blocks in memory that found no room on the disk


class Ranges:
    """The content of an object of known size, as far as somebody asked for it.

    What was fetched is kept in a sparse file, so that an image that is read several times, for
    its statistics and for its labels, is fetched once. Where scratch is full, it is fetched again.

    Args:
        fetch: gives bytes from a first up to an end.
        size: of the object in bytes.
        place: of the sparse file; made if it is not there.
        scratch: counts what is kept.
        what: the object, for errors.

    Attributes:
        size: of the object in bytes.
        kept_bytes: that lie in the sparse file.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], bytes],
        size: int,
        place: Path,
        scratch: Scratch,
        what: str,
    ) -> None:
        self._fetch, self.size, self._what, self._scratch = fetch, size, what, scratch
        self._blocks = -(-size // BLOCK)
        self._have = bytearray(self._blocks)  # 1: in the sparse file
        self._memory: dict[int, bytes] = {}
        self._next, self._run = -1, 1  # the block that a sequential reader wants, and how many
        self._guard = threading.Lock()
        self.kept_bytes = 0
        self._required = False
        place.touch()
        self._file = place.open("r+b", buffering=0)
        self._file.truncate(size)

    def read(self, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end - 1`, fewer beyond the object's end only.

        Raises:
            InputError: the object vanished, or was changed.
            OutputError: they must be kept (`keeping`), and scratch is full.
        """
        end = min(end, self.size)
        parts = []
        with self._guard:
            while begin < end:
                block = begin // BLOCK
                stop = min(end, (block + 1) * BLOCK)
                data = self._block(block, -(-end // BLOCK))
                parts.append(data[begin - block * BLOCK : stop - block * BLOCK])
                begin = stop
        return b"".join(parts)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Context in which what is read lies in the sparse file, or cannot be read."""
        with self._guard:
            self._memory.clear()
            self._required = True
        try:
            yield
        finally:
            self._required = False

    def _block(self, block: int, wanted_end: int) -> bytes:
        """A block, fetched together with those behind it that are wanted or likely to be."""
        if self._have[block]:
            self._file.seek(block * BLOCK)
            return self._file.read(self._length(block, block + 1)) or b""
        if block in self._memory:
            return self._memory[block]
        self._run = min(2 * self._run, LONGEST) if block == self._next else 1
        end = min(block + max(self._run, min(wanted_end - block, LONGEST)), self._blocks)
        end = next((b for b in range(block, end) if self._have[b] or b in self._memory), end)
        begin, length = block * BLOCK, self._length(block, end)
        try:
            data = self._fetch(begin, begin + length)
        except FileNotFoundError:
            raise InputError(f"{self._what} vanished while it was read") from None
        if len(data) != length:
            raise InputError(
                f"{self._what} was changed while it was read: it ends before byte "
                f"{begin + length:,}"
            )
        self._next = end
        self._keep(block, end, data)
        return data[: self._length(block, block + 1)]

    def _keep(self, block: int, end: int, data: bytes) -> None:
        if self._on_disk(block, data):
            self._have[block:end] = b"\1" * (end - block)
            return
        if self._required:
            raise OutputError(
                f"the scratch folder {self._scratch.place} is full; free disk space, raise "
                f"--scratch-limit or give another --scratch"
            )
        for number in range(block, end):
            start = (number - block) * BLOCK
            self._memory[number] = data[start : start + BLOCK]
        while len(self._memory) > _KEPT:
            del self._memory[next(iter(self._memory))]

    def _on_disk(self, block: int, data: bytes) -> bool:
        if not self._scratch.try_reserve(len(data)):
            return False
        try:
            self._file.seek(block * BLOCK)
            written = self._file.write(data)
        except OSError:  # full, whatever it said before
            written = 0
        if written != len(data):
            self._scratch.release(len(data))
            return False
        self.kept_bytes += len(data)
        return True

    def _length(self, block: int, end: int) -> int:
        return min(end * BLOCK, self.size) - block * BLOCK

    def close(self) -> None:
        """Give back what is kept; a second call does nothing."""
        with self._guard:
            self._file.close()
            self._scratch.release(self.kept_bytes)
            self.kept_bytes = 0
            self._memory.clear()


class RangeFile(io.RawIOBase):
    """A position in `Ranges`: what libraries take for a file that is open for reading.

    Attributes:
        failure: what a read failed with. Some libraries swallow it.
    """

    def __init__(self, ranges: Ranges) -> None:
        super().__init__()
        self._ranges, self._position = ranges, 0
        self.failure: OctreeNCAError | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, as in any file."""
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ranges.size}
        position = bases[whence] + offset
        if position < 0:
            raise OSError(errno.EINVAL, "a position before the file's begin")
        self._position = position
        return position

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        """Fill a buffer; the bytes read, fewer at the file's end only."""
        view = memoryview(buffer).cast("B")
        try:
            data = self._ranges.read(self._position, self._position + len(view))
        except OctreeNCAError as error:
            self.failure = error
            raise
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
