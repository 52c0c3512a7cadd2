"""From a case and a model to an animation of the automaton, or a figure of its octree."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from nnunet_octreenca.errors import InputError, OutputError
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.labels.gif import write_gif
from nnunet_octreenca.labels.mp4 import video_frame, write_mp4
from nnunet_octreenca.labels.output import check_absent
from nnunet_octreenca.libraries import import_optional
from nnunet_octreenca.prediction.octree_figure import write_octree_figure
from nnunet_octreenca.prediction.watch import Watched, moments, watch
from nnunet_octreenca.prediction.watch_frames import Frames, gif_palette

ANIMATIONS, FIGURES = (".gif", ".mp4"), (".png", ".svg")

Track = Callable[[Iterable[int], str, int], Iterator[int]]
"""Yields what it is given and shows how far it is: (items, description, how many)."""


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that could not be written, before anything is computed.

    Raises:
        OutputError: the ending is another than those of `ANIMATIONS` and `FIGURES`, the folder is
            not there, or the file exists and is not to be replaced.
        EnvironmentMismatchError: an MP4 is wanted, and PyAV is not installed.
    """
    if path.suffix.lower() not in ANIMATIONS + FIGURES:
        raise OutputError(
            f"{path} must end in {', '.join(ANIMATIONS)} (animation), or {', '.join(FIGURES)} "
            f"(figure of the octree)"
        )
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} is no folder; make it, or give another -o")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file")
    if not overwrite:
        check_absent(path)
    if path.suffix.lower() == ".mp4":
        import_optional("av", "video")


def explain(
    source: Path,
    model: Model,
    target: Path,
    *,
    every: int = 1,
    fps: int = 8,
    width: int = 960,
    memory: int | None = None,
    overwrite: bool = False,
    track: Track = lambda items, description, count: iter(items),
) -> None:
    """Write an animation of the automaton on one case, or a figure of its octree.

    Args:
        source: the image's file, or a folder that holds one case.
        model: of which the first network is watched.
        target: `.gif` or `.mp4` for the animation, `.png` or `.svg` for the figure.
        every: steps between two pictures.
        fps: pictures a second.
        width: pixels.
        memory: bytes that the process may use in all; None for what is free.
        overwrite: replace the file.
        track: shows progress.

    Raises:
        InputError: a number that cannot be, or a case that cannot be read.
        OutputError: see `check_target`.
        OutOfMemoryError: the case's states do not fit the memory.
    """
    for name, value, low, high in (
        ("every", every, 1, 10_000), ("fps", fps, 1, 50), ("width", width, 320, 3840)
    ):  # fmt: skip
        if not low <= value <= high:
            raise InputError(f"--{name} {value} must be from {low} to {high}")
    check_target(target, overwrite=overwrite)
    figure = target.suffix.lower() in FIGURES
    steps = None if figure else every
    bar = track(range(count := moments(model.networks[0], steps)), "computing", count)
    watched = watch(source, model, every=steps, memory=memory, progress=lambda _: next(bar, None))
    next(bar, None)  # ends it
    if figure:
        write_octree_figure(watched, target)
        return
    write_animation(watched, target, fps=fps, width=width, track=track)


def write_animation(
    watched: Watched,
    target: Path,
    *,
    fps: int = 8,
    width: int = 960,
    track: Track = lambda items, description, count: iter(items),
) -> None:
    """Draw what was watched into a `.gif` or `.mp4`; arguments as for `explain`.

    Raises:
        OutputError: the disk is full.
    """
    frames = Frames(watched, width)
    drawn = (
        frames.draw(number)
        for number in track(range(len(frames.holds)), "drawing", len(frames.holds))
    )
    if target.suffix.lower() == ".gif":
        write_gif(
            drawn,
            target,
            milliseconds=[round(100 * hold / fps) * 10 for hold in frames.holds],
            sample=gif_palette(frames),
        )
        return
    repeated = (
        video_frame(picture)
        for picture, hold in zip(drawn, frames.holds, strict=True)
        for _ in range(hold)
    )
    write_mp4(repeated, target, frames.shape, fps=fps)
