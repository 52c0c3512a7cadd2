"""CholecSeg8k for nnU-Net: laparoscopic video, as volumes (frame, y, x) or single frames.

Published layout (Hong et al. 2020): `videoXX/videoXX_NNNNN/frame_N_endo.png` and next to it
`frame_N_endo_watershed_mask.png`, whose grey values are the classes; 80 consecutive frames a
folder. A folder that holds such frames directly is one clip.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from nnunet_octreenca.datasets.classes import Classes
from nnunet_octreenca.datasets.frames import Clip, Frame, FrameLayout, convert_clips
from nnunet_octreenca.datasets.raw_dataset import Converted, Track, untracked
from nnunet_octreenca.datasets.splits import held_out
from nnunet_octreenca.errors import InputError

SIZE = (432, 240)  # width and height, the paper's
LAYOUT = FrameLayout(size=SIZE)
BACKGROUND, BORDER = 50, 255  # the border has no class: it is ignored
ALL_CLASSES = {
    "abdominal_wall": 11,
    "liver": 21,
    "gastrointestinal_tract": 13,
    "fat": 12,
    "grasper": 31,
    "connective_tissue": 23,
    "blood": 24,
    "cystic_duct": 25,
    "l_hook_electrocautery": 32,
    "gallbladder": 22,
    "hepatic_vein": 33,
    "liver_ligament": 5,
}
# The paper trains on five classes and does not say how it merged the twelve. This is a choice:
# the five organs that fill most of the pictures; all else is background.
PAPER_CLASSES = ("abdominal_wall", "liver", "gastrointestinal_tract", "fat", "gallbladder")

_FRAME = re.compile(r"frame_(\d+)_endo\.png")


def cholec_classes(
    chosen: str = "paper", own: Mapping[str, tuple[int, ...]] | None = None
) -> Classes:
    """The classes by name, or `own` ones; values that no class has are background.

    Args:
        chosen: "paper" for five, "all" for twelve.
        own: values of the watershed masks by class name, instead.

    Raises:
        InputError: neither of the two, or a value that CholecSeg8k does not have.
    """
    if own:
        foreground = dict(own)
    elif chosen == "all":
        foreground = {name: (value,) for name, value in ALL_CLASSES.items()}
    elif chosen == "paper":
        foreground = {name: (ALL_CLASSES[name],) for name in PAPER_CLASSES}
    else:
        raise InputError(f"classes must be 'paper' or 'all', got {chosen!r}")
    used = {value for values in foreground.values() for value in values}
    unknown = sorted(used - set(ALL_CLASSES.values()))
    if unknown:
        known = ", ".join(f"{value} {name}" for name, value in ALL_CLASSES.items())
        raise InputError(f"no class of CholecSeg8k has the value {unknown[0]}; there are {known}")
    rest = tuple(value for value in ALL_CLASSES.values() if value not in used)
    return Classes(foreground, (BACKGROUND, *rest), (BORDER,))


def convert_cholecseg8k(
    source: Path,
    target: Path,
    *,
    classes: Classes | None = None,
    layout: FrameLayout = LAYOUT,
    test: float = 0.2,
    temporal_split: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    track: Track = untracked,
) -> Converted:
    """Write an nnU-Net data set of CholecSeg8k.

    Args:
        source: the unpacked folder, or a folder of the frames of one clip.
        target: the new data set's folder.
        classes: `cholec_classes()`, the paper's five, if left out.
        layout: volumes or pictures, their size and length.
        test: fraction of the videos that are held out; has no effect on a single clip.
        temporal_split: of a single clip: frames to train and to test with, "561-608/617-632".
        seed: of the folds and of what is held out.
        overwrite: remove a data set that is there already.
        track: shows progress.

    Raises:
        InputError: a mask is missing, of another size, or holds a value that is no class.
        OutputError: the data set exists already, or cannot be written.
    """
    layout.check()
    source = Path(source)
    clips = find_clips(source)
    notes = []
    if temporal_split is not None:
        if len(clips) > 1:
            raise InputError(
                f"{source} holds {len(clips)} clips; a temporal split is for one. Give --test, "
                f"which splits by video"
            )
        training, tested = ([_between(clips[0], part)] for part in parse_split(temporal_split))
        notes.append("Training and test frames are of one clip: scores on them are optimistic.")
    else:
        videos = {clip.video for clip in clips}
        out = held_out(videos, test if len(videos) > 1 else 0, seed)
        training = [clip for clip in clips if clip.video not in out]
        tested = [clip for clip in clips if clip.video in out]
        if out:
            notes.append(f"Held out for testing: {', '.join(sorted(out))}.")
    _check_masks([*training, *tested])
    return convert_clips(
        training,
        tested,
        source,
        target,
        classes or cholec_classes(),
        layout=layout,
        kind="cholecseg8k",
        description="CholecSeg8k, CC BY-NC-SA 4.0",
        request={"test": test, "temporal_split": temporal_split},
        notes=notes,
        seed=seed,
        overwrite=overwrite,
        track=track,
    )


def find_clips(source: Path) -> list[Clip]:
    """The clips of a folder in one of the two layouts, each with its video.

    Raises:
        InputError: no frames there.
    """
    flat = _frames(source)
    if flat:
        return [Clip(source.resolve().name, source.resolve().name, flat)]
    clips = []
    for folder in sorted(source.glob("video*/video*_*")):
        frames = _frames(folder)
        if frames:
            clips.append(Clip(folder.name, folder.parent.name, frames))
    if not clips:
        raise InputError(
            f"{source} holds neither videoXX/videoXX_NNNNN/frame_N_endo.png nor frame_N_endo.png"
        )
    return clips


def _frames(folder: Path) -> tuple[Frame, ...]:
    frames = []
    for image in folder.glob("frame_*_endo.png"):
        match = _FRAME.fullmatch(image.name)
        if match is not None:
            mask = image.with_name(f"{image.stem}_watershed_mask.png")
            frames.append(Frame(int(match[1]), image, mask))
    return tuple(sorted(frames))


def _check_masks(clips: list[Clip]) -> None:
    for clip in clips:
        for frame in clip.frames:
            if not frame.mask.is_file():
                raise InputError(
                    f"{frame.mask} is missing; take {frame.image.name} out, or leave it out with "
                    f"--temporal-split"
                )


def parse_split(text: str) -> list[tuple[int, int]]:
    """Two ranges of frame numbers.

    Raises:
        InputError: the text says something else, or the ranges share frames.

    >>> parse_split("561-608/617-632")
    [(561, 608), (617, 632)]
    """
    match = re.fullmatch(r"(\d+)-(\d+)/(\d+)-(\d+)", text)
    if match is None:
        raise InputError(f"a temporal split is TRAIN/TEST, such as 561-608/617-632, not {text!r}")
    first, last, test_first, test_last = map(int, match.groups())
    if first > last or test_first > test_last or (first <= test_last and test_first <= last):
        raise InputError(f"the ranges of the temporal split {text!r} are empty or share frames")
    return [(first, last), (test_first, test_last)]


def _between(clip: Clip, numbers: tuple[int, int]) -> Clip:
    frames = tuple(f for f in clip.frames if numbers[0] <= f.number <= numbers[1])
    if not frames:
        raise InputError(
            f"{clip.name} has no frame from {numbers[0]} to {numbers[1]}; it has "
            f"{clip.frames[0].number} to {clip.frames[-1].number}"
        )
    return Clip(clip.name, clip.video, frames)
