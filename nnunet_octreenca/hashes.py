"""SHA-256 of files, folders and label maps, by which a result is known again."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.deferred_files import open_binary, version

_CHUNK = 1 << 20
_CELLS = 1 << 24  # of a label map hashed at a time


def file_hash(path: Path | str) -> str:
    """Of a file's content, as `sha256sum` prints it."""
    with open_binary(Path(path)) as file:
        return blocks_hash(iter(lambda: file.read(_CHUNK), b""))


def blocks_hash(blocks: Iterable[bytes]) -> str:
    """Of a content that comes in blocks.

    >>> blocks_hash([b"one", b"two"]) == hashlib.sha256(b"onetwo").hexdigest()
    True
    """
    found = hashlib.sha256()
    for block in blocks:
        found.update(block)
    return found.hexdigest()


def content_hash(paths: Iterable[Path]) -> str:
    """Of files and folders: of a single file `file_hash`, else of all names and contents.

    The names are relative to the folder, or to that of the first file, so that copies elsewhere
    have the same hash.
    """
    paths = list(paths)
    if len(paths) == 1 and not paths[0].is_dir():
        return file_hash(paths[0])
    found = hashlib.sha256()
    for name, file in _all_files(paths):
        found.update(name + b"\0" + file_hash(file).encode() + b"\n")
    return found.hexdigest()


def stamp(paths: Iterable[Path]) -> str:
    """Of names, sizes and times of last change: quick, and another one after most changes."""
    found = hashlib.sha256()
    for name, file in _all_files(list(paths)):
        found.update(name + f"\0{version(file)}\n".encode())
    return found.hexdigest()


def labels_hash(labels: NDArray) -> str:
    """Of a label map's type, shape and values in the order of the axes, little-endian.

    >>> labels = np.array([[0, 1], [2, 0]], np.uint8)
    >>> labels_hash(labels) == hashlib.sha256(b"uint8 (2, 2)\\n" + labels.tobytes()).hexdigest()
    True
    """
    shape = tuple(map(int, labels.shape))
    found = hashlib.sha256(f"{labels.dtype.name} {shape}\n".encode())
    rows = max(1, _CELLS // max(1, int(np.prod(shape[1:]))))
    for first in range(0, shape[0], rows):
        band = labels[first : first + rows]
        found.update(np.ascontiguousarray(band, band.dtype.newbyteorder("<")).data)
    return found.hexdigest()


def _all_files(paths: list[Path]) -> list[tuple[bytes, Path]]:
    """Every file with its name relative to the only folder, or to the first file's, sorted."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            for folder, _, names in os.walk(path):
                files += [Path(folder, name) for name in names]
        else:
            files.append(path)
    alone = len(paths) == 1 and paths[0].is_dir()
    base = paths[0] if alone else paths[0].parent
    named = [
        (os.fsencode(os.path.relpath(file, base)).replace(b"\\", b"/"), file) for file in files
    ]
    return sorted(named)
