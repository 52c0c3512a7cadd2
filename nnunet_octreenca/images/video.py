"""Videos, decoded once into a scratch file and read from there in bands of frames."""

import tempfile
from collections.abc import Sequence
from fractions import Fraction
from math import prod
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError, NoRoomError, OutputError
from nnunet_octreenca.images.source import ImageInfo
from nnunet_octreenca.images.video_files import require_checksums, require_whole
from nnunet_octreenca.libraries import import_optional
from nnunet_octreenca.resources import free_disk

if TYPE_CHECKING:
    from io import FileIO

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Without it FFmpeg paints over what it cannot decode. "bitstream" and "buffer" found nothing
# more in files with flipped bytes, and refuse some that are merely unusual.
_STRICT = {"err_detect": "crccheck+explode"}


class VideoSource:
    """A video as (frame, y, x) of 8-bit RGB.

    All frames are decoded when it is opened, into a file without a name that vanishes with the
    process however that ends; bands are read from it, not mapped, for mapped pages count as
    memory of the process.

    Args:
        path: whatever FFmpeg reads: mp4, mov, mkv, webm, avi, mpg, ts, wmv and others.
        scratch: folder for the scratch file, width x height x frames x 3 bytes; the system's
            folder for temporary files if left out.

    Attributes:
        shape: (frame, y, x), every frame that FFmpeg shows, turned as players turn it.
        fps: frames per second, `info`'s: the mean where frames last differently, None where the
            file does not say.
        spacing: ones.

    Raises:
        InputError: the file is missing, truncated, damaged (naming the frame) or no video.
        NoRoomError: the scratch folder has too little room.
        OutputError: it is no folder.
        EnvironmentMismatchError: PyAV is not installed.
    """

    shape: tuple[int, ...]
    channels: int = 3
    dtype: np.dtype = np.dtype(np.uint8)
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __init__(self, path: Path | str, *, scratch: Path | str | None = None) -> None:
        self._path = Path(path)
        self.fps: Fraction | None = None
        self._turned = 0  # degrees, counterclockwise
        self._lock = Lock()
        av = import_optional("av", "video")
        if not self._path.exists():
            raise InputError(f"{path} does not exist")
        try:
            container = av.open(str(self._path))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read as a video ({error}); is it truncated?"
            ) from error
        folder = Path(scratch if scratch is not None else tempfile.gettempdir())
        with container:
            stream, self._notes = _video_stream(self._path, container)
            require_whole(self._path, container, stream)
            self._require_room(stream, folder)
            self._file: FileIO = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            try:
                self.shape = self._decode(container, stream, av)
                self.info = ImageInfo(
                    is_video=True,
                    fps=self.fps,
                    pixel_aspect=_pixel_aspect(stream, self._turned),
                    notes=self._notes,
                )
            except OSError as error:
                self._file.close()
                raise _no_room(self._path, folder, str(error)) from error
            except BaseException:
                self._file.close()
                raise

    def _require_room(self, stream: "VideoStream", folder: Path) -> None:
        if not folder.is_dir():
            raise OutputError(
                f"{folder} is not a folder to decode a video in; give one that exists"
            )
        wanted = _frames(stream) * stream.width * stream.height * self.channels
        free = free_disk(folder)
        if wanted > free:
            needed = f"{wanted / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free"
            raise _no_room(self._path, folder, needed)

    def _decode(
        self, container: "InputContainer", stream: "VideoStream", av: ModuleType
    ) -> tuple[int, int, int]:
        # Threads by frames would report an error at a later frame, or not at all.
        stream.thread_type = "SLICE"
        stream.codec_context.options = _STRICT
        self.fps = stream.average_rate or stream.guessed_rate
        size: tuple[int, int] | None = None
        count = 0
        times: list[float] = []
        lasting: Fraction | None = None  # the last packet's frame
        opening = _Opening("mpeg" in container.format.name)
        try:
            for packet in container.demux(stream):
                leads = opening.leads(packet)
                if packet.is_corrupt:
                    raise InputError(
                        f"{self._path} is truncated or damaged at frame "
                        f"{self._number(packet, count)}"
                    )
                if packet.pts is not None and packet.duration:
                    lasting = packet.duration * packet.time_base
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:
                    if leads:
                        continue
                    raise InputError(
                        f"{self._path} cannot be decoded at frame "
                        f"{self._number(packet, count)} ({error.strerror}); it is "
                        f"damaged there"
                    ) from error
                for frame in frames:
                    if frame.is_corrupt:
                        if opening.before_first(frame):
                            continue
                        raise InputError(f"{self._path} is damaged at frame {count}")
                    self._turned = frame.rotation
                    rgb = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                    pixels = self._upright(rgb, self._turned)
                    if size not in (None, pixels.shape[:2]):
                        raise InputError(
                            f"{self._path} changes its size at frame {count}, from {size} to "
                            f"{pixels.shape[:2]}; cut it there"
                        )
                    size = pixels.shape[:2]
                    self._write(np.ascontiguousarray(pixels))
                    count += 1
                    if frame.time is not None:
                        times.append(frame.time)
        except av.FFmpegError as error:
            raise InputError(
                f"{self._path} cannot be read after frame {count - 1} ({error.strerror}); it is "
                f"truncated or damaged"
            ) from error
        if size is None:
            raise InputError(f"{self._path} holds no frame that can be decoded")
        self._require_end(container, stream, count)
        require_checksums(self._path, container)
        self._set_rate(times, lasting, _seconds(stream), count)
        if self._turned:
            self._notes += (
                f"{self._path} is turned by {self._turned % 360} degrees, as players show it",
            )
        return (count, *size)

    def _upright(self, pixels: NDArray[np.uint8], degrees: int) -> NDArray[np.uint8]:
        """A frame (y, x, 3) as players show it: turned counterclockwise, as its file asks for."""
        if degrees % 90:
            raise InputError(
                f"{self._path} is to be shown turned by {degrees} degrees; only quarter turns can "
                f"be segmented: encode it upright"
            )
        return np.rot90(pixels, degrees // 90 % 4)

    def _number(self, packet: "Packet[VideoStream]", count: int) -> int:
        """The frame that a packet holds: packets come in another order than frames."""
        if packet.pts is None or self.fps is None:
            return count
        start = packet.stream.start_time or 0
        return max(0, round((packet.pts - start) * packet.time_base * self.fps))

    def _require_end(self, container: "InputContainer", stream: "VideoStream", count: int) -> None:
        """Refuse an AVI file of fewer frames than its header says, which FFmpeg takes silently."""
        if "avi" in container.format.name and count < stream.frames:
            raise InputError(
                f"{self._path} ends after frame {count - 1} of {stream.frames}; it is truncated or "
                f"damaged there"
            )

    def _set_rate(
        self, times: Sequence[float], lasting: Fraction | None, promised: Fraction, count: int
    ) -> None:
        """The mean rate where the frames do not come evenly or the file says none."""
        if len(times) < 2:
            return
        steps = np.diff(times)
        usual = float(1 / self.fps) if self.fps else float(np.median(steps))
        # That a last frame lasts longer is known from its packet or the whole video's duration.
        last = max(float(lasting or usual), float(promised) - times[-1])
        even = self.fps is not None and float(np.abs(steps - usual).max()) < 0.5 * usual
        if even and abs(last - usual) < 0.5 * usual:
            return
        span = times[-1] - times[0] + last
        if span > 0:
            self.fps = Fraction(count / span).limit_denominator(1000)
            self._notes += (
                f"{self._path} has a variable frame rate; its overlay plays at the mean of "
                f"{float(self.fps):.3g} frames per second",
            )

    def _write(self, frame: NDArray[np.uint8]) -> None:
        rest = frame.data.cast("B")
        while rest:
            rest = rest[self._file.write(rest) :]

    def read(self, first: int, end: int) -> NDArray[np.uint8]:
        """Frames `first` to `end - 1`: (3, end - first, y, x)."""
        band = np.empty((end - first, *self.shape[1:], self.channels), np.uint8)
        rest = band.data.cast("B") if band.size else memoryview(b"")
        with self._lock:
            self._file.seek(first * prod(band.shape[1:]))
            while rest:
                count = self._file.readinto(rest)
                if not count:
                    raise InputError(f"the scratch file of {self._path} was cut; is its disk full?")
                rest = rest[count:]
        return np.moveaxis(band, -1, 0)

    def close(self) -> None:
        """Remove the scratch file; a second call does nothing."""
        self._file.close()


class _Opening:
    """Frames at the start that refer to ones before it, as a cut leaves them: players skip them.

    Args:
        recorded: the format can begin anywhere, before the first key frame too.
    """

    def __init__(self, recorded: bool) -> None:
        self._recorded = recorded
        self._first: int | None = None  # when the first key frame is shown

    def leads(self, packet: "Packet[VideoStream]") -> bool:
        """Whether a packet's frame is shown before the first key frame."""
        if self._first is None and packet.is_keyframe:
            self._first = packet.pts
        return self._is_before(packet.pts)

    def before_first(self, frame: "VideoFrame") -> bool:
        """The same of a decoded frame."""
        return self._is_before(frame.pts)

    def _is_before(self, pts: int | None) -> bool:
        if self._first is None:
            return self._recorded
        return pts is not None and pts < self._first


def _video_stream(path: Path, container: "InputContainer") -> tuple["VideoStream", tuple[str, ...]]:
    """The stream that players show, never a cover picture; and what is to be said about it."""
    streams = container.streams.video
    if any(one.codec_context is None for one in streams):
        raise InputError(
            f"{path} holds a video in a codec that FFmpeg does not know; it is damaged, or has to "
            f"be encoded otherwise"
        )
    moving = [one for one in streams if not one.disposition & type(one.disposition).attached_pic]
    if not moving:
        what = "only a cover picture" if streams else "no video stream"
        raise InputError(f"{path} holds {what}; is it truncated?")
    best = container.streams.best("video")
    if best not in moving:
        best = moving[0]
    if len(moving) == 1:
        return best, ()
    return best, (
        f"{path} holds {len(moving)} videos; the one that players show is read, stream "
        f"{best.index}: {best.width} x {best.height}",
    )


def _pixel_aspect(stream: "VideoStream", turned: int) -> Fraction | None:
    """Width over height of a pixel as it is shown; None where the file does not say."""
    aspect = stream.codec_context.sample_aspect_ratio
    if not aspect:
        return None
    return Fraction(1 / aspect if turned % 180 else aspect)


def video_shape(path: Path | str) -> tuple[int, int, int]:
    """(frame, y, x) as a video's header promises them; nothing is decoded.

    Raises:
        InputError: the file is no video, or damaged at its beginning.
        EnvironmentMismatchError: PyAV is not installed.
    """
    av = import_optional("av", "video")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a video ({error}); is it truncated?") from error
    with container:
        stream, _ = _video_stream(Path(path), container)
        return max(1, round(_frames(stream))), stream.height, stream.width


def _frames(stream: "VideoStream") -> float:
    """How many frames the header promises, or the duration makes likely."""
    return stream.frames or float(_seconds(stream) * (stream.average_rate or 0))


def _seconds(stream: "VideoStream") -> Fraction:
    """How long the video stream lasts, as the header says; 0 where it does not."""
    if stream.duration and stream.time_base:
        return Fraction(stream.duration * stream.time_base)
    text = stream.metadata.get("DURATION", "")  # of a Matroska stream, 00:01:16.200000000
    try:
        hours, minutes, seconds = text.split(":")
        return Fraction(hours) * 3600 + Fraction(minutes) * 60 + Fraction(seconds)
    except ValueError:
        return Fraction(0)


def _no_room(path: Path, folder: Path, why: str) -> NoRoomError:
    return NoRoomError(
        f"{folder} has too little room for the decoded video {path} ({why}); give a scratch folder "
        f"on another disk"
    )
