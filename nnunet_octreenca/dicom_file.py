"""DICOM files: which files are, what kind of object each is, and its header."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from nnunet_octreenca.deferred_files import open_binary
from nnunet_octreenca.errors import InputError, first_line
from nnunet_octreenca.libraries import import_optional

# SOP classes that have rows and columns and are no image of a patient: SEG, label map, dose.
_DERIVED = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",
    "1.2.840.10008.5.1.4.1.1.481.2": "RTDOSE",
}
_DIRECTORY = "1.2.840.10008.1.3.10"
_LONG = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN")  # which have 4 bytes for their length
_AFTER = 512  # bytes looked at behind the pixels
_VALUE_REPRESENTATIONS = (b"CS", b"UI", b"UL", b"SH", b"LO", b"DA", b"TM", b"OB", b"PN", b"ST")


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, or as those do that were saved without preamble."""
    try:
        with open_binary(path) as file:
            head = file.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or _begins_with_an_element(head)


def _begins_with_an_element(head: bytes) -> bool:
    """Whether the first bytes are a low element of group 2 or 8, in any of DICOM's encodings."""
    if len(head) < 16:
        return False
    for order in ("little", "big"):
        group, element = (int.from_bytes(head[at : at + 2], order) for at in (0, 2))
        if group in (2, 8) and element <= 0x0120:
            if head[4:6] in _VALUE_REPRESENTATIONS:
                return True
            length = int.from_bytes(head[4:8], order)
            # Implicit: an even, short length, and text, a UID or a group's length behind it.
            if 2 <= length <= 64 and length % 2 == 0:
                text = head[8 : 8 + length].rstrip(b"\0")
                return (element == 0 and length == 4) or all(32 <= byte < 127 for byte in text)
    return False


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, not of the folders in it; neither DICOMDIR nor hidden files."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file()
        and file.name.upper() != "DICOMDIR"
        and file.name[0] != "."
        and is_dicom(file)
    )


def not_dicom(folder: Path) -> list[Path]:
    """Files of a folder that are called DICOM and do not begin so: empty ones, cut ones."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in (".dcm", ".ima")
        and file.name[0] != "."
        and file.is_file()
        and not is_dicom(file)
    )


def read_header(path: Path | str) -> Any:
    """A file's elements up to its pixels, as a `pydicom.Dataset`; with or without preamble.

    Raises:
        InputError: it is no DICOM, or ends before its header or its pixels do.
        EnvironmentMismatchError: pydicom is not installed.
    """
    pydicom = import_optional("pydicom", "dicom")
    path = Path(path)
    try:
        with open_binary(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pydicom, on values that are none of ours
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            behind = _Behind.of(file, header)
            _require_known_types(header)
    except Exception as error:  # a damaged file can raise anything
        raise InputError(
            f"{path} cannot be read as DICOM ({first_line(error)}); it is truncated or damaged"
        ) from error
    sop_class = pydicom.uid.UID(str(header.get("SOPClassUID", "")))
    if "Rows" not in header and (not sop_class or "Image Storage" in sop_class.name):
        raise InputError(
            f"{path} cannot be read as DICOM (it ends before it says its size); it is truncated or "
            f"damaged"
        )
    try:
        if kind_of_header(header) == "image":
            _require_pixels(path, header, behind)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(
            f"{path} cannot be read as DICOM (its header says what cannot be: "
            f"{first_line(error)}); it is damaged"
        ) from error
    return header


def kind_of_header(header: Any) -> str:
    """ "image", or what else the file is: SEG, RTSTRUCT, SR, PR, DICOMDIR, ..."""
    sop_class = str(header.get("SOPClassUID", ""))
    if sop_class in _DERIVED:
        return _DERIVED[sop_class]
    if sop_class == _DIRECTORY or "DirectoryRecordSequence" in header:
        return "DICOMDIR"
    if "Rows" in header and "Columns" in header:
        return "image"
    return str(header.get("Modality", "")) or "object without pixels"


def transfer_syntax(header: Any) -> Any:
    """How the pixels are stored; implicit little endian where nothing is said."""
    uid = import_optional("pydicom.uid", "dicom")
    meta = getattr(header, "file_meta", None)
    given = meta.get("TransferSyntaxUID") if meta is not None else None
    if given:
        return uid.UID(str(given))
    implicit, little = header.original_encoding
    if little is False:
        return uid.ExplicitVRBigEndian
    return uid.ImplicitVRLittleEndian if implicit is not False else uid.ExplicitVRLittleEndian


def frames_of(header: Any) -> int:
    """Frames of an image, 1 where nothing is said."""
    return max(1, int(header.get("NumberOfFrames") or 1))


def _require_known_types(header: Any) -> None:
    """Have elements of the standard read, which pydicom does when they are asked for.

    Raises:
        NotImplementedError: one is of a type that DICOM does not have.
    """
    for tag in list(header.keys()):
        if not tag.is_private:
            try:
                header[tag]
            except (ValueError, TypeError, ArithmeticError, AttributeError):
                continue  # a value that may be none of ours


@dataclass(frozen=True)
class _Behind:
    """What lies behind a header: the element of the pixels, and what comes after it.

    Attributes:
        length: of the pixels as the element says, in bytes; None where it leaves that open, or
            where there is no such element.
        stored: bytes from the pixels' begin to the file's end.
        after: the first bytes after the pixels.
        little: the byte order is little endian.
    """

    length: int | None
    stored: int
    after: bytes
    little: bool

    @classmethod
    def of(cls, file: IO[bytes], header: Any) -> "_Behind":
        """Of a file that stands where its header ends."""
        syntax = transfer_syntax(header)
        order: Literal["little", "big"] = "little" if syntax.is_little_endian else "big"
        begin = file.tell()
        size = file.seek(0, os.SEEK_END)
        file.seek(begin)
        head = file.read(12)
        if len(head) < 8 or getattr(syntax, "is_deflated", False):
            return cls(None, 0, b"", order == "little")
        long = not syntax.is_implicit_VR and head[4:6] in _LONG
        at, width = (8, 4) if long else (4, 4) if syntax.is_implicit_VR else (6, 2)
        length = int.from_bytes(head[at : at + width], order)
        begin += at + width
        open_ended = length == 0xFFFFFFFF
        file.seek(min(size, begin + (0 if open_ended else length)))
        after = b"" if open_ended else file.read(_AFTER)
        return cls(None if open_ended else length, size - begin, after, order == "little")

    def begins_an_element(self) -> bool:
        """Whether elements may follow: one behind the pixels in DICOM's order, or zeros."""
        if not self.after.strip(b"\0"):
            return True
        group = int.from_bytes(self.after[:2], "little" if self.little else "big")
        return len(self.after) >= 8 and group in (0x7FE0, 0xFFFA, 0xFFFC)


def _require_pixels(path: Path, header: Any, behind: _Behind) -> None:
    """Refuse native pixels that do not fill rows and columns, or are more than these."""
    rows, columns = int(header.Rows), int(header.Columns)
    if rows < 1 or columns < 1:
        raise InputError(f"{path} has {rows} Rows and {columns} Columns; it is damaged")
    syntax = transfer_syntax(header)
    if syntax.is_compressed or getattr(syntax, "is_deflated", False):
        return
    bits = int(header.get("BitsAllocated") or 8)
    values = rows * columns * int(header.get("SamplesPerPixel") or 1)
    promised = frames_of(header) * values * bits // 8
    if str(header.get("PhotometricInterpretation", "")) == "YBR_FULL_422":
        promised = promised * 2 // 3
    found = min(behind.stored, behind.stored if behind.length is None else behind.length)
    if found < promised:
        raise InputError(
            f"{path} cannot be read as DICOM (it promises {promised:,} bytes of pixels and "
            f"{max(found, 0):,} are there); it is truncated or damaged"
        )
    # Some writers append a few bytes for nothing.
    row = columns * bits // 8
    if behind.length is not None and bits % 8 == 0 and found - promised >= max(2, row):
        raise InputError(
            f"{path} cannot be read as DICOM (its {rows} Rows of {columns} Columns take "
            f"{promised:,} bytes and {found:,} are there); its header is damaged"
        )
    if behind.length is not None and not behind.begins_an_element():
        raise InputError(
            f"{path} cannot be read as DICOM (something else than elements follows its pixels); "
            f"it is damaged"
        )
