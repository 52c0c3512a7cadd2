"""Frames of videos with masks for nnU-Net: clips as volumes (frame, y, x), or single pictures."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.datasets.classes import Classes
from nnunet_octreenca.datasets.raw_dataset import (
    Converted,
    RawDataset,
    Track,
    describe,
    untracked,
)
from nnunet_octreenca.datasets.splits import group_folds, held_out
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonObject, pairing_name, require_utf8
from nnunet_octreenca.images.orientation import notes_of_many, swaps_axes
from nnunet_octreenca.images.slide_reader import orientation_of, read_whole

CLIP_LENGTH = 80  # frames, the paper's
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
RGB = ("rgb_to_0_1",) * 3  # by this name nnU-Net divides by 255


class Frame(NamedTuple):
    """A picture and its mask; `number` orders the frames of a video."""

    number: int
    image: Path
    mask: Path


class Clip(NamedTuple):
    """Consecutive frames of a video, which no other fold may see."""

    name: str
    video: str
    frames: tuple[Frame, ...]


class FrameLayout(NamedTuple):
    """How frames are written.

    Attributes:
        dimension: 3 for volumes (frame, y, x), one NIfTI file a channel; 2 for PNG pictures.
        size: (width, height) in pixels; None keeps theirs.
        clip_length: maximum number of frames in a volume.
    """

    dimension: int = 3
    size: tuple[int, int] | None = None
    clip_length: int = CLIP_LENGTH

    def check(self) -> None:
        """Raises InputError for values that cannot be."""
        if self.dimension not in (2, 3) or self.clip_length < 1 or min(self.size or (1,)) < 1:
            raise InputError(
                f"dimension ({self.dimension}) must be 2 or 3, clip length ({self.clip_length}) "
                f"and size ({self.size}) at least 1"
            )


LAYOUT = FrameLayout()


def convert_frames(
    source: Path,
    target: Path,
    classes: Classes,
    *,
    layout: FrameLayout = LAYOUT,
    test: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
    track: Track = untracked,
) -> Converted:
    """Write an nnU-Net data set of `images/` and `masks/`, or of `images/VIDEO/`, `masks/VIDEO/`.

    A frame's mask has its name, whatever the ending. Frames follow one another as their names'
    numbers do.

    Args:
        source: the folder that holds `images` and `masks`.
        target: the new data set's folder.
        classes: of the masks.
        layout: volumes or pictures, their size and length.
        test: fraction of the videos held out (of the pictures where there are no videos).
        seed: of the folds and of what is held out.
        overwrite: remove a data set that is there already.
        track: shows progress.

    Raises:
        InputError: a mask is missing, of another size, or holds a value that is no class.
        OutputError: the data set exists already, or cannot be written.
    """
    layout.check()
    clips = find_frames(Path(source), single=layout.dimension == 2)
    tested = held_out([clip.video for clip in clips], test, seed)
    notes = []
    if layout.dimension == 2 and not any(p.is_dir() for p in (Path(source) / "images").iterdir()):
        notes.append(
            "Every picture counts as independent of the others. Put the frames of each video into "
            "a folder, images/VIDEO, so that no fold validates on a video it trains on."
        )
    return convert_clips(
        [clip for clip in clips if clip.video not in tested],
        [clip for clip in clips if clip.video in tested],
        Path(source),
        target,
        classes,
        layout=layout,
        kind="frames",
        description=f"frames of {Path(source).name}",
        request={"test": test},
        notes=notes,
        seed=seed,
        overwrite=overwrite,
        track=track,
    )


def find_frames(source: Path, *, single: bool = False) -> list[Clip]:
    """The clips of a folder of `images` and `masks`.

    Args:
        source: holds both.
        single: where there are no folders of videos, every picture is a separate video.

    Raises:
        InputError: nothing there, or a mask is missing.
    """
    images = source / "images"
    if not images.is_dir() or not (source / "masks").is_dir():
        raise InputError(f"{source} must hold a folder images and a folder masks")
    folders = sorted(p for p in images.iterdir() if p.is_dir() and p.name[0] != ".")
    folders_of_masks = {
        normalize("NFC", path.name): path for path in (source / "masks").iterdir() if path.is_dir()
    }
    clips = []
    for folder in folders or [images]:
        masks = source / "masks"
        if folders:
            masks = folders_of_masks.get(normalize("NFC", folder.name), masks / folder.name)
        by_name: dict[str, Path] = {}
        for path in pictures(masks):
            other = by_name.setdefault(pairing_name(path), path)
            if other != path:
                raise InputError(f"{other} and {path.name} are masks of the same name; keep one")
        frames = []
        for number, image in enumerate(pictures(folder)):
            if pairing_name(image) not in by_name:
                raise InputError(
                    f"{image} has no mask: {masks / image.stem} with an ending of "
                    f"{', '.join(PICTURES)} is missing"
                )
            frames.append(Frame(number, image, by_name[pairing_name(image)]))
        if len({frame.mask for frame in frames}) < len(frames):
            raise InputError(f"{folder} holds two images with the same name but different endings")
        if not frames:
            raise InputError(f"{folder} contains no image ({', '.join(PICTURES)})")
        if folders:
            clips.append(Clip(folder.name, folder.name, tuple(frames)))
        elif single:
            clips += [Clip(f.image.stem, f.image.stem, (f,)) for f in frames]
        else:
            clips.append(Clip(source.resolve().name, source.resolve().name, tuple(frames)))
    return clips


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers in their names."""
    found = [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.suffix.lower() in PICTURES and not path.name.startswith(".")
    ]
    return sorted(found, key=natural)


def natural(path: Path) -> list[tuple[int, int, str]]:
    """A sort key by which frame_9 comes before frame_10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]


def cut_into_clips(clip: Clip, length: int) -> list[Clip]:
    """Runs of consecutive numbers, of `length` frames at most; named by their first number."""
    gaps = [n for n, (a, b) in enumerate(pairwise(clip.frames), 1) if b.number != a.number + 1]
    cut = []
    for first, end in pairwise([0, *gaps, len(clip.frames)]):
        for begin in range(first, end, length):
            frames = clip.frames[begin : min(begin + length, end)]
            cut.append(Clip(f"{clip.name}_{frames[0].number:05d}", clip.video, frames))
    return cut


def convert_clips(
    training: Sequence[Clip],
    test: Sequence[Clip],
    source: Path,
    target: Path,
    classes: Classes,
    *,
    layout: FrameLayout,
    kind: str,
    description: str,
    request: JsonObject,
    notes: Sequence[str] = (),
    seed: int = 0,
    overwrite: bool = False,
    track: Track = untracked,
) -> Converted:
    """Write clips that were found, whatever their folders look like; see `convert_frames`."""
    request = {
        "kind": kind,
        "layout": layout,
        "foreground": dict(classes.foreground),
        "background": classes.background,
        "ignore": classes.ignore,
        "seed": seed,
        **request,
    }
    dataset = RawDataset(target, source, request, overwrite)
    length = layout.clip_length if layout.dimension == 3 else 1
    cases = [
        (part, case)
        for part, clips in (("Tr", training), ("Ts", test))
        for clip in clips
        for case in (cut_into_clips(clip, length) if len(clip.frames) > 1 else [clip])
    ]
    notes = [*notes, *_orientations(cases)]
    for part, case in track(cases, kind):
        write = _write_volume if layout.dimension == 3 else _write_picture
        write(dataset, part, case, classes, layout.size)
    groups = {case.name: case.video for part, case in cases if part == "Tr"}
    splits = group_folds(groups, seed=seed)
    if splits is None and len(groups) > 1:
        # Neighbouring frames look alike: only whole stretches of a video are worth validating on.
        stretches = np.array_split(np.array(list(groups)), min(5, len(groups)))
        blocks = {case: f"{n:02d}" for n, stretch in enumerate(stretches) for case in stretch}
        splits = group_folds({case: blocks[case] for case in groups}, seed=seed)
        notes.append(
            "All training frames are of one video: the folds are stretches of it, and their "
            "scores are optimistic."
        )
    if splits is None:
        notes.append("There is a single training case: train with the fold `all`.")
    else:
        notes.append(dataset.splits_note)
    content = describe(
        channel_names=RGB,
        labels=classes.labels,
        training=len(groups),
        file_ending=".nii.gz" if layout.dimension == 3 else ".png",
        description=description,
    )
    dataset.finish(content, splits)
    configuration = "3d_fullres" if layout.dimension == 3 else "2d"
    return Converted(
        dataset.folder,
        len(groups),
        len(cases) - len(groups),
        configuration,
        tuple(notes),
        fold="0" if splits else "all",
    )


def read_frame(
    frame: Frame, classes: Classes, size: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A frame (y, x, 3) and its labels (y, x), both uint8.

    Args:
        size: (width, height) to bring both to: the frame by averaging areas (bilinear where it
            grows), the labels by taking the nearest.

    Raises:
        InputError: a file cannot be read, the sizes differ, or a value is no class.
    """
    from PIL import Image

    image, mask = read_whole(frame.image), read_whole(frame.mask, stored=True)
    if image.dtype != np.uint8:
        raise InputError(f"{frame.image} is not an image with 8 bits per channel")
    if image.shape[2] == 1:
        image = np.repeat(image, 3, 2)
    if image.shape[2] != 3:
        raise InputError(f"{frame.image} has {image.shape[2]} channels; a frame is grey or RGB")
    if mask.shape[:2] != image.shape[:2]:
        raise InputError(
            f"{frame.mask} has {mask.shape[1]} x {mask.shape[0]} pixels, but its image "
            f"{image.shape[1]} x {image.shape[0]}{_said(frame)}"
        )
    labels = classes.apply(mask, frame.mask)
    if size is not None and size != (image.shape[1], image.shape[0]):
        sampling = Image.Resampling
        smaller = size[0] <= image.shape[1] and size[1] <= image.shape[0]
        image = np.asarray(
            Image.fromarray(np.ascontiguousarray(image)).resize(
                size, sampling.BOX if smaller else sampling.BILINEAR
            )
        )
        labels = np.asarray(Image.fromarray(labels).resize(size, sampling.NEAREST))
    return image, labels


def _said(frame: Frame) -> str:
    """Why sizes may differ, where a file's orientation is the reason."""
    image, mask = orientation_of(frame.image), orientation_of(frame.mask)
    if swaps_axes(image) == swaps_axes(mask):
        return ""
    return (
        f", as viewers show them (orientation {mask} and {image} in the files). Draw the mask on "
        f"the picture as it is shown"
    )


def _orientations(cases: Sequence[tuple[str, Clip]]) -> list[str]:
    """What reading turns, in a sentence for each way."""
    frames = [frame for _, case in cases for frame in case.frames]
    notes: list[str] = []
    for subject, files in (
        ("pictures", [frame.image for frame in frames]),
        ("masks", [frame.mask for frame in frames]),
    ):
        codes = Counter(map(orientation_of, files))
        notes += [f"{note}." for note in notes_of_many(codes, subject)]
    return notes


def _write_volume(
    dataset: RawDataset, part: str, clip: Clip, classes: Classes, size: tuple[int, int] | None
) -> None:
    import SimpleITK as sitk

    if dataset.has(f"labels{part}/{clip.name}.nii.gz"):  # the last of a case's files
        return
    pairs = [read_frame(frame, classes, size) for frame in clip.frames]
    for frame, (image, _) in zip(clip.frames, pairs, strict=True):
        if image.shape != pairs[0][0].shape:
            raise InputError(
                f"{frame.image} has {image.shape[1]} x {image.shape[0]} pixels, but the first "
                f"frame of its clip {pairs[0][0].shape[1]} x {pairs[0][0].shape[0]}"
            )

    require_utf8(clip.name)

    def writer(volume: NDArray[np.uint8]) -> Callable[[Path], object]:
        return lambda file: sitk.WriteImage(
            sitk.GetImageFromArray(volume), str(file), useCompression=True
        )

    images = np.stack([image for image, _ in pairs])
    for channel in range(3):
        dataset.put(
            f"images{part}/{clip.name}_{channel:04d}.nii.gz", writer(images[..., channel].copy())
        )
    dataset.put(f"labels{part}/{clip.name}.nii.gz", writer(np.stack([m for _, m in pairs])))


def _write_picture(
    dataset: RawDataset, part: str, clip: Clip, classes: Classes, size: tuple[int, int] | None
) -> None:
    if dataset.has(f"labels{part}/{clip.name}.png"):
        return
    image, labels = read_frame(clip.frames[0], classes, size)
    put_picture(dataset, f"images{part}/{clip.name}_0000.png", image)
    put_picture(dataset, f"labels{part}/{clip.name}.png", labels)


def put_picture(dataset: RawDataset, name: str, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG into a data set."""
    from PIL import Image

    dataset.put(name, lambda file: Image.fromarray(pixels).save(file, format="PNG"))
