"""What a file is by its first bytes, for errors that say why it cannot be read."""

import gzip
import zlib
from pathlib import Path

_GIT = b"version https://git-lfs"
_MAGIC = (
    (_GIT, "a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"),
    (b"\x1f\x8b", "gzip"),
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"PK\x03\x04", "a ZIP archive; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"BZh", "bzip2; unpack it"),
    (b"\xfd7zXZ", "xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstd; unpack it"),
    (b"%PDF", "PDF"),
    (b"NRRD", "NRRD"),
    (b"ObjectType", "MetaImage"),
    (b"NDims", "MetaImage"),
    (b"\x89HDF", "HDF5 (as MINC, ITK and MATLAB write)"),
    (b"CDF", "NetCDF (as MINC 1 is)"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"MATLAB 5.0", "MATLAB's"),
)


def content_of(path: Path) -> str | None:
    """What a file's first bytes say that it is; None where they say nothing.

    Args:
        path: of the file; not read beyond its first kilobyte.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError:
        return None
    return content_of_bytes(head)


def content_of_bytes(head: bytes) -> str | None:
    """The same of the first kilobyte.

    >>> content_of_bytes(b"NRRD0004"), content_of_bytes(b"")
    ('NRRD', 'an empty file')
    """
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "zeros only; copy it again"
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:7] in (b"n+2", b"ni2"):
        return "NIfTI"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return _unzipped(head) if kind == "gzip" else kind
    text = head.lstrip()[:200].lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page (perhaps the error of a download); download the file again"
    if b"/annex/objects/" in head[:400] and len(head) < 1024:
        return "a pointer of git-annex, not the file itself; fetch it with `git annex get`"
    return None


def _unzipped(head: bytes) -> str:
    try:
        inside = content_of_bytes(zlib.decompressobj(wbits=31).decompress(head))
    except (zlib.error, gzip.BadGzipFile):
        inside = None
    return "gzip" + (f" around {inside}" if inside and inside != "an empty file" else "")
