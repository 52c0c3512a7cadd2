"""All files that an image is read from, where its own name is one of several."""

import re
from collections.abc import Iterable
from pathlib import Path

from nnunet_octreenca.deferred_files import open_binary
from nnunet_octreenca.images.volume_checks import named_files

_INI = (".vms", ".vmu")  # Hamamatsu: an index that names its pictures
_LONGEST = 1 << 20  # bytes of an index


def all_files(paths: Iterable[Path]) -> list[Path]:
    """The files of a case, each with its companions."""
    return [file for path in paths for file in with_companions(path)]


def with_companions(path: Path) -> list[Path]:
    """An image and the files and folders that are read with it, those that exist.

    These are the voxels beside a MetaImage or NRRD header, the folder beside a `.mrxs` file, and
    the pictures that a `.vms` or `.vmu` file names.
    """
    ending = path.suffix.lower()
    beside: list[Path] = []
    if ending == ".mrxs":
        beside = [path.with_suffix("")]
    elif ending in _INI and path.is_file():
        with open_binary(path) as file:
            text = file.read(_LONGEST).decode("latin-1")
        names = re.findall(r"^\w[^=\n]*=(.+?)\s*$", text, re.MULTILINE)
        beside = [path.parent / name for name in sorted(set(names)) if Path(name).name == name]
    elif path.is_file():
        beside = named_files(path)
    return [path, *(file for file in beside if file.exists())]
