"""Frames of an animation of the automaton at work, drawn from what was watched."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.labels.legend import fitting, font, legend
from nnunet_octreenca.labels.output import class_name
from nnunet_octreenca.labels.palette import colour
from nnunet_octreenca.prediction.watch import Plane, View, Watched

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = NDArray[np.uint8]
"""(y, x, 3) RGB."""

_PAPER, _INK, _QUIET, _LINE = (255, 255, 255), (38, 50, 56), (110, 125, 132), (207, 216, 220)
_BELOW, _ABOVE = np.array((94, 79, 162)), np.array((232, 113, 10))  # hidden channels
_BAR = (0, 121, 107)
_HOLD_LEVEL, _HOLD_LAST = 4, 16  # frames that the first view of a level and the last are shown
_PAD = 12


class Frames:
    """The frames, each drawn when it is asked for.

    Args:
        watched: of `watch`.
        width: pixels, rounded up to an even number.

    Attributes:
        shape: (y, x) of every frame, both even.
        holds: how many frames long each view is shown.
    """

    def __init__(self, watched: Watched, width: int = 960) -> None:
        self._watched = watched
        self._width = width + width % 2
        self._text = max(11, self._width // 60)
        self._panel = (self._width - 4 * _PAD) // 3
        self._scales = _scales(watched.views)
        self._windows = _windows(watched.views[-1].image)
        entries = [
            (colour(label), class_name(watched.names, label)) for label in watched.heads if label
        ]
        self._legend = legend(entries, self._width)
        self._top = _PAD + int(self._text * 3.6)
        self._bar_top = self._top + self._panel + _PAD
        height = self._bar_top + int(self._text * 2.2) + len(self._legend)
        self.shape = (height + height % 2, self._width)
        last = len(watched.views) - 1
        self.holds = [
            _HOLD_LAST if number == last else _HOLD_LEVEL if view.step == 0 else 1
            for number, view in enumerate(watched.views)
        ]

    def draw(self, number: int) -> Picture:
        """Frame of a view."""
        from PIL import Image, ImageDraw

        view = self._watched.views[number]
        canvas = Image.new("RGB", (self._width, self.shape[0]), _PAPER)
        pen = ImageDraw.Draw(canvas)
        self._captions(pen, view)
        for place, tiles in enumerate((self._image(view), self._hidden(view), self._classes(view))):
            left = _PAD + place * (self._panel + _PAD)
            if tiles:
                self._mosaic(canvas, tiles, view, (left, self._top))
            else:
                pen.rectangle(
                    (left, self._top, left + self._panel - 1, self._top + self._panel - 1),
                    outline=_LINE,
                )
                middle = (left + self._panel // 2, self._top + self._panel // 2)
                words = "logits are trained\non the finest level only"
                pen.text(middle, words, _QUIET, font(self._text), anchor="mm", align="center")
        self._progress(pen, view)
        canvas.paste(Image.fromarray(self._legend), (0, self.shape[0] - len(self._legend)))
        return np.asarray(canvas)

    def _captions(self, pen: Any, view: View) -> None:
        watched, size = self._watched, self._text
        cells = " x ".join(map(str, watched.shapes[view.level]))
        where = f"level {view.level} ({cells} cells), step {view.step} of "
        where += f"{watched.steps[view.level]}"
        right = int(font(size).getlength(where))
        title = fitting(watched.title, self._width - right - 4 * _PAD, size)
        pen.text((_PAD, _PAD), title, _INK, font(size))
        pen.text((self._width - _PAD, _PAD), where, _INK, font(size), anchor="ra")
        small = font(max(10, size - 3))
        names = ("image on this level", "hidden channels", "classes")
        if len(watched.shapes[0]) == 3:
            names = ("image on this level", "hidden channels, middle plane", "classes")
        for place, name in enumerate(names):
            left = _PAD + place * (self._panel + _PAD)
            pen.text((left, self._top - _PAD // 3), name, _QUIET, small, anchor="ls")

    def _image(self, view: View) -> list[Picture]:
        return [_grey(plane, self._windows) for plane in view.image]

    def _hidden(self, view: View) -> list[Picture]:
        scales = self._scales[view.level]
        return [
            _diverging(channel / scale) for channel, scale in zip(view.hidden, scales, strict=True)
        ]

    def _classes(self, view: View) -> list[Picture]:
        if view.probabilities is None:
            return []
        return [
            _coloured(_grey(plane, self._windows), shares, self._watched.heads)
            for plane, shares in zip(view.image, view.probabilities, strict=True)
        ]

    def _mosaic(
        self, canvas: "Image", tiles: Sequence[Picture], view: View, corner: tuple[int, int]
    ) -> None:
        """Tiles side by side in a square panel, each in the proportions of its plane."""
        from PIL import Image

        columns = int(np.ceil(np.sqrt(len(tiles))))
        gap = 4 if columns > 1 else 0
        side = (self._panel - (columns - 1) * gap) // columns
        volume = len(tiles) == 3 and len(self._watched.shapes[0]) == 3
        for number, tile in enumerate(tiles):
            height, width = self._extent(number if volume else 0)
            scale = side / max(height, width)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            left = corner[0] + number % columns * (side + gap) + (side - size[0]) // 2
            top = corner[1] + number // columns * (side + gap)
            resized = Image.fromarray(tile).resize(size, Image.Resampling.NEAREST)
            canvas.paste(resized, (left, top))

    def _extent(self, across: int) -> tuple[float, float]:
        """mm (y, x) of the middle plane across an axis; of a picture in whatever unit."""
        shape, spacing = self._watched.shapes[0], self._watched.spacing
        sizes = [cells * mm for cells, mm in zip(shape, spacing, strict=True)]
        if len(sizes) == 3:
            del sizes[across]
        return sizes[0], sizes[1]

    def _progress(self, pen: Any, view: View) -> None:
        """All levels in their order, and how far the pass is."""
        steps, gap = self._watched.steps, 3
        small = font(max(10, self._text - 3))
        unit = (self._width - 2 * _PAD - gap * (len(steps) - 1)) / max(sum(steps), 1)
        left, top = float(_PAD), self._bar_top
        for level in reversed(range(len(steps))):
            length = steps[level] * unit
            done = length if level > view.level else 0.0
            if level == view.level and steps[level]:
                done = length * view.step / steps[level]
            pen.rectangle((left, top, left + length, top + 6), fill=_LINE)
            if done:
                pen.rectangle((left, top, left + done, top + 6), fill=_BAR)
            name = f"level {level}"
            if small.getlength(name) > length:
                name = str(level)
            pen.text((left, top + 10), name, _INK if level == view.level else _QUIET, small)
            left += length + gap


def _scales(views: Sequence[View]) -> dict[int, NDArray[np.float32]]:
    """Of every level and hidden channel, what is drawn in full colour."""
    found: dict[int, NDArray[np.float32]] = {}
    for view in views:
        size = np.quantile(np.abs(view.hidden), 0.99, axis=(1, 2))
        found[view.level] = np.maximum(found.get(view.level, np.float32(1e-6)), size)
    return found


def _windows(planes: Sequence[Plane]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Black and white of every image channel, from the finest level."""
    values = np.concatenate([plane.reshape(len(plane), -1) for plane in planes], axis=1)
    low, high = np.quantile(values, (0.005, 0.995), axis=1)
    return low, np.maximum(high, low + 1e-6)


def _grey(plane: Plane, windows: tuple[NDArray[np.float32], NDArray[np.float32]]) -> Picture:
    """Three channels or more as red, green and blue, else the first as grey."""
    shown = plane[:3] if len(plane) >= 3 else plane[:1]
    low, high = (each[: len(shown), None, None] for each in windows)
    values = np.clip((shown - low) / (high - low), 0, 1)
    picture: Picture = np.round(255 * np.moveaxis(values, 0, -1)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


def _diverging(values: NDArray[np.float32]) -> Picture:
    """-1 violet, 0 white, 1 orange.

    >>> _diverging(np.array([[-1, 0, 2]], np.float32))[0].tolist()
    [[94, 79, 162], [255, 255, 255], [232, 113, 10]]
    """
    share = np.minimum(np.abs(values), 1)[..., None]
    full = np.where(values[..., None] < 0, _BELOW, _ABOVE)
    picture: Picture = np.round(255 * (1 - share) + full * share).astype(np.uint8)
    return picture


def _coloured(image: Picture, shares: Plane, heads: Sequence[int]) -> Picture:
    """Classes over the image, as opaque as they are probable; a later region over an earlier."""
    picture = image.astype(np.float32)
    for label, share in zip(heads, shares, strict=True):
        if label:
            picture += share[..., None] * (np.array(colour(label)) - picture)
    drawn: Picture = np.round(picture).astype(np.uint8)
    return drawn


def gif_palette(frames: Frames, count: int = 6) -> NDArray[np.uint8]:
    """Frames spread over the animation, side by side: what its colours are chosen from."""
    last = len(frames.holds) - 1
    chosen = sorted({round(last * n / (count - 1)) for n in range(count)})
    return np.concatenate([frames.draw(number) for number in chosen])
