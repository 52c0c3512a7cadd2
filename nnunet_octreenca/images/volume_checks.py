"""Whether a volume's file holds what its header promises; ITK does not always ask.

ITK reads damaged compressed data of a MetaImage or NRRD as whatever comes out.
"""

import re
import zlib
from pathlib import Path

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.header_checks import require_deflated

_CHUNK = 1 << 20
_HEADER = 1 << 16  # bytes within which a text header ends


def require_whole(path: Path, promised: int) -> None:
    """Compare a file with its header, before and without allocating the volume.

    Args:
        path: the file.
        promised: bytes of all voxels in the type that ITK reads them as.

    Raises:
        InputError: the file is truncated, its compressed data are damaged, there are more data
            than the header says, or it promises what no file of this size can hold.
    """
    name = path.name.lower()
    if name.endswith((".mha", ".mhd")):
        _metaimage(path, promised)
    elif name.endswith((".nrrd", ".nhdr")):
        _nrrd(path, promised)


def _metaimage(path: Path, promised: int) -> None:
    text = _text(path, rb"ElementDataFile[^\n]*\n")
    fields = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    name = fields.get("ElementDataFile", "LIST")
    data, offset = (path, len(text)) if name == "LOCAL" else (path.with_name(name), 0)
    skipped = fields.get("HeaderSize", "0")
    if name.startswith("LIST") or "%" in name or skipped != "0":  # a file a plane, or behind more
        return
    _require_there(path, data)
    stored = data.stat().st_size - offset
    if fields.get("CompressedData", "False") != "True":
        _require_bytes(data, promised, stored)
        return
    require_deflated(data, promised, stored)
    _require_bytes(data, promised, _inflated(data, offset))


def _nrrd(path: Path, promised: int) -> None:
    text = _text(path, rb"\r?\n\r?\n")
    fields = {
        key.lower().replace(" ", ""): value
        for key, value in re.findall(r"^([\w ]+):\s*(.*?)\s*$", text, re.MULTILINE)
    }
    name = fields.get("datafile")
    skipped = {"lineskip", "byteskip"} & set(fields)
    if skipped or (name and (name.startswith("LIST") or "%" in name)):
        return
    data, offset = (path.with_name(name), 0) if name else (path, len(text))
    _require_there(path, data)
    stored = data.stat().st_size - offset
    encoding = fields.get("encoding", "raw").lower()
    if encoding == "raw":
        _require_bytes(data, promised, stored)
    elif encoding in ("gzip", "gz"):
        require_deflated(data, promised, stored)
        _require_bytes(data, promised, _inflated(data, offset))


def _inflated(path: Path, offset: int) -> int:
    """Bytes that the deflated data of a file come to; their checksum is compared on the way."""
    found, stream = 0, zlib.decompressobj(wbits=47)  # a header of zlib or of gzip
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while not stream.eof and (chunk := stream.unconsumed_tail or file.read(_CHUNK)):
                found += len(stream.decompress(chunk, _CHUNK))
        found += len(stream.flush())
    except zlib.error as error:
        raise InputError(f"{path} cannot be decompressed ({error}); it is damaged") from error
    if not stream.eof:  # where the checksum is
        raise InputError(
            f"{path} is truncated: its compressed data end after {found:,} bytes, without their "
            f"checksum"
        )
    return found


def _text(path: Path, end: bytes) -> str:
    """A file's text header up to and with what matches `end`; one character a byte."""
    with path.open("rb") as file:
        head = file.read(_HEADER)
    found = re.search(end, head)
    return head[: found.end() if found else len(head)].decode("latin-1")


def _require_there(path: Path, data: Path) -> None:
    if not data.is_file():
        raise InputError(f"{path} names {data.name} for its voxels, which does not exist")


def _require_bytes(path: Path, promised: int, found: int) -> None:
    if found < promised:
        raise InputError(
            f"{path} is truncated: its header promises {promised:,} bytes and {found:,} are there"
        )
    if found > promised:
        raise InputError(
            f"{path} does not fit its header, which promises {promised:,} bytes of voxels while "
            f"{found:,} are there; correct the sizes in the header"
        )
