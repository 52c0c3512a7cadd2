"""A video with the classes drawn over it."""

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Labels
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels.legend import blend, legend
from nnunet_octreenca.labels.mp4 import video_frame, write_mp4
from nnunet_octreenca.labels.output import (
    check_axes,
    class_name,
    greatest_label,
    in_order,
)
from nnunet_octreenca.labels.palette import colour
from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Frames = Iterable[NDArray[np.uint8]] | Callable[[], Iterable[NDArray[np.uint8]]]


def write_overlay_mp4(
    frames: Frames,
    labels: Labels,
    path: Path | str,
    *,
    fps: float | Fraction,
    names: dict[int, str],
    pixel_aspect: Fraction | None = None,
) -> None:
    """Write an MP4 with the classes half transparent over the frames and a legend below.

    As `mp4.write_mp4` encodes it, padded to even sizes.

    Args:
        frames: (y, x, 3) RGB uint8 each, in order, or a function that gives them.
        labels: (frame, y, x) of the same size.
        path: the file, `.mp4`.
        fps: frames a second.
        names: label to class name; the legend has those that occur.
        pixel_aspect: a pixel's width over its height; square pixels if left out.

    Raises:
        OutputError: the frames and the labels do not fit, or the disk is full.
        EnvironmentMismatchError: PyAV is not installed.
    """
    check_axes(labels, path, (3,))
    greatest_label(labels, path)
    import_optional("av", "video")
    present = [label for label in np.flatnonzero(_occurs(labels)).tolist() if label > 0]
    strip = legend([(colour(n), class_name(names, n)) for n in present], labels.shape[2])
    height, width = labels.shape[1] + len(strip), labels.shape[2]
    picture_shape = (height + height % 2, width + width % 2)

    def draw(pair: tuple[NDArray[np.uint8], Labels]) -> "VideoFrame":
        frame, frame_labels = pair
        if frame.shape != (*frame_labels.shape, 3):
            raise OutputError(
                f"{path} cannot be drawn: a frame has shape {frame.shape}, its labels "
                f"{frame_labels.shape}"
            )
        picture = np.full((*picture_shape, 3), 255, np.uint8)
        picture[: labels.shape[1], :width] = blend(frame, frame_labels)
        picture[labels.shape[1] : height, :width] = strip
        return video_frame(picture)

    given = frames() if callable(frames) else frames
    drawn = in_order(draw, _paired(iter(given), labels, path))
    write_mp4(drawn, path, picture_shape, fps=fps, pixel_aspect=pixel_aspect)


def _paired(
    frames: Iterator[NDArray[np.uint8]], labels: Labels, path: Path | str
) -> Iterator[tuple[NDArray[np.uint8], Labels]]:
    for number, frame_labels in enumerate(labels):
        frame = next(frames, None)
        if frame is None:
            raise OutputError(
                f"{path} cannot be drawn: the video ends after {number} frames, there are labels "
                f"for {len(labels)}"
            )
        yield frame, frame_labels
    if next(frames, None) is not None:
        raise OutputError(
            f"{path} cannot be drawn: the video has more frames than the {len(labels)} with labels"
        )


def _occurs(labels: Labels) -> NDArray[np.bool_]:
    occurs = np.zeros(int(labels.max()) + 1, bool)
    for frame in labels:
        occurs[np.unique(frame)] = True
    return occurs
