"""A folder of frames as one video (frame, y, x)."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import orientation
from nnunet_octreenca.images.slide_reader import SlideReader, open_reader
from nnunet_octreenca.images.source import ImageInfo
from nnunet_octreenca.images.stripes import StripedSource
from nnunet_octreenca.result_record import recorded_results

FRAME_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers within names by their value.

    >>> sorted(["frame_10.png", "frame_9.png"], key=natural_order)
    ['frame_9.png', 'frame_10.png']
    """
    # split() puts the numbers at odd places, so that keys compare number with number.
    parts = re.split(r"(\d+)", name.casefold())
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)] + [(0, name)]


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder in natural order; neither hidden files nor results of a run."""
    results = recorded_results(folder)
    return sorted(
        (
            file
            for file in folder.iterdir()
            if file.suffix.lower() in FRAME_ENDINGS
            and file.name[0] != "."
            and file.is_file()
            and file.name not in results
        ),
        key=lambda file: natural_order(file.name),
    )


class FrameSource(StripedSource):
    """Pictures of the same size as frames; a file is opened when a band asks for its frame.

    Args:
        files: the frames in their order.
        channels: that the model takes.

    Attributes:
        shape: (frame, y, x).
        files: as they were given; `info` has them too.
        spacing: ones.

    Raises:
        InputError: there is no frame, one cannot be read, or one differs in size, channels or
            type from most others.
    """

    def __init__(self, files: Sequence[Path], *, channels: int | None = None) -> None:
        self.files = [Path(file) for file in files]
        self._wanted = channels
        if not self.files:
            raise InputError("a video of no frames cannot be read")
        kinds = []
        codes: Counter[int] = Counter()
        for number in range(len(self.files)):
            frame = self._open(number)
            kinds.append((frame.levels[0].shape, frame.channels, frame.dtype))
            codes[frame.orientation] += 1
            frame.close()
        usual, _ = Counter(kinds).most_common(1)[0]
        for file, kind in zip(self.files, kinds, strict=True):
            if kind != usual:
                raise InputError(
                    f"the frame {file} is {_describe(kind)}, the others are {_describe(usual)}; "
                    f"the frames of a video must be alike"
                )
        shape, count, dtype = usual
        notes = orientation.notes_of_many(codes, f"frames of {self.files[0].parent.name}")
        info = ImageInfo(is_video=True, files=tuple(self.files), notes=notes)
        super().__init__(
            (len(self.files), *shape), count, dtype, (1.0,) * (1 + len(shape)), 1, info
        )

    def _open(self, number: int) -> SlideReader:
        file = self.files[number]
        frame = open_reader(file, channels=self._wanted)
        if frame.planes > 1:
            frame.close()
            raise InputError(f"the frame {file} is a stack of {frame.planes} planes, not one")
        return frame

    def _read_stripe(self, first: int, end: int) -> Pixels:
        frame = self._open(first)
        try:
            return np.ascontiguousarray(frame.region(0, 0, 0, *self.shape[1:]))[:, None]
        except InputError as error:
            raise InputError(f"frame {first}: {error}") from error
        finally:
            frame.close()


def _describe(kind: tuple[tuple[int, ...], int, np.dtype]) -> str:
    shape, channels, dtype = kind
    return f"{' x '.join(map(str, shape))} with {channels} channels of {dtype}"
