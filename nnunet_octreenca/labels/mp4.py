"""Pictures as an MP4 that browsers and players show in the same colours."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.labels.output import atomic_output
from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_LONGEST_FRACTION = 65535  # MPEG-4 part 2 keeps the frame rate in 16 bits
_BT709, _LIMITED = 1, 1  # FFmpeg's numbers
_QUALITY = {"libx264": {"crf": "20", "preset": "veryfast"}, "mpeg4": {"qmin": "2", "qmax": "5"}}


def video_frame(picture: NDArray[np.uint8]) -> "VideoFrame":
    """A picture (y, x, 3) RGB of even sizes as `write_mp4` takes it."""
    av = import_optional("av", "video")
    frame: VideoFrame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
        format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED
    )
    return frame


def write_mp4(
    frames: Iterable["VideoFrame"],
    path: Path | str,
    shape: tuple[int, int],
    *,
    fps: float | Fraction,
    pixel_aspect: Fraction | None = None,
) -> None:
    """Write an MP4: H.264 where PyAV has libx264, else MPEG-4 part 2.

    yuv420p in BT.709 of limited range, and marked so.

    Args:
        frames: of `video_frame`, in order.
        path: the file, `.mp4`.
        shape: (y, x) of all frames, both even.
        fps: frames a second.
        pixel_aspect: a pixel's width over its height; square pixels if left out.

    Raises:
        OutputError: the disk is full, or the folder is not there.
        EnvironmentMismatchError: PyAV is not installed.
    """
    av = import_optional("av", "video")
    with (
        atomic_output(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        rate = Fraction(fps).limit_denominator(_LONGEST_FRACTION)
        stream = container.add_stream(codec, rate=rate, options=_QUALITY[codec])
        stream.height, stream.width = shape
        stream.pix_fmt = "yuv420p"
        coding = stream.codec_context
        coding.colorspace = coding.color_primaries = coding.color_trc = _BT709
        coding.color_range = _LIMITED
        if pixel_aspect is not None:
            coding.sample_aspect_ratio = pixel_aspect
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
