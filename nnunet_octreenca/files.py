"""Writing files atomically, and reading JSON."""

import codecs
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from nnunet_octreenca.errors import InputError, OutputError

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object; whoever reads a value of it checks its type."""

JsonMapping: TypeAlias = Mapping[str, Any]
"""A JSON object that is only read."""

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9]+\.(?P<what>tmp|old)(\.[a-z.]+)?", re.DOTALL)

MAX_NESTING = 500  # of JSON; coordinates of regions are some ten deep
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')  # and strings, whose brackets do not count
MAX_JSON = 1 << 28  # bytes; the largest that nnU-Net writes, of many cases, are a few MiB


def temporary_name(path: Path, what: str = "tmp", writer: int | str | None = None) -> Path:
    """Name of what is put in the place of `path` when it is whole, or was there before.

    Args:
        path: the name to be taken.
        what: "tmp" for what is being written, "old" for what is being replaced.
        writer: digits that no other writer has; this process' number if left out.

    >>> temporary_name(Path("results/case.png"), writer=12).name
    '.case.png.12.tmp'
    """
    return path.with_name(f".{path.name}.{os.getpid() if writer is None else writer}.{what}")


def parse_temporary(path: Path) -> tuple[Path, str] | None:
    """The `path` and the `what` that a `temporary_name` was made of; None for any other name.

    A library may have added an ending of its own.

    >>> parse_temporary(Path("results/.case.png.12.tmp"))
    (PosixPath('results/case.png'), 'tmp')
    """
    match = _TEMPORARY.fullmatch(path.name)
    return None if match is None else (path.with_name(match["name"]), match["what"])


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Give a name to write to; rename it to `path` when all went well, else remove it.

    The rename is atomic, so that a kill at any moment leaves the old file or the new one.

    Raises:
        OutputError: `path` is a device, a pipe or a folder; as root, the rename would put a file in
            the place of /dev/null.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OutputError(
            f"{path} is no file that a result could take the place of; give another name"
        )
    temporary = temporary_name(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_result(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error})") from error


def remove_leftovers(folder: Path | str, name: str | None = None) -> None:
    """Remove what killed processes left of `atomic_write`; nobody may be writing to the folder.

    Args:
        folder: which need not exist.
        name: of the only file whose leftovers go; None for all.
    """
    for path in Path(folder).glob(".*.tmp"):
        found = parse_temporary(path)
        if found is not None and name in (None, found[0].name):
            path.unlink(missing_ok=True)


def pairing_name(path: Path) -> str:
    """The name by which an image and its mask find each other: no ending, Unicode composed (NFC).

    macOS stores "ä" as two characters, other systems mostly as one.

    >>> pairing_name(Path("ba\u0308r 3.1.ome.tif")) == pairing_name(Path("b\u00e4r 3.1.png"))
    True
    """
    name = unicodedata.normalize("NFC", path.stem)
    return name[:-4] if name.lower().endswith(".ome") else name


def require_utf8(path: Path | str) -> None:
    """Refuse a path that ITK cannot take: it ends the process at one that is not UTF-8.

    Raises:
        InputError: a byte of the path is none of UTF-8.

    >>> require_utf8("b\u00e4r.nrrd")
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{os.fsencode(path)!r} is not a name in UTF-8, which this format's library cannot "
            f"open; rename the file or its folder"
        ) from error


def write_json(path: Path | str, content: object) -> None:
    """Write JSON as nnU-Net does (indented by 4, keys in their order), whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def read_json(path: Path | str, otherwise: str) -> JsonObject:
    """Read a JSON object in UTF-8, or in UTF-16 with a byte order mark.

    Args:
        path: the file.
        otherwise: what to do if it is not there or no JSON; ends the error's sentence.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_JSON:
            raise InputError(f"{path} is larger than {MAX_JSON >> 20} MiB; {otherwise}")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; {otherwise}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); {otherwise}") from error
    return parse_json(data, path, otherwise)


def load_json(text: str) -> Any:
    """`json.loads` of what somebody else wrote.

    Python's parser calls itself for every bracket. Where a library has raised the limit of such
    calls, thousands of them end the process instead of an error.

    Raises:
        ValueError: no JSON, or brackets are nested too deeply.

    >>> load_json('{"a": [1, 2]}')
    {'a': [1, 2]}
    """
    depth = 0
    for bracket in _BRACKETS.finditer(text):
        if bracket[0] in "[{":
            depth += 1
        elif bracket[0] in "]}":
            depth -= 1
        if depth > MAX_NESTING:
            raise ValueError(f"nested too deeply: more than {MAX_NESTING} brackets")
    return json.loads(text)


def parse_json(data: bytes, name: Path | str, otherwise: str) -> dict[str, Any]:
    """`read_json` of a file's content.

    Args:
        data: the content.
        name: of the file, for errors.
        otherwise: as for `read_json`.

    Raises:
        InputError: it is damaged, or no JSON object.
    """
    try:
        # Editors of Windows put byte order marks in front.
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        content = load_json(data.decode("utf-16" if utf16 else "utf-8-sig"))
    except ValueError as error:  # no text, no JSON, or a number of thousands of digits
        raise InputError(f"{name} cannot be read ({error}); {otherwise}") from error
    if not isinstance(content, dict):
        raise InputError(f"{name} does not hold a JSON object; {otherwise}")
    return content
