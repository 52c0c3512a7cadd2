"""Small sound files of every format that is read, and forty-odd ways to damage each.

Used by damaged_inputs.py. A format says where its header and its data lie and which of both
nothing protects (no checksum, no length told twice); a damage changes bytes there.
"""

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from random import Random

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from numpy.typing import NDArray
from PIL import Image

ROWS, COLUMNS, PLANES = 80, 96, 6
VOLUME = (10, 18, 20)


@dataclass(frozen=True)
class Part:
    """Bytes `first` to `end - 1` of a file."""

    file: Path
    first: int
    end: int


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: for the table.
        ending: of the file or folder.
        model: "flat" (RGB pictures) or "deep" (volumes of one channel).
        write: makes a sound file; its pixels depend on the number.
        parts: where header and data lie.
        resize: multiplies an axis (0: x, 1: y, 2: z) in the header, as (file, axis, factor).
        unprotected: what the format has no checksum or second length for, and why: "header",
            "data", "shift" (bytes too many or too few within the data), "size" (an axis in the
            header), "files" (of a folder).
        more: damages of this format only.
    """

    name: str
    ending: str
    model: str
    write: Callable[[Path, int], None]
    parts: Callable[[Path], tuple[Part, Part]]
    resize: Callable[[Path, int, float], None]
    unprotected: dict[str, str]
    more: "tuple[Damage, ...]" = ()


@dataclass(frozen=True)
class Damage:
    """A change of a sound file.

    Attributes:
        name: for the table.
        what: which of `Format.unprotected` it falls under; "" for what every reader must see.
        change: damages the file in place.
    """

    name: str
    what: str
    change: Callable[[Format, Path, Random], None] = field(repr=False)


# --- pixels ---


def picture(number: int, rows: int = ROWS, columns: int = COLUMNS) -> NDArray[np.uint8]:
    """Smooth colours with some noise (y, x, 3)."""
    y, x = np.mgrid[:rows, :columns]
    waves = [127 + 90 * np.sin(y / (5 + 3 * c) + x / (11 - 2 * c) + number) for c in range(3)]
    noise = np.random.default_rng(number).integers(-20, 21, (rows, columns, 3))
    return np.clip(np.stack(waves, -1) + noise, 1, 255).astype(np.uint8)


def volume(number: int) -> NDArray[np.int16]:
    """Smooth values with some noise (z, y, x)."""
    z, y, x = np.mgrid[: VOLUME[0], : VOLUME[1], : VOLUME[2]]
    waves = 400 * np.sin(z / 3 + y / 5 + number) * np.cos(x / 4)
    noise = np.random.default_rng(number).integers(-60, 61, VOLUME)
    return (waves + noise + 500).astype(np.int16)


# --- formats ---


def _picture(path: Path, number: int) -> None:
    options = {"quality": 92} if path.suffix == ".jpg" else {}
    Image.fromarray(picture(number)).save(path, **options)


def _png_parts(path: Path) -> tuple[Part, Part]:
    data = path.read_bytes()
    first = data.index(b"IDAT") + 4
    return Part(path, 8, first - 8), Part(path, first, data.rindex(b"IEND") - 8)


def _jpeg_parts(path: Path) -> tuple[Part, Part]:
    data = path.read_bytes()
    scan = data.index(b"\xff\xda")
    first = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    return Part(path, 2, first), Part(path, first, len(data) - 2)


def _tiff(path: Path, number: int) -> None:
    tifffile.imwrite(path, picture(number), photometric="rgb", metadata=None, rowsperstrip=16)


def _pyramid(path: Path, number: int) -> None:
    pixels = picture(number)
    options = {"photometric": "rgb", "tile": (32, 32), "metadata": None, "compression": "deflate"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, subifds=1, **options)
        writer.write(pixels[::2, ::2], subfiletype=1, **options)


def _svs(path: Path, number: int) -> None:
    pixels = picture(number, 96, 128)
    options = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
    text = (
        "Aperio Image Library v11\n128x96 [0,0 128x96] (32x32) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"
    )
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, tile=(32, 32), description=text, **options)
        writer.write(pixels[::4, ::4], rowsperstrip=24, description=text, **options)
        writer.write(pixels[::2, ::2], tile=(32, 32), description=text, **options)


def _tiff_parts(path: Path) -> tuple[Part, Part]:
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        first = min(page.dataoffsets)
        end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)))
    return Part(path, 4, first), Part(path, first, end)


def _zarr(path: Path, number: int) -> None:
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    group = zarr.open_group(path, mode="w", zarr_format=3)
    axes = [{"name": name, "type": "space"} for name in "cyx"]
    levels = [np.moveaxis(picture(number), -1, 0)[:, ::step, ::step] for step in (1, 2)]
    for name, pixels in enumerate(levels):
        array = group.create_array(
            str(name),
            shape=pixels.shape,
            chunks=(3, 32, 96),
            dtype="u1",
            compressors=[ZstdCodec(), Crc32cCodec()],
        )
        array[:] = pixels
    datasets = [{"path": str(name)} for name in range(2)]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}


def _zarr_parts(path: Path) -> tuple[Part, Part]:
    header, chunk = path / "0" / "zarr.json", path / "0" / "c" / "0" / "1" / "0"
    return Part(header, 0, header.stat().st_size), Part(chunk, 0, chunk.stat().st_size)


def _nifti(path: Path, number: int) -> None:
    image = nibabel.Nifti1Image(volume(number).T, np.diag([1, 1, 1, 1.0]))
    data = image.to_bytes()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _nifti_parts(path: Path) -> tuple[Part, Part]:
    size = path.stat().st_size
    if path.suffix == ".gz":
        return Part(path, 2, 40), Part(path, 40, size)
    return Part(path, 4, 348), Part(path, 352, size)


def _by_itk(path: Path, number: int) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(volume(number)), str(path), path.suffix == ".nrrd")


def _text_parts(path: Path) -> tuple[Part, Part]:
    data = path.read_bytes()
    if path.suffix == ".nrrd":
        first = data.index(b"\n\n") + 2
    else:
        first = data.index(b"ElementDataFile = LOCAL\n") + len(b"ElementDataFile = LOCAL\n")
    return Part(path, 4, first), Part(path, first, len(data))


def _dicom(path: Path, number: int) -> None:
    import pydicom
    from pydicom.dataset import FileMetaDataset

    path.mkdir()
    for at, plane in enumerate(volume(number)):
        header = pydicom.Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        header.SOPClassUID = pydicom.uid.CTImageStorage
        header.SOPInstanceUID = f"2.25.1.{number}.{at + 1}"
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        header.Modality, header.PatientID = "CT", "P1"
        header.StudyInstanceUID = header.FrameOfReferenceUID = f"2.25.2.{number}"
        header.SeriesInstanceUID = f"2.25.3.{number}"
        header.SliceThickness, header.InstanceNumber = 1, at + 1
        header.ImagePositionPatient = [0, 0, at]
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.PixelSpacing = [1, 1]
        header.Rows, header.Columns = plane.shape
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
        header.PixelRepresentation = 1
        header.RescaleSlope, header.RescaleIntercept = 1, 0
        header.PixelData = plane.tobytes()
        header["PixelData"].VR = "OW"
        header.save_as(path / f"{at:02d}.dcm", enforce_file_format=True)


def _dicom_parts(path: Path) -> tuple[Part, Part]:
    file = path / "03.dcm"
    data = file.read_bytes()
    first = data.index(b"\xe0\x7f\x10\x00OW") + 12
    return Part(file, 128, first), Part(file, first, len(data))


def _video(path: Path, number: int) -> None:
    import av

    codec, pixels = ("ffv1", "yuv444p") if path.suffix == ".mkv" else ("libx264", "yuv420p")
    with av.open(str(path), "w") as file:
        options = {"level": "3", "slicecrc": "1"} if codec == "ffv1" else {}
        stream = file.add_stream(codec, rate=Fraction(25), options=options)
        stream.height, stream.width, stream.pix_fmt = ROWS, COLUMNS, pixels
        stream.codec_context.thread_count = 1  # x264's bytes depend on when its threads run
        for frame in range(PLANES):
            pixels = np.roll(picture(number), 3 * frame, 1)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())


def _mp4_parts(path: Path) -> tuple[Part, Part]:
    data = path.read_bytes()
    media, index = data.index(b"mdat"), data.index(b"moov")
    return Part(path, index - 4, len(data)), Part(path, media + 4, index - 4)


def _mkv_parts(path: Path) -> tuple[Part, Part]:
    data = path.read_bytes()
    first = data.index(b"\x1f\x43\xb6\x75")
    return Part(path, 4, first), Part(path, first, len(data))


# --- an axis in the header ---


def _number(at: Callable[[Path, int], int], kind: str) -> Callable[[Path, int, float], None]:
    """A binary number: `at` finds it in a file, by the axis."""

    def resize(path: Path, axis: int, factor: float) -> None:
        data = bytearray(path.read_bytes())
        place = at(path, axis)
        (old,) = struct.unpack_from(kind, data, place)
        largest = (1 << 8 * struct.calcsize(kind)) - 1
        struct.pack_into(kind, data, place, min(int(old * factor), largest))
        path.write_bytes(data)

    return resize


def _jpeg_axis(path: Path, axis: int) -> int:
    return path.read_bytes().index(b"\xff\xc0") + (7, 5)[axis]


def _tiff_axis(path: Path, axis: int) -> int:
    with tifffile.TiffFile(path) as file:
        return int(file.pages[0].tags[("ImageWidth", "ImageLength")[axis]].valueoffset)


def _mp4_axis(path: Path, axis: int) -> int:
    return path.read_bytes().index(b"avc1", path.read_bytes().index(b"stsd")) + (28, 30)[axis]


def _mkv_axis(path: Path, axis: int) -> int:
    return path.read_bytes().index((b"\xb0\x81", b"\xba\x81")[axis]) + 2


def _nifti_resize(path: Path, axis: int, factor: float) -> None:
    data = bytearray(
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    )
    (old,) = struct.unpack_from("<h", data, 42 + 2 * axis)
    struct.pack_into("<h", data, 42 + 2 * axis, int(old * factor))
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _text_resize(path: Path, axis: int, factor: float) -> None:
    data = path.read_bytes()
    key = b"sizes: " if path.suffix == ".nrrd" else b"DimSize = "
    first = data.index(key) + len(key)
    end = data.index(b"\n", first)
    sizes = [int(size) for size in data[first:end].split()]
    sizes[axis] = int(sizes[axis] * factor)
    path.write_bytes(data[:first] + " ".join(map(str, sizes)).encode() + data[end:])


def _zarr_resize(path: Path, axis: int, factor: float) -> None:
    file = path / "0" / "zarr.json"
    header = json.loads(file.read_text())
    header["shape"][2 - axis] = int(header["shape"][2 - axis] * factor)
    file.write_text(json.dumps(header))


def _dicom_resize(path: Path, axis: int, factor: float) -> None:
    """Of all slices, so that they are alike."""
    import pydicom

    for file in path.iterdir():
        header = pydicom.dcmread(file)
        keyword = ("Columns", "Rows")[axis]
        header[keyword].value = int(header[keyword].value * factor)
        header.save_as(file)


# --- damages ---


def edited(part: int, edit: Callable[[bytearray, int, int, Random], bytes | bytearray]):
    """A change of the file that a part (0: header, 1: data) lies in."""

    def change(form: Format, path: Path, random: Random) -> None:
        place = form.parts(path)[part]
        data = bytearray(place.file.read_bytes())
        place.file.write_bytes(edit(data, place.first, place.end, random))

    return change


def _cut(share: float, beyond: int = 0):
    return lambda data, first, end, random: data[: int(first + share * (end - first)) + beyond]


def _zeros(share: float, count: int):
    """`count` bytes from a share of the part on, or up to its end."""

    def edit(data: bytearray, first: int, end: int, random: Random) -> bytearray:
        begin = min(int(first + share * (end - first)), max(first, end - count))
        data[begin : min(begin + count, end)] = bytes(min(begin + count, end) - begin)
        return data

    return edit


def flipped(data: bytearray, first: int, end: int, random: Random) -> bytearray:
    data[random.randrange(first, end)] ^= 1 << random.randrange(8)
    return data


def noise(count: int):
    def edit(data: bytearray, first: int, end: int, random: Random) -> bytearray:
        begin = random.randrange(first, max(first + 1, end - count))
        data[begin : min(begin + count, end)] = random.randbytes(min(begin + count, end) - begin)
        return data

    return edit


def _last_byte(data: bytearray, first: int, end: int, random: Random) -> bytearray:
    data[end - 1] ^= 0x55
    return data


def _removed(data: bytearray, first: int, end: int, random: Random) -> bytearray:
    begin = first + (end - first) // 3
    del data[begin : begin + 64]
    return data


def _inserted(data: bytearray, first: int, end: int, random: Random) -> bytearray:
    begin = first + (end - first) // 3
    data[begin:begin] = random.randbytes(64)
    return data


def _exchanged(data: bytearray, first: int, end: int, random: Random) -> bytearray:
    one, other = first + (end - first) // 4, first + (end - first) // 2
    data[one : one + 64], data[other : other + 64] = data[other : other + 64], data[one : one + 64]
    return data


def _swapped(data: bytearray, first: int, end: int, random: Random) -> bytearray:
    """Words of 4 bytes in the other order."""
    end -= (end - first) % 4
    data[first:end] = np.frombuffer(bytes(data[first:end]), "<u4").byteswap().tobytes()
    return data


def _content(text: bytes):
    return lambda data, first, end, random: text


def _resized(axis: int, factor: float):
    return lambda form, path, random: form.resize(path, axis, factor)


DAMAGES = (
    Damage("empty file", "", edited(1, _content(b""))),
    Damage("1 byte left", "", edited(1, lambda data, *_: data[:1])),
    Damage("16 bytes left", "", edited(1, lambda data, *_: data[:16])),
    Damage("cut in the header", "", edited(0, _cut(0.5))),
    Damage("cut at the header's end", "", edited(0, _cut(1))),
    *(
        Damage(f"cut at {share:.0%} of the data", "", edited(1, _cut(share)))
        for share in (0.02, 0.1, 0.5, 0.9)
    ),
    Damage("last 16 bytes of the data missing", "", edited(1, _cut(1, -16))),
    Damage("last byte of the data missing", "", edited(1, _cut(1, -1))),
    Damage("last byte of the file missing", "", edited(1, lambda data, *_: data[:-1])),
    Damage("header's first 16 bytes zero", "header", edited(0, _zeros(0, 16))),
    Damage("16 bytes zero in the header", "header", edited(0, _zeros(0.5, 16))),
    Damage("header zero", "header", edited(0, _zeros(0, 1 << 30))),
    Damage("data's first 64 bytes zero", "data", edited(1, _zeros(0, 64))),
    Damage("64 bytes zero in the data", "data", edited(1, _zeros(0.5, 64))),
    Damage("data's last 64 bytes zero", "data", edited(1, _zeros(1, 64))),
    Damage("half of the data zero", "data", edited(1, _zeros(0.5, 1 << 30))),
    Damage("file zero", "", edited(1, lambda data, *_: bytes(len(data)))),
    *(Damage(f"header bit {n}", "header", edited(0, flipped)) for n in range(8)),
    *(Damage(f"data bit {n}", "data", edited(1, flipped)) for n in range(4)),
    Damage("8 bytes of noise in the data", "data", edited(1, noise(8))),
    Damage("64 bytes of noise in the data", "data", edited(1, noise(64))),
    Damage("8 bytes of noise in the header", "header", edited(0, noise(8))),
    Damage("last byte of the data changed", "data", edited(1, _last_byte)),
    Damage("a ZIP archive", "", edited(1, _content(b"PK\x03\x04" + bytes(2000)))),
    Damage("a web page", "", edited(1, _content(b"<!DOCTYPE html><html>404</html>" * 40))),
    Damage(
        "a pointer of Git LFS", "", edited(1, _content(b"version https://git-lfs.github.com\n"))
    ),
    Damage("1 byte appended", "shift", edited(1, lambda data, *_: data + b"\n")),
    Damage(
        "4 KiB of noise appended",
        "shift",
        edited(1, lambda data, first, end, random: data + random.randbytes(4096)),
    ),
    Damage("64 bytes of the data missing", "shift", edited(1, _removed)),
    Damage("64 bytes amid the data too many", "shift", edited(1, _inserted)),
    Damage("two blocks of the data exchanged", "data", edited(1, _exchanged)),
    Damage("header's words in the other byte order", "header", edited(0, _swapped)),
    *(
        Damage(f"{'xyz'[axis]} times {factor:g} in the header", "size", _resized(axis, factor))
        for axis in range(2)
        for factor in (0, 0.5, 2, 300)
    ),
)


def _of_series(change: Callable[[Path], object]) -> Callable[[Format, Path, Random], None]:
    return lambda form, path, random: (change(path), None)[1]


def _other_slice(path: Path, **attributes: object) -> None:
    import pydicom

    header = pydicom.dcmread(path / "04.dcm")
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    header.save_as(path / "added.dcm")


SERIES = (
    Damage("a slice missing", "files", _of_series(lambda path: (path / "04.dcm").unlink())),
    Damage("the first slice missing", "end", _of_series(lambda path: (path / "00.dcm").unlink())),
    Damage("a slice twice", "files", _of_series(_other_slice)),
    Damage(
        "a slice twice under another UID",
        "files",
        _of_series(lambda path: _other_slice(path, SOPInstanceUID="2.25.77")),
    ),
    Damage(
        "a slice of another series",
        "files",
        _of_series(lambda path: _other_slice(path, SeriesInstanceUID="2.25.88")),
    ),
    Damage(
        "a slice of another direction",
        "files",
        _of_series(
            lambda path: _other_slice(
                path,
                SOPInstanceUID="2.25.77",
                ImageOrientationPatient=[0, 1, 0, 1, 0, 0],
                ImagePositionPatient=[0, 0, 10],
            )
        ),
    ),
)
CHUNKS = (
    Damage(
        "a chunk missing",
        "chunk",
        _of_series(lambda path: (path / "0" / "c" / "0" / "1" / "0").unlink()),
    ),
    Damage("a level missing", "", _of_series(lambda path: shutil.rmtree(path / "0"))),
    Damage(
        "a level's header missing", "", _of_series(lambda path: (path / "0" / "zarr.json").unlink())
    ),
    Damage(
        "the group's header missing", "", _of_series(lambda path: (path / "zarr.json").unlink())
    ),
)

_NONE = "no checksum"
_FILL = "chunks that are not there are the fill value; a line counts them"
_STREAM = "a compressed stream without checksum"
FORMATS = (
    Format(
        "PNG", ".png", "flat", _picture, _png_parts,
        _number(lambda path, axis: 16 + 4 * axis, ">I"), {},
    ),
    Format(
        "JPEG", ".jpg", "flat", _picture, _jpeg_parts, _number(_jpeg_axis, ">H"),
        {"header": _NONE, "data": _STREAM, "shift": _STREAM, "size": _NONE},
    ),
    Format(
        "TIFF, strips", ".tif", "flat", _tiff, _tiff_parts, _number(_tiff_axis, "<H"),
        {"header": _NONE, "data": _NONE, "shift": "no length of the file"},
    ),
    Format(
        "TIFF, pyramid of deflated tiles", ".tif", "flat", _pyramid, _tiff_parts,
        _number(_tiff_axis, "<H"), {"header": _NONE},
    ),
    Format(
        "SVS, JPEG tiles", ".svs", "flat", _svs, _tiff_parts, _number(_tiff_axis, "<H"),
        {"header": _NONE, "data": _STREAM, "shift": _STREAM},
    ),
    Format(
        "OME-Zarr with CRC-32C", ".ome.zarr", "flat", _zarr, _zarr_parts, _zarr_resize,
        {"header": _NONE, "size": _FILL,
         "chunk": _FILL}, CHUNKS,
    ),
    Format(
        "NIfTI", ".nii", "deep", _nifti, _nifti_parts, _nifti_resize,
        {"header": _NONE, "data": _NONE},
    ),
    Format("NIfTI, gzip", ".nii.gz", "deep", _nifti, _nifti_parts, _nifti_resize, {}),
    Format(
        "NRRD, gzip", ".nrrd", "deep", _by_itk, _text_parts, _text_resize, {"header": _NONE}
    ),
    Format(
        "MetaImage", ".mha", "deep", _by_itk, _text_parts, _text_resize,
        {"header": _NONE, "data": _NONE},
    ),
    Format(
        "DICOM series", "", "deep", _dicom, _dicom_parts, _dicom_resize,
        {"header": _NONE, "data": _NONE, "end": "a series does not say how many slices it has"},
        SERIES,
    ),
    Format(
        "MP4, H.264", ".mp4", "flat", _video, _mp4_parts, _number(_mp4_axis, ">H"),
        {"header": _NONE, "data": _STREAM},
    ),
    Format(
        "Matroska, FFV1", ".mkv", "flat", _video, _mkv_parts, _number(_mkv_axis, "B"),
        {"header": _NONE},
    ),
)  # fmt: skip
