"""Videos, decoded once into a scratch file and read from there in bands of frames."""

import tempfile
from fractions import Fraction
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError, OutputError
from nnunet_octreenca.images.source import ImageInfo
from nnunet_octreenca.libraries import import_optional
from nnunet_octreenca.resources import free_disk

# Without it FFmpeg paints over what it cannot decode. "bitstream" and "buffer" found nothing
# more in files with flipped bytes, and refuse some that are merely unusual.
_STRICT = {"err_detect": "crccheck+explode"}
# Containers whose end can be missing without an error.
_OPEN_ENDED = ("matroska", "webm", "avi")


class VideoSource:
    """A video as (frame, y, x) of 8-bit RGB.

    All frames are decoded when it is opened, into a file without a name that vanishes with the
    process however that ends; bands are read from it, not mapped, for mapped pages count as
    memory of the process.

    Args:
        path: mp4, avi, mkv, mov or webm; what FFmpeg reads.
        scratch: folder for the scratch file, width x height x frames x 3 bytes; the system's
            folder for temporary files if left out.

    Attributes:
        shape: (frame, y, x), as many frames as could be decoded.
        fps: frames per second, `info`'s; None where the file does not say.
        spacing: ones.

    Raises:
        InputError: the file is missing, truncated, damaged (naming the frame) or no video.
        OutputError: the scratch folder has too little room, or is none.
        EnvironmentMismatchError: PyAV is not installed.
    """

    shape: tuple[int, ...]
    channels: int = 3
    dtype: np.dtype = np.dtype(np.uint8)
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __init__(self, path: Path | str, *, scratch: Path | str | None = None) -> None:
        self._path = Path(path)
        self.fps: Fraction | None = None
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
            if not container.streams.video:
                raise InputError(f"{path} holds no video stream; is it truncated?")
            self._require_room(container, folder)
            self._file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            try:
                self.shape = self._decode(container, av)
                self.info = ImageInfo(is_video=True, fps=self.fps)
            except OSError as error:
                self._file.close()
                raise _no_room(folder, str(error)) from error
            except BaseException:
                self._file.close()
                raise

    def _require_room(self, container: Any, folder: Path) -> None:
        if not folder.is_dir():
            raise OutputError(f"{folder} is no folder to decode a video in; give one that exists")
        stream = container.streams.video[0]
        frames = stream.frames or float(_seconds(container) * (stream.average_rate or 0))
        wanted = frames * stream.width * stream.height * self.channels
        free = free_disk(folder)
        if wanted > free:
            raise _no_room(folder, f"{wanted / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free")

    def _decode(self, container: Any, av: Any) -> tuple[int, int, int]:
        stream = container.streams.video[0]
        # Threads by frames would report an error at a later frame, or not at all.
        stream.thread_type = "SLICE"
        stream.codec_context.options = _STRICT
        self.fps = stream.average_rate or stream.guessed_rate
        size: tuple[int, int] | None = None
        count, last = 0, None
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise InputError(
                        f"{self._path} is truncated or damaged at frame "
                        f"{self._number(packet, count)}"
                    )
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:
                    raise InputError(
                        f"{self._path} cannot be decoded at frame "
                        f"{self._number(packet, count)} ({error.strerror}); it is "
                        f"damaged there"
                    ) from error
                for frame in frames:
                    if frame.is_corrupt:
                        raise InputError(f"{self._path} is damaged at frame {count}")
                    if size not in (None, (frame.height, frame.width)):
                        raise InputError(
                            f"{self._path} changes its size at frame {count}, from {size} to "
                            f"{(frame.height, frame.width)}; cut it there"
                        )
                    size = (frame.height, frame.width)
                    self._write(np.ascontiguousarray(frame.to_ndarray(format="rgb24")))
                    count += 1
                    last = frame
        except av.FFmpegError as error:
            raise InputError(
                f"{self._path} cannot be read after frame {count - 1} ({error.strerror}); it is "
                f"truncated or damaged"
            ) from error
        if size is None:
            raise InputError(f"{self._path} holds no frame that can be decoded")
        self._require_end(container, last, count)
        return (count, *size)

    def _number(self, packet: Any, count: int) -> int:
        """The frame that a packet holds: packets come in another order than frames."""
        if packet.pts is None or self.fps is None:
            return count
        start = packet.stream.start_time or 0
        return max(0, round((packet.pts - start) * packet.time_base * self.fps))

    def _require_end(self, container: Any, last: Any, count: int) -> None:
        """Refuse a file that ends before its header says, which FFmpeg takes for its end."""
        if not any(name in container.format.name for name in _OPEN_ENDED) or not self.fps:
            return
        frame = float(1 / self.fps)
        promised = float(_seconds(container))
        if "avi" in container.format.name:  # whose duration FFmpeg corrects silently
            promised = container.streams.video[0].frames * frame
        ended = (count - 1) * frame if last.time is None else last.time
        if ended + 1.5 * frame < promised:
            raise InputError(
                f"{self._path} ends after frame {count - 1} ({ended + frame:.2f} s) and should "
                f"last {promised:.2f} s; it is truncated or damaged there"
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


def _seconds(container: Any) -> Fraction:
    """How long the video stream lasts, as the header says; 0 where it does not."""
    stream = container.streams.video[0]
    text = stream.metadata.get("DURATION", "")  # of a Matroska stream, 00:01:16.200000000
    try:
        hours, minutes, seconds = text.split(":")
        return Fraction(hours) * 3600 + Fraction(minutes) * 60 + Fraction(seconds)
    except ValueError:
        pass
    if stream.duration:
        return stream.duration * stream.time_base
    # The whole file's duration is that of its longest stream, sound included.
    if container.duration and len(container.streams) == 1:
        return Fraction(container.duration, 1_000_000)
    return Fraction(0)


def _no_room(folder: Path, why: str) -> OutputError:
    return OutputError(
        f"{folder} has too little room for the decoded video ({why}); give a scratch folder on "
        f"another disk"
    )
