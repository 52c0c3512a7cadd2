"""Which formats a label map can be written in, and the one function that writes any of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from nnunet_octreenca.arrays import Labels
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.files import require_utf8
from nnunet_octreenca.labels.coco import write_coco_rle
from nnunet_octreenca.labels.dicom_seg import SegPlace, check_dicom_seg, write_dicom_seg
from nnunet_octreenca.labels.geojson import MIN_AREA, write_geojson
from nnunet_octreenca.labels.nifti import write_nifti
from nnunet_octreenca.labels.omezarr import write_label_zarr
from nnunet_octreenca.labels.overlay_video import Frames, write_overlay_mp4
from nnunet_octreenca.labels.png import write_frame_pngs, write_label_picture
from nnunet_octreenca.labels.tiff import write_label_tiff
from nnunet_octreenca.labels.volume import write_volume
from nnunet_octreenca.libraries import import_optional
from nnunet_octreenca.nifti_place import NiftiPlace

KINDS = ("slide", "picture", "video", "volume")


@dataclass(frozen=True)
class LabelInfo:
    """What formats may need besides the labels; each takes what it needs.

    Attributes:
        names: label to class name.
        kind: of the image, one of `KINDS`.
        mpp: of a slide or picture, microns per pixel, one number or (y, x).
        spacing, origin, direction: of a volume, as SimpleITK has them: axes (x, y, z), mm.
        nifti: of a volume in NIfTI, what its header says of its place.
        fps: of a video, frames a second.
        pixel_aspect: of a video, a pixel's width over its height; None for square ones.
        frames: of a video, its frames (y, x, 3) RGB uint8 in order, or a function that gives them.
        dicom_files: of a volume from a DICOM series, its files.
        file_names: of a video that was a folder of frames, their names.
        image_path: the segmented image.
        scale: of a slide, pixels of its level 0 per pixel of the labels.
        offset: of a slide, level-0 coordinates (x, y) of the labels' upper left corner.
        bounds: of a slide of which a part was scanned, that part: (x, y, width, height) in pixels
            of level 0. GeoJSON counts from its corner, as QuPath does; OME-TIFF names it.
    """

    names: dict[int, str]
    kind: str
    mpp: float | Sequence[float] | None = None
    spacing: Sequence[float] | None = None
    origin: Sequence[float] | None = None
    direction: Sequence[float] | None = None
    nifti: NiftiPlace | None = None
    fps: float | Fraction | None = None
    pixel_aspect: Fraction | None = None
    frames: Frames | None = None
    dicom_files: Sequence[Path | str] | None = None
    file_names: Sequence[str] | None = None
    image_path: Path | None = None
    scale: float | tuple[float, float] = 1.0
    offset: tuple[float, float] = (0.0, 0.0)
    bounds: tuple[int, int, int, int] | None = None

    def stems(self) -> list[str] | None:
        """The frames' file names without ending."""
        return None if self.file_names is None else [Path(name).stem for name in self.file_names]

    def pixel_size(self) -> float | Sequence[float] | None:
        """Microns per pixel in the order of the labels' axes; None if unknown."""
        if self.kind == "volume":
            return None if self.spacing is None else [1000 * s for s in reversed(self.spacing)]
        return None if self.kind == "video" else self.mpp


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        ending: put behind the case's name.
        kinds: of images it fits.
        write: labels, path, information; may return a sentence for the user.
        modules: it needs, optional ones.
        extra: that installs them.
        check: shape of the labels, path, information; refuses what `write` would.
    """

    ending: str
    kinds: tuple[str, ...]
    write: Callable[[Labels, Path, LabelInfo], str | None]
    modules: tuple[str, ...] = field(default=())
    extra: str = ""
    check: Callable[[tuple[int, ...], Path, LabelInfo], None] | None = None


def _tiff(labels: Labels, path: Path, info: LabelInfo) -> None:
    axes = "TYX" if info.kind == "video" else None
    write_label_tiff(
        labels, path, names=info.names, mpp=info.pixel_size(), axes=axes, bounds=info.bounds
    )


def _zarr(labels: Labels, path: Path, info: LabelInfo) -> None:
    axes = "tyx" if info.kind == "video" else None
    write_label_zarr(
        labels,
        path,
        names=info.names,
        mpp=info.pixel_size(),
        axes=axes,
        image_path=info.image_path,
    )


def _geojson(labels: Labels, path: Path, info: LabelInfo) -> str | None:
    left, top = info.bounds[:2] if info.bounds else (0, 0)
    offset = (info.offset[0] - left, info.offset[1] - top)
    _, left_out, _ = write_geojson(labels, path, names=info.names, scale=info.scale, offset=offset)
    if not left_out:
        return None
    return f"{path.name}: {left_out} region(s) of fewer than {MIN_AREA:g} pixels are left out"


def _seg_place(info: LabelInfo) -> SegPlace:
    return {
        "spacing": info.spacing,
        "origin": info.origin,
        "direction": info.direction,
        "dicom_files": info.dicom_files,
        "mpp": info.mpp,
    }


def _dicom(labels: Labels, path: Path, info: LabelInfo) -> None:
    write_dicom_seg(
        labels,
        path,
        names=info.names,
        **_seg_place(info),
    )


def _coco(labels: Labels, path: Path, info: LabelInfo) -> None:
    file_names = info.file_names
    if labels.ndim == 2 and info.image_path is not None:
        file_names = [info.image_path.name]
    write_coco_rle(labels, path, names=info.names, file_names=file_names)


def _mp4(labels: Labels, path: Path, info: LabelInfo) -> None:
    if info.frames is None:
        raise OutputError(f"{path} needs the video's frames; choose another output format")
    write_overlay_mp4(
        info.frames,
        labels,
        path,
        fps=info.fps or 25,
        names=info.names,
        pixel_aspect=info.pixel_aspect,
    )


def _check_itk(shape: tuple[int, ...], path: Path, info: LabelInfo) -> None:
    _check_upright(shape, path, info)
    require_utf8(path)


def _check_nifti(shape: tuple[int, ...], path: Path, info: LabelInfo) -> None:
    if info.nifti is None:
        require_utf8(path)


def _check_upright(shape: tuple[int, ...], path: Path, info: LabelInfo) -> None:
    if info.nifti is not None and info.nifti.sheared:
        raise OutputError(
            f"{path} cannot hold labels of an image whose axes are not at right angles; NIfTI can: "
            f"choose nii.gz"
        )


def _check_frames(shape: tuple[int, ...], path: Path, info: LabelInfo) -> None:
    first: dict[str, str] = {}
    for stem, name in zip(info.stems() or (), info.file_names or (), strict=True):
        if first.setdefault(stem, name) != name:
            raise OutputError(
                f"the frames {first[stem]} and {name} would both become {stem}.png in {path}; "
                f"rename one"
            )


def _check_dicom(shape: tuple[int, ...], path: Path, info: LabelInfo) -> None:
    _check_upright(shape, path, info)
    check_dicom_seg(
        shape,
        path,
        names=info.names,
        **_seg_place(info),
    )


def _nifti(labels: Labels, path: Path, info: LabelInfo) -> None:
    if info.nifti is not None:
        write_nifti(labels, path, info.nifti)
    else:
        _volume(labels, path, info)


def _volume(labels: Labels, path: Path, info: LabelInfo) -> None:
    write_volume(labels, path, spacing=info.spacing, origin=info.origin, direction=info.direction)


_FLAT = ("slide", "picture")
FORMATS = {
    "ome.tif": Format(".ome.tif", KINDS, _tiff, ("tifffile", "imagecodecs"), "slides"),
    "ome.zarr": Format(".ome.zarr", KINDS, _zarr, ("zarr", "ome_zarr"), "slides"),
    "geojson": Format(".geojson", _FLAT, _geojson, ("shapely",), "slides"),
    "dcm": Format(".dcm", ("slide", "volume"), _dicom, ("highdicom",), "dicom", _check_dicom),
    "png": Format(
        ".png",
        _FLAT,
        lambda labels, path, info: write_label_picture(labels, path, names=info.names),
    ),
    "plain.png": Format(
        ".png", _FLAT, lambda labels, path, info: write_label_picture(labels, path, plain=True)
    ),
    "frames": Format(
        "_frames",
        ("video",),
        lambda labels, path, info: write_frame_pngs(
            labels, path, names=info.names, stems=info.stems()
        ),
        check=_check_frames,
    ),
    "coco.json": Format(".coco.json", ("picture", "video"), _coco, ("pycocotools",), "video"),
    "mp4": Format("_overlay.mp4", ("video",), _mp4, ("av",), "video"),
    "nii.gz": Format(".nii.gz", ("volume",), _nifti, check=_check_nifti),
    "nii": Format(".nii", ("volume",), _nifti, check=_check_nifti),
    "nrrd": Format(".nrrd", ("volume",), _volume, check=_check_itk),
    "mha": Format(".mha", ("volume",), _volume, check=_check_itk),
}
"""Format name to what it is; "plain.png" is grey, as nnU-Net reads it."""

_OWN = {".nii.gz": "nii.gz", ".nii": "nii", ".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "mha"}
_OWN |= {".mhd": "mha", ".dcm": "dcm"}


def default_formats(kind: str, image_path: Path | str) -> tuple[str, ...]:
    """The formats written by default.

    A volume keeps its file's format; a folder is a DICOM series.

    >>> default_formats("volume", "case_0000.nrrd"), default_formats("slide", "case.svs")
    (('nrrd',), ('ome.tif',))
    """
    if kind != "volume":
        return {"slide": ("ome.tif",), "picture": ("png",), "video": ("frames", "mp4")}[kind]
    if Path(image_path).is_dir():
        return ("dcm",)
    name = str(image_path).lower()
    return (next((own for ending, own in _OWN.items() if name.endswith(ending)), "nii.gz"),)


def check_formats(format_names: Sequence[str], kind: str) -> None:
    """Refuse what cannot be written, before anything is computed.

    Raises:
        OutputError: a format is unknown or does not fit the kind of image, or two write to the
            same name.
        EnvironmentMismatchError: what a format needs is not installed.
    """
    fitting = [name for name, form in FORMATS.items() if kind in form.kinds]
    endings: dict[str, str] = {}
    for name in format_names:
        if name not in fitting:
            raise OutputError(
                f"{name} is not a format for a {kind}; choose from {', '.join(fitting)}"
            )
        form = FORMATS[name]
        if form.ending in endings:
            raise OutputError(
                f"{endings[form.ending]} and {name} write to the same file name; choose one of them"
            )
        endings[form.ending] = name
        for module in form.modules:
            import_optional(module, form.extra)


def check_labels(
    format_names: Sequence[str], shape: Sequence[int], stem_path: Path | str, info: LabelInfo
) -> None:
    """Refuse, before anything is computed, what `write` would of labels of this shape.

    Raises:
        OutputError: a format cannot hold them.
        InputError: the path is not UTF-8, and the format's library needs it to be.
    """
    for name in format_names:
        check = FORMATS[name].check
        if check is not None:
            check(tuple(shape), output_path(name, stem_path), info)


def output_path(format_name: str, stem_path: Path | str) -> Path:
    """Where `write` puts a format: the path without ending, and the format's ending.

    >>> output_path("frames", "out/clip").as_posix()
    'out/clip_frames'
    """
    stem_path = Path(stem_path)
    return stem_path.with_name(stem_path.name + FORMATS[format_name].ending)


def write(
    format_name: str,
    labels: Labels,
    stem_path: Path | str,
    info: LabelInfo,
    *,
    tell: Callable[[str], object] = print,
) -> Path:
    """Write a label map in one format, whole or not at all; what is there is replaced.

    Args:
        format_name: a key of `FORMATS`.
        labels: (y, x) or (plane or frame, y, x), uint8 or int16, not negative.
        stem_path: the output path without ending.
        info: what the format needs to know.
        tell: takes a sentence about what was left out.

    Returns:
        The file or folder.

    Raises:
        OutputError: the format does not fit the labels, or the disk is full.
        EnvironmentMismatchError: what the format needs is not installed.
    """
    check_formats([format_name], info.kind)
    path = output_path(format_name, stem_path)
    sentence = FORMATS[format_name].write(labels, path, info)
    if isinstance(sentence, str):
        tell(sentence)
    return path
