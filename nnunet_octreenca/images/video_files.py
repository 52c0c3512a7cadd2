"""Is a video file whole? What its container says of its own length, which FFmpeg does not check."""

import zlib
from collections.abc import Callable
from os import SEEK_END
from pathlib import Path
from typing import IO, TYPE_CHECKING

from nnunet_octreenca.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Matroska (RFC 9559): elements that hold the blocks, and the blocks themselves.
_SEGMENT, _CLUSTER, _BLOCK_GROUP, _SIMPLE_BLOCK, _BLOCK = 0x18538067, 0x1F43B675, 0xA0, 0xA3, 0xA1
_CHECKSUM = b"\xbf\x84"  # an element of 4 bytes
_SUMMED = {
    0x114D9B74: "index of parts", 0x1549A966: "general information", 0x1654AE6B: "tracks",
    0x1C53BB6B: "cues", _CLUSTER: "frames", 0x1254C367: "tags", 0x1941A469: "attachments",
    0x1043A770: "chapters",
}  # fmt: skip
# ASF: the object that holds the file's size behind its own header and the file's name.
_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def require_whole(path: Path, container: "InputContainer", stream: "VideoStream") -> None:
    """Refuse a file that is shorter than its container says, or broken between two frames.

    Args:
        path: the file.
        container: PyAV's, open.
        stream: of `container`, the video that is read.

    Raises:
        InputError: it is truncated or damaged; the sentence names the frame where that is known.
    """
    name = container.format.name
    with path.open("rb") as file:
        size = file.seek(0, SEEK_END)
        if "matroska" in name:
            _require_matroska(path, file, size, stream.id)
        elif "mp4" in name:
            _require_index(path, size, stream)
        elif "asf" in name:
            _require_asf(path, file, size)


def _require_index(path: Path, size: int, stream: "VideoStream") -> None:
    """MP4 and QuickTime: every frame of the index lies within the file."""
    for number, entry in enumerate(getattr(stream, "index_entries", ())):  # PyAV 17 and later
        if entry.pos + entry.size > size:
            raise InputError(
                f"{path} is truncated: frame {number} in decoding order lies beyond its end"
            )


def _require_asf(path: Path, file: IO[bytes], size: int) -> None:
    file.seek(0)
    header = file.read(1 << 16)
    place = header.find(_FILE_PROPERTIES)
    promised = int.from_bytes(header[place + 40 : place + 48], "little") if place >= 0 else 0
    if promised > size:
        raise InputError(f"{path} is truncated: it has {size} of {promised} bytes")


def _require_matroska(path: Path, file: IO[bytes], size: int, track: int) -> None:
    """Walk over all elements: one follows the other up to the end of the file."""
    frames = 0

    def count(element: int, length: int | None, data: Callable[[int], bytes]) -> None:
        nonlocal frames
        if element in (_SIMPLE_BLOCK, _BLOCK):
            number, _ = _number(data(8))
            frames += number == track

    position = _first_fault(file, size, count)
    if position is not None:
        raise InputError(
            f"{path} is truncated or damaged after {frames} frames (frame {frames}), at byte "
            f"{position} of {size}"
        )


def require_checksums(path: Path, container: "InputContainer") -> None:
    """Compare the checksums of a Matroska file, where it has some: FFmpeg goes on if they differ.

    To be called when all frames could be decoded: a decoder's complaint names the frame.

    Args:
        path: the file.
        container: PyAV's, open.

    Raises:
        InputError: a checksum differs.
    """
    if "matroska" not in container.format.name:
        return

    def compare(element: int, length: int | None, data: Callable[[int], bytes]) -> None:
        if element not in _SUMMED or length is None or data(2) != _CHECKSUM:
            return
        content = data(length)
        if zlib.crc32(content[6:]) != int.from_bytes(content[2:6], "little"):
            raise InputError(
                f"{path} is damaged: the checksum of its {_SUMMED[element]} differs; copy it again"
            )

    with path.open("rb") as file:
        _first_fault(file, file.seek(0, SEEK_END), compare)


def _first_fault(
    file: IO[bytes], size: int, tell: Callable[[int, int | None, Callable[[int], bytes]], None]
) -> int | None:
    """Walk over elements: the position of the first that cannot be, or lies beyond the end."""
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(16)
        element, width = _number(head, keep_marker=True)
        length, more = _number(head[width:]) if width else (0, 0)
        if not width or width > 4 or not more:
            return position
        begin = position + width + more
        open_ended = length == (1 << 7 * more) - 1
        inside = element in (_SEGMENT, _CLUSTER, _BLOCK_GROUP)
        if (open_ended and not inside) or (not open_ended and begin + length > size):
            return position

        def data(count: int, begin: int = begin) -> bytes:
            file.seek(begin)
            return file.read(count)

        tell(element, None if open_ended else length, data)
        position = begin if inside else begin + length
    return None


def _number(data: bytes, *, keep_marker: bool = False) -> tuple[int, int]:
    """A number of variable length (RFC 8794) and its bytes; (0, 0) where there is none."""
    if not data or data[0] == 0:
        return 0, 0
    width = 9 - data[0].bit_length()
    if len(data) < width:
        return 0, 0
    value = int.from_bytes(data[:width], "big")
    return (value if keep_marker else value & ((1 << 7 * width) - 1)), width
