"""The files of a model, in a folder or in a zip file, read where they are."""

import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Protocol

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.hashes import blocks_hash
from nnunet_octreenca.planning.value_rules import DEVICE_NAME, short

GIBIBYTE = 1 << 30
# nnU-Net's largest models, five folds of its largest U-Net, are some 4 GiB.
USUAL_TOTAL = 10 * GIBIBYTE
# Packed by deflate, weights hardly shrink and JSON shrinks some 20 times; a bomb 1,000 times.
USUAL_RATIO = 100
RATIO_FROM = 100 << 20  # bytes in all; smaller files may shrink as they like
MOST_FILES = 100_000
_BLOCK = 1 << 20
# What nnUNetv2_export_model_to_zip writes below the data set's folder.
_LAYOUT = re.compile(
    r"""
    [^/]+__[^/]+__[^/]+/ (
        plans\.json | dataset\.json | dataset_fingerprint\.json
      | fold_(\d+|all)/ ( [^/]+\.pth | debug\.json | progress\.png | network_architecture\.pdf
                        | validation/[^/]+ )
      | crossval_results_folds_[^/]+/[^/]+
    )
  | ensembles/[^/]+/[^/]+
  | inference_information\.(json|txt)
    """,
    re.VERBOSE,
)


class ModelFiles(Protocol):
    """Files by their path from the top, with slashes."""

    @property
    def names(self) -> list[str]:
        """Of all files, sorted."""

    def size(self, name: str) -> int:
        """Of a file, in bytes."""

    def open(self, name: str) -> IO[bytes]:
        """A file to read from."""


class FolderFiles:
    """A folder's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def names(self) -> list[str]:
        """Of all files, sorted."""
        return sorted(
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file()
        )

    def size(self, name: str) -> int:
        """Of a file, in bytes."""
        return (self.folder / name).stat().st_size

    def open(self, name: str) -> IO[bytes]:
        """A file to read from."""
        return (self.folder / name).open("rb")


class ZipFiles:
    """The files of a zip file, whose names and sizes have been checked.

    Args:
        path: of the zip file.
        max_size: bytes that its files may take; None for `USUAL_TOTAL` and `USUAL_RATIO`.

    Raises:
        InputError: it is damaged, or holds what no exported model does: absolute paths, `..`,
            links, names of devices, the same name twice, or more bytes than allowed.
    """

    def __init__(self, path: Path, max_size: int | None = None) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
            raise InputError(
                f"{path} cannot be read as a zip file ({error}); copy it again, or export the "
                f"model again with nnUNetv2_export_model_to_zip"
            ) from error
        try:
            members = self._archive.infolist()
            for fault in archive_faults(members, path.stat().st_size, max_size):
                raise InputError(f"{path}: {fault}")
        except BaseException:
            self._archive.close()
            raise
        self._members = {member.filename: member for member in members if not member.is_dir()}

    def __enter__(self) -> "ZipFiles":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._archive.close()

    @property
    def names(self) -> list[str]:
        """Of all files, sorted."""
        return sorted(self._members)

    def size(self, name: str) -> int:
        """Of a file, unpacked, in bytes."""
        return self._members[name].file_size

    def open(self, name: str) -> IO[bytes]:
        """A file to read from; it ends where its size says, whatever is packed."""
        return self._archive.open(self._members[name])


def archive_faults(
    members: Iterable[zipfile.ZipInfo], archive_size: int, max_size: int | None
) -> Iterator[str]:
    """What is wrong with the names and sizes in a zip file, one sentence a fault.

    Args:
        members: of the zip file.
        archive_size: bytes of the zip file.
        max_size: as for `ZipFiles`.
    """
    members = list(members)
    if len(members) > MOST_FILES:
        yield f"it holds {len(members)} files; a model has fewer than {MOST_FILES}"
        return
    seen: dict[str, str] = {}
    for member in members:
        fault = _name_fault(member)
        if fault:
            yield f"it holds {short(member.orig_filename)}, {fault}; it was refused"
        # Systems that do not tell "A" from "a" would write the one over the other.
        same = unicodedata.normalize("NFC", member.filename).casefold()
        if same in seen:
            yield (
                f"it holds {short(seen[same])} and {short(member.filename)}, which are the same "
                f"file on some systems; it was refused"
            )
        seen[same] = member.filename
    yield from _size_faults(members, archive_size, max_size)


def _name_fault(member: zipfile.ZipInfo) -> str | None:
    name = member.orig_filename
    parts = name.rstrip("/").split("/")
    if "\\" in name:
        return "a name with backslashes"
    if re.search(r'[\x00-\x1f\x7f-\x9f:*?"<>|\ud800-\udfff]', name):
        return "a name with a drive letter or characters that no file may have everywhere"
    if name.startswith("/") or PurePosixPath(name).is_absolute():
        return "an absolute path"
    if ".." in parts:
        return "a path that leaves its folder"
    if any(part in ("", ".") or part != part.rstrip(" .") for part in parts):
        return "a name that is empty, or ends in a dot or space"
    if any(DEVICE_NAME.match(part) for part in parts):
        return "the name of a device on Windows"
    if any(len(part.encode()) > 255 for part in parts):
        return "a name of more than 255 bytes"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or a special file"
    if member.flag_bits & 0x1:
        return "which is encrypted"
    return None


def _size_faults(
    members: Iterable[zipfile.ZipInfo], archive_size: int, max_size: int | None
) -> Iterator[str]:
    total = sum(member.file_size for member in members)
    if total > (USUAL_TOTAL if max_size is None else max_size):
        yield (
            f"its files take {total:,} bytes, more than the {max_size or USUAL_TOTAL:,} allowed; "
            f"if you trust it, give --max_size {-(-total // GIBIBYTE)}G"
        )
    elif max_size is None and total > max(RATIO_FROM, USUAL_RATIO * archive_size):
        yield (
            f"its {archive_size:,} bytes unpack to {total:,}, {total // max(archive_size, 1)} "
            f"times as many, as no model does; if you trust it, give --max_size "
            f"{-(-total // GIBIBYTE)}G"
        )


def layout_faults(names: Sequence[str]) -> Iterator[str]:
    """What in a zip file is not where nnUNetv2_export_model_to_zip puts it, a sentence each.

    Args:
        names: of all files, with slashes.
    """
    datasets = sorted({name.split("/")[0] for name in names})
    if len(datasets) != 1 or not re.fullmatch(r"Dataset\d{3}_.+", datasets[0]):
        yield (
            f"it holds {short(datasets)} at the top, but an exported model holds one folder "
            f"DatasetXXX_NAME; export it with nnUNetv2_export_model_to_zip"
        )
        return
    for name in names:
        _, _, below = name.partition("/")
        if not _LAYOUT.fullmatch(below):
            yield (
                f"it holds {short(name)}, which nnUNetv2_export_model_to_zip does not write; it "
                f"was refused"
            )


def sha256(files: ModelFiles, name: str) -> str:
    """Checksum of a file, in hexadecimal.

    Raises:
        InputError: it is damaged within a zip file.
    """
    return blocks_hash(blocks(files, name))


def blocks(files: ModelFiles, name: str) -> Iterator[bytes]:
    """A file's content in blocks of 1 MiB.

    Raises:
        InputError: it is damaged within a zip file, or longer than it says.
    """
    left = files.size(name)
    try:
        with files.open(name) as file:
            while block := file.read(_BLOCK):
                left -= len(block)
                if left < 0:
                    raise InputError(f"{name} is longer than the zip file says; it was refused")
                yield block
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        raise InputError(f"{name} is damaged ({error}); copy the zip file again") from error
    except Exception as error:
        # zlib.error, lzma.LZMAError: classes of the packings
        if type(error).__module__ not in ("zlib", "_lzma", "lzma", "bz2"):
            raise
        raise InputError(f"{name} is damaged ({error}); copy the zip file again") from error
