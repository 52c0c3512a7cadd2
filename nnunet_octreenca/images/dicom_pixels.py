"""The values of DICOM planes, each with its own type, bits, slope and intercept."""

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.dicom_file import frames_of, transfer_syntax
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.dicom_planes import Plane
from nnunet_octreenca.images.dicom_series import DicomStack
from nnunet_octreenca.images.header_checks import require_memory
from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from pydicom import Dataset

_GREY = ("MONOCHROME1", "MONOCHROME2", "")
# The images that ITK decodes for us carry neither slope nor table: grey words and bytes.
_WORDS, _BYTES = "1.2.840.10008.5.1.4.1.1.7.3", "1.2.840.10008.5.1.4.1.1.7.2"
_RUN_LENGTHS = "1.2.840.10008.1.2.5"
_INTEGERS = (np.uint8, np.int8, np.uint16, np.int16, np.int32)


def read_voxels(path: Path, stack: DicomStack) -> Pixels:
    """The voxels of a stack: (1, z, y, x), or (3, z, y, x) of colours.

    A value is stored x slope + intercept, computed in double precision and rounded once: integers
    in the smallest type that holds all of them, else float32. A modality table is applied.
    MONOCHROME1 says how an image is shown; its values stay as they are.

    Args:
        path: of the volume, for errors.
        stack: its planes.

    Raises:
        InputError: pixels are damaged or of a kind that cannot be read, or do not fit in memory.
    """
    first = stack.headers[stack.planes[0].file]
    grey = str(first.get("PhotometricInterpretation", "")) in _GREY
    grey = grey and int(first.get("SamplesPerPixel") or 1) == 1
    dtype = np.dtype(np.uint8) if not grey else np.dtype(_dtype(stack))
    shape = (1 if grey else 3, len(stack.planes), *stack.planes[0].shape)
    require_memory(path, int(np.prod(shape)) * dtype.itemsize)
    voxels = np.empty(shape, dtype)
    by_file: dict[Path, list[tuple[int, Plane]]] = {}
    for number, plane in enumerate(stack.planes):
        by_file.setdefault(plane.file, []).append((number, plane))
    for file, planes in by_file.items():
        try:
            dataset = _whole(file)
            frames = _stored(file, dataset) if grey else _colours(file, dataset)
            if not grey and frames.dtype != dtype:
                dtype = np.result_type(dtype, frames.dtype)
                voxels = voxels.astype(dtype)
            if grey and frames.dtype.kind == "f" and dtype.kind != "f":  # no header says so
                dtype = np.dtype(np.float32)
                voxels = voxels.astype(dtype)
            for number, plane in planes:
                frame = frames[plane.frame or 0]
                voxels[:, number] = _values(frame, plane, dataset, dtype)[None] if grey else frame
        except InputError:
            raise
        except Exception as error:  # a decoder can raise anything on damaged data
            said = str(error).strip().splitlines()
            raise InputError(
                f"the pixels of {file} cannot be decoded ({said[-1] if said else error!r}); the "
                f"file is damaged or compressed in a way that is not supported: decompress it, for "
                f"example with gdcmconv --raw"
            ) from error
    voxels.flags.writeable = False
    return voxels


def _whole(file: Path) -> "Dataset":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset: Dataset = import_optional("pydicom", "dicom").dcmread(file, force=True)
    return dataset


def _dtype(stack: DicomStack) -> DTypeLike:
    """The smallest type that holds every value that the planes can have."""
    least, greatest = 0.0, 0.0
    for plane in stack.planes:
        header = stack.headers[plane.file]
        slope, intercept = _rescale(plane)
        if "ModalityLUTSequence" in header or not (slope.is_integer() and intercept.is_integer()):
            return np.float32
        bits = int(header.get("BitsStored") or header.get("BitsAllocated") or 0)
        if not 0 < bits <= 32:  # of floats
            return np.float32
        signed = int(header.get("PixelRepresentation") or 0)
        stored = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
        ends = [slope * value + intercept for value in stored]
        least, greatest = min(least, *ends), max(greatest, *ends)
    for integer in _INTEGERS:
        if np.iinfo(integer).min <= least and greatest <= np.iinfo(integer).max:
            return integer
    return np.float32


def _rescale(plane: Plane) -> tuple[float, float]:
    return (
        1.0 if plane.slope is None else plane.slope,
        0.0 if plane.intercept is None else plane.intercept,
    )


def _values(stored: Pixels, plane: Plane, dataset: "Dataset", dtype: np.dtype) -> Pixels:
    if "ModalityLUTSequence" in dataset:
        pixels = import_optional("pydicom.pixels", "dicom")
        return np.asarray(pixels.apply_modality_lut(stored, dataset), dtype)
    slope, intercept = _rescale(plane)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
        if (slope, intercept) == (1.0, 0.0):
            return stored.astype(dtype, copy=False)
        return (stored.astype(np.float64) * slope + intercept).astype(dtype)


def _stored(file: Path, dataset: "Dataset") -> Pixels:
    """Stored values (frame, y, x), signed as the header says, without bits of anything else."""
    for keyword, kind in (("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")):
        if keyword in dataset:
            return _native(file, dataset, dataset[keyword].value, np.dtype(kind))
    if "PixelData" not in dataset:
        raise InputError(f"{file} has no pixels")
    allocated = int(dataset.BitsAllocated)
    if allocated not in (8, 16, 32):
        raise InputError(f"{file} has {allocated} bits a pixel; 8, 16 and 32 can be read")
    bits = int(dataset.get("BitsStored") or allocated)
    high = int(dataset.get("HighBit") or bits - 1)
    signed = bool(dataset.get("PixelRepresentation") or 0)
    if not 0 < bits <= high + 1 <= allocated:
        raise InputError(
            f"{file} says BitsAllocated {allocated}, BitsStored {bits}, HighBit {high}, which do "
            f"not go together; it is damaged"
        )
    if transfer_syntax(dataset).is_encapsulated:
        values = _decoded(dataset).astype(f"i{max(2, allocated // 8)}").astype(f"u{allocated // 8}")
        run_lengths = transfer_syntax(dataset) == _RUN_LENGTHS
        return _cut(values, bits, high if run_lengths else bits - 1, signed)
    words = _native(file, dataset, dataset.PixelData, np.dtype(f"u{allocated // 8}"))
    return _cut(words, bits, high, signed)


def _cut(words: Pixels, bits: int, high: int, signed: bool) -> Pixels:
    """The bits up to `high` of unsigned words, of which others may hold overlays or rubbish."""
    allocated = 8 * words.itemsize
    if bits < allocated:
        # To the top of the word, so that what is above falls off and the sign is where it belongs.
        words = words << np.array(allocated - 1 - high, words.dtype)
    if signed:
        words = words.view(np.dtype(f"i{words.itemsize}"))
    return words >> np.array(allocated - bits, words.dtype) if bits < allocated else words


def _native(file: Path, dataset: "Dataset", data: bytes, kind: np.dtype) -> Pixels:
    syntax = transfer_syntax(dataset)
    kind = kind.newbyteorder("<" if syntax.is_little_endian else ">")
    shape = (frames_of(dataset), int(dataset.Rows), int(dataset.Columns))
    count = int(np.prod(shape))
    if len(data) < count * kind.itemsize:
        raise InputError(
            f"{file} is truncated: it promises {count * kind.itemsize:,} bytes of pixels and "
            f"{len(data):,} are there"
        )
    pixels = np.frombuffer(data, kind, count).reshape(shape)
    return pixels.astype(kind.newbyteorder("="), copy=False)


def _decoded(dataset: "Dataset") -> Pixels:
    """Compressed values (frame, y, x), by pydicom's decoders or else by ITK's."""
    shape = (frames_of(dataset), int(dataset.Rows), int(dataset.Columns))
    syntax = transfer_syntax(dataset)
    try:
        decoder = import_optional("pydicom.pixels", "dicom").get_decoder(syntax)
        return np.asarray(decoder.as_array(dataset, raw=True)[0]).reshape(shape)
    except Exception:
        # GDCM ends the whole process on damaged run lengths, which pydicom always decodes itself.
        if syntax == _RUN_LENGTHS:
            raise
    return _decoded_by_itk(dataset).reshape(shape)


def _decoded_by_itk(dataset: "Dataset") -> Pixels:
    """From a copy without anything that ITK would apply: slopes, tables, kinds of images."""
    import SimpleITK as sitk

    pydicom = import_optional("pydicom", "dicom")
    copy = pydicom.Dataset()
    copy.file_meta = pydicom.dataset.FileMetaDataset()
    copy.file_meta.TransferSyntaxUID = transfer_syntax(dataset)
    copy.SOPClassUID = _WORDS if int(dataset.BitsAllocated) > 8 else _BYTES
    copy.SOPInstanceUID = copy.SeriesInstanceUID = copy.StudyInstanceUID = "2.25.1"
    for keyword in (
        "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
        "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames",
    ):  # fmt: skip
        if keyword in dataset:
            setattr(copy, keyword, dataset[keyword].value)
    copy.PhotometricInterpretation = "MONOCHROME2"
    copy.NumberOfFrames = frames_of(dataset)
    copy.PixelData = dataset.PixelData
    copy["PixelData"].is_undefined_length = True
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder) / "pixels.dcm"
        copy.save_as(name, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(name))
        return np.asarray(sitk.GetArrayFromImage(reader.Execute()))


def _colours(file: Path, dataset: "Dataset") -> Pixels:
    """RGB (frame, 3, y, x)."""
    pixels = import_optional("pydicom.pixels", "dicom")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = np.asarray(pixels.pixel_array(dataset))
    if str(dataset.PhotometricInterpretation) == "PALETTE COLOR":
        values = np.asarray(pixels.apply_color_lut(values, dataset))
    shape = (frames_of(dataset), int(dataset.Rows), int(dataset.Columns))
    if values.size != 3 * int(np.prod(shape)):
        raise InputError(
            f"{file} has {values.size // int(np.prod(shape))} values a pixel; grey and RGB images "
            f"can be read"
        )
    return np.moveaxis(values.reshape(*shape, 3), -1, 1)
