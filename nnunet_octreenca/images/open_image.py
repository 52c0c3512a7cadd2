"""One function that opens every image: slide, picture, video, frames, volume."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_octreenca.deferred_files import fetch, is_deferred
from nnunet_octreenca.dicom_file import dicom_files, is_dicom
from nnunet_octreenca.errors import EnvironmentMismatchError, InputError
from nnunet_octreenca.images.channels import ChannelStack
from nnunet_octreenca.images.companions import with_companions
from nnunet_octreenca.images.frames import FrameSource, frame_files
from nnunet_octreenca.images.omezarr import open_omezarr
from nnunet_octreenca.images.pictures import PictureSource
from nnunet_octreenca.images.slides import open_slide
from nnunet_octreenca.images.source import ImageSource
from nnunet_octreenca.images.video import VideoSource
from nnunet_octreenca.images.volumes import VOLUME_ENDINGS, VolumeSource
from nnunet_octreenca.libraries import import_optional

# The longest endings first, so that .ome.tif is not taken for .tif.
ENDINGS: dict[str, tuple[str, ...]] = {
    "slide": (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".qptiff"),
    "TIFF": (".ome.tiff", ".ome.tif", ".ome.tf2", ".ome.tf8", ".tiff", ".tif", ".tf8", ".btf"),
    "picture": (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp"),
    "video": (
        *(".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".wmv", ".asf"),
        *(".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".flv", ".ogv", ".mxf"),
    ),
    "volume": VOLUME_ENDINGS,
    "OME-Zarr folder": (".ome.zarr", ".zarr"),
}
READABLE = "; ".join(f"{kind} {' '.join(endings)}" for kind, endings in ENDINGS.items())
_ZARR_FILES = ("zarr.json", ".zgroup", ".zattrs")


def open_image(
    path: Path | str,
    *,
    channels: int | None = None,
    mpp: float | None = None,
    scratch: Path | str | None = None,
    series: str | None = None,
) -> ImageSource:
    """Open an image of any kind by its name and content.

    Args:
        path: a file, or the folder of an OME-Zarr image, of one DICOM series, or of frames.
        channels: that the model takes; of images that can be seen in two ways (RGBA, palettes,
            pages of a TIFF file) the fitting one is chosen.
        mpp: microns per pixel to read a slide, TIFF or OME-Zarr image at: the level that has it
            within 5 %, else the next finer one averaged down. The finest level if left out.
        scratch: folder for a video's decoded frames; the system's if left out.
        series: SeriesInstanceUID to read, of a folder with several DICOM series.

    Returns:
        The image in bands; `info` holds what the file says about it.

    Raises:
        InputError: the image is missing, damaged, of an unknown kind, of other channels, or has
            no such resolution.
        OutputError: no room for a video's frames.
        EnvironmentMismatchError: the library that reads it is not installed.
    """
    source = _open(Path(path), channels, mpp, scratch, series)
    if channels is not None and source.channels != channels:
        found = source.channels
        source.close()
        raise InputError(
            f"{path} has {found} channel{'s' if found != 1 else ''} and the model takes {channels}"
        )
    source.info = replace(source.info, name=str(path))
    return source


def open_channels(
    paths: Sequence[Path | str],
    *,
    channels: int | None = None,
    mpp: float | None = None,
    scratch: Path | str | None = None,
    series: str | None = None,
) -> ImageSource:
    """Open a case of one or several files, each with one or more of its channels.

    Args:
        paths: in the order of the channels.
        channels: that the model takes, of all files together.
        mpp, scratch, series: see `open_image`.

    Raises:
        InputError: as `open_image`, or the files differ in shape or geometry.
    """
    names = [Path(path) for path in paths]
    if len(names) == 1:
        return open_image(names[0], channels=channels, mpp=mpp, scratch=scratch, series=series)
    sources: list[ImageSource] = []
    try:
        for name in names:
            sources.append(open_image(name, mpp=mpp, scratch=scratch, series=series))
        stack = ChannelStack(sources, names)
        if channels is not None and stack.channels != channels:
            raise InputError(
                f"{', '.join(name.name for name in names)} have {stack.channels} channels in all "
                f"and the model takes {channels}"
            )
    except BaseException:
        for source in sources:
            source.close()
        raise
    return stack


def kind_of(path: Path) -> str | None:
    """The kind of image that a file's or folder's ending names, a key of `ENDINGS`; else None."""
    name = path.name.lower()
    for kind, endings in ENDINGS.items():
        if name.endswith(endings):
            return kind
    return None


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr group."""
    return any((folder / name).is_file() for name in _ZARR_FILES)


def _open(
    path: Path,
    channels: int | None,
    mpp: float | None,
    scratch: Path | str | None,
    series: str | None,
) -> ImageSource:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    kind = kind_of(path)
    slide = path if path.is_file() else None
    zarr = path.is_dir() and (kind == "OME-Zarr folder" or is_zarr(path))
    if is_deferred(path) and kind not in ("slide", "TIFF") and not zarr:  # these read in parts
        for file in with_companions(path):
            fetch(file)
    if path.is_dir():
        if zarr:
            return open_omezarr(path, channels=channels, mpp=mpp)
        dicom = dicom_files(path)
        slide = dicom[0] if dicom else None
        kind = "volume" if dicom else "frames"
    elif kind is None and is_dicom(path):  # which often have no ending
        kind = "volume"
    if kind == "volume" and slide is not None and _is_dicom_slide(slide):
        return open_slide(slide, channels=channels, mpp=mpp)
    if kind in ("slide", "TIFF"):
        return open_slide(path, channels=channels, mpp=mpp)
    if kind is not None and mpp is not None:
        raise InputError(
            f"{path} does not say its microns per pixel, so that {mpp} cannot be found in it; "
            f"leave out --mpp"
        )
    if kind == "frames":
        files = frame_files(path)
        if not files:
            raise InputError(f"{path} holds no frames (.png, .jpg, .bmp, .tif) and no DICOM series")
        return FrameSource(files, channels=channels)
    if kind == "picture":
        return PictureSource(path, channels=channels)
    if kind == "video":
        return VideoSource(path, scratch=scratch)
    if kind == "volume":
        return VolumeSource(path, series=series)
    raise InputError(f"{path} is not of a kind that can be read; readable are: {READABLE}")


def _is_dicom_slide(path: Path) -> bool:
    if path.suffix.lower() in (".gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd"):
        return False
    try:
        openslide = import_optional("openslide", "slides")
    except EnvironmentMismatchError:
        return False
    return bool(openslide.OpenSlide.detect_format(path) == "dicom")
