"""Whether a volume's file holds what its header promises; ITK does not always ask.

ITK reads damaged compressed data of a MetaImage or NRRD as whatever comes out.
"""

import os
import re
import zlib
from pathlib import Path

from nnunet_octreenca.deferred_files import open_binary
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.header_checks import require_deflated

_CHUNK = 1 << 20
_HEADER = 1 << 20  # bytes within which a text header ends
_METAIMAGE_END = rb"ElementDataFile[^\n]*\n"
_NRRD_END = rb"\r?\n\r?\n"


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


def require_own_files(path: Path) -> None:
    """Refuse a header that names files outside of its own folder for its voxels.

    Whoever sends an image could else have any file of this machine read as voxels.

    Raises:
        InputError: it does, or it has no end.
    """
    folder = path.parent.absolute()
    for value in _named(path):
        if not Path(os.path.normpath(folder / value)).is_relative_to(os.path.normpath(folder)):
            raise InputError(
                f"{path} names {value} for its voxels, which is not in its own folder; put that "
                f"file beside the header and name it without a folder there"
            )


def named_files(path: Path) -> list[Path]:
    """The files that a MetaImage or NRRD header names for its voxels; of patterns all that fit."""
    found: list[Path] = []
    for value in _named(path):
        pattern, *numbers = value.split()
        if "%" in value and numbers:
            before, _, after = pattern.partition("%")
            names = re.compile(re.escape(before) + r"\d+" + re.escape(after.lstrip("0123456789d")))
            found += sorted(file for file in path.parent.iterdir() if names.fullmatch(file.name))
        elif not value.startswith("LIST"):
            found.append(path.parent / value)
    return found


def _named(path: Path) -> list[str]:
    """What a header says behind ElementDataFile or "data file", unless its voxels are in it."""
    name = path.name.lower()
    if name.endswith((".mha", ".mhd")):
        text, key = _text(path, _METAIMAGE_END), "ElementDataFile"
        # ITK takes either sign: a name that is overlooked would not be checked.
        named = re.findall(r"^[ \t]*ElementDataFile[ \t]*[=:][ \t]*(.*?)\s*$", text, re.MULTILINE)
        named = [value for value in named if value != "LOCAL"]
    elif name.endswith((".nrrd", ".nhdr")):
        text, key = _text(path, _NRRD_END), "data file"
        named = re.findall(r"(?im)^data ?file:[ \t]*(.*?)\s*$", text)
    else:
        return []
    if any(value.startswith("LIST") for value in named):  # in the lines that follow
        named += _lines_after(path, key)
    return named


def _lines_after(path: Path, key: str) -> list[str]:
    """The lines of a text file behind the one that begins with `key`."""
    with open_binary(path) as file:
        lines = file.read(_HEADER).decode("latin-1").splitlines()
    spelled = key.lower().replace(" ", "")
    keys = [line.lower().replace(" ", "").startswith(spelled) for line in lines]
    return [line.strip() for line in lines[keys.index(True) + 1 :] if line.strip()]


def _metaimage(path: Path, promised: int) -> None:
    text = _text(path, _METAIMAGE_END)
    fields = dict(re.findall(r"^[ \t]*(\w+)[ \t]*[=:][ \t]*(.*?)\s*$", text, re.MULTILINE))
    name = fields.get("ElementDataFile", "LIST")
    data, offset = (path, len(text)) if name == "LOCAL" else (path.parent / name, 0)
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
    text = _text(path, _NRRD_END)
    fields = {
        key.lower().replace(" ", ""): value
        for key, value in re.findall(r"^([\w ]+):\s*(.*?)\s*$", text, re.MULTILINE)
    }
    name = fields.get("datafile")
    skipped = {"lineskip", "byteskip"} & set(fields)
    if skipped or (name and (name.startswith("LIST") or "%" in name)):
        return
    data, offset = (path.parent / name, 0) if name else (path, len(text))
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
    with open_binary(path) as file:
        head = file.read(_HEADER)
    found = re.search(end, head)
    if found is None and len(head) == _HEADER:
        raise InputError(f"{path} has a header that does not end within {_HEADER:,} bytes")
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
