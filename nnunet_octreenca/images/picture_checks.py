"""Is a PNG whole? Its checksums, of which Pillow compares those of the pixels to nothing."""

import struct
import zlib
from pathlib import Path

from nnunet_octreenca.errors import InputError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_READ = 1 << 20


def require_whole_png(path: Path) -> None:
    """Compare the checksums of all chunks up to the one that ends the file (PNG, section 5).

    A file that does not begin as PNG does is left to its reader.

    Raises:
        InputError: the file ends before its end chunk, or a chunk is damaged.
    """
    with path.open("rb") as file:
        if file.read(8) != _SIGNATURE:
            return
        while True:
            begin = file.tell()
            head = file.read(8)
            if len(head) < 8:
                raise _truncated(path, begin)
            length, kind = struct.unpack(">I4s", head)
            checksum, left = zlib.crc32(kind), length
            while left and (data := file.read(min(left, _READ))):
                checksum, left = zlib.crc32(data, checksum), left - len(data)
            stored = file.read(4)
            if left or len(stored) < 4:
                raise _truncated(path, begin)
            if int.from_bytes(stored, "big") != checksum:
                raise InputError(
                    f"{path} cannot be decoded (the checksum of its chunk {kind.decode('latin-1')} "
                    f"at byte {begin:,} differs); it is damaged: copy it again, or replace it"
                )
            if kind == b"IEND":
                return


def _truncated(path: Path, begin: int) -> InputError:
    return InputError(
        f"{path} cannot be decoded (its chunk at byte {begin:,} is not whole); it is truncated"
    )
