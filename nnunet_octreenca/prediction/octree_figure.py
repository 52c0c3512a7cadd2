"""A figure of a network's octree on a case: shapes, steps, and how far each level sees."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_octreenca.labels.output import atomic_output
from nnunet_octreenca.prediction.watch import Watched

_INK, _QUIET, _MARK = "#263238", "#78909c", "#e8710a"
_SIDE, _GAP, _TOP, _BOTTOM = 1.7, 0.45, 0.75, 1.3  # inches


def write_octree_figure(watched: Watched, path: Path) -> None:
    """Draw the levels on the middle plane, with what the cell in the middle sees on each.

    Args:
        watched: of `watch`; the first view of every level is used.
        path: the file, `.png` or `.svg`.

    Raises:
        OutputError: the disk is full, or the folder is not there.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": "octreenca", "font.size": 9, "text.color": _INK, "text.parse_math": False
    }  # fmt: skip
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # nnU-Net sets a style of its own
        matplotlib.rcParams.update(settings)
        levels = len(watched.steps)
        width = levels * (_SIDE + _GAP) - _GAP + 0.5
        height = _TOP + _SIDE + _BOTTOM
        figure = Figure((width, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        for level in range(levels):
            _draw_level(axes, watched, level, 0.25 + level * (_SIDE + _GAP))
        axes.text(0.25, 0.12, watched.title, va="top", weight="bold")
        axes.text(0.25, height - 0.1, _total(watched), va="bottom", color=_QUIET, fontsize=8)
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        axes.axis("off")
        with atomic_output(path) as temporary:
            metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
            figure.savefig(
                temporary, format=path.suffix[1:].lower(), dpi=150, metadata=metadata
            )  # fmt: skip


def _draw_level(axes: Any, watched: Watched, level: int, left: float) -> None:
    from matplotlib.patches import Rectangle

    view = next(each for each in watched.views if each.level == level)
    plane = view.image[0]
    grey = plane[:3] if len(plane) >= 3 else plane[:1]
    finest = next(each for each in reversed(watched.views) if each.level == 0).image[0]
    low, high = (
        np.quantile(finest[: len(grey)], share, axis=(1, 2))[:, None, None]
        for share in (0.005, 0.995)
    )
    values = np.clip((grey - low) / np.maximum(high - low, 1e-6), 0, 1)
    picture = np.broadcast_to(np.moveaxis(values, 0, -1), (*values.shape[1:], 3))
    spacing, cells = watched.spacing[-2:], watched.shapes[0][-2:]
    size = np.array([n * mm for n, mm in zip(cells, spacing, strict=True)])
    height, width = _SIDE * size / size.max()
    top = _TOP + (_SIDE - height) / 2
    extent = (left, left + width, top + height, top)
    axes.imshow(picture, extent=extent, interpolation="nearest")
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=_INK, lw=0.8))
    # What the cell in the middle sees by the steps of this level.
    sees = np.array(watched.reach[level][-2:]) / np.array(cells) * (height, width)
    middle, size = np.array((height, width)) / 2, np.array((height, width))
    corner, end = np.maximum(middle - sees, 0), np.minimum(middle + sees, size)
    seen = Rectangle(
        (left + corner[1], top + corner[0]), end[1] - corner[1], end[0] - corner[0],
        fill=False, edgecolor=_MARK, linewidth=1.6,
    )  # fmt: skip
    axes.add_patch(seen)
    axes.text(left, _TOP - 0.08, f"level {level}", va="bottom", weight="bold")
    for row, text in enumerate(level_texts(watched, level)):
        axes.text(left, _TOP + _SIDE + 0.1 + 0.19 * row, text, va="top", fontsize=8)


def level_texts(watched: Watched, level: int) -> list[str]:
    """What is said of a level: its cells, its steps, and how far they see."""
    steps, reach = watched.steps[level], watched.reach[level]
    cell = [
        f"{watched.spacing[axis] * far / steps:.3g}" if steps else "–"
        for axis, far in enumerate(reach)
    ]
    far = _lengths(watched, reach)
    return [
        f"{_times(watched.shapes[level])} cells",
        f"cell {' x '.join(cell)} {watched.unit}",
        f"{steps} steps",
        f"see ±{far} {watched.unit}",
    ]


def _total(watched: Watched) -> str:
    total = [sum(axis) for axis in zip(*watched.reach, strict=True)]
    return (
        f"orange: what the cell in the middle sees by a level's steps\nall levels together: "
        f"±{_lengths(watched, total)} {watched.unit}"
    )


def _lengths(watched: Watched, cells: Sequence[int]) -> str:
    return " x ".join(f"{n * mm:.3g}" for n, mm in zip(cells, watched.spacing, strict=True))


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
