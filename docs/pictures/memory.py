"""Which rows of each level are in memory while one band of an image is computed.

python docs/pictures/memory.py [FOLDER]

The windows are those that the streaming code computes for a band on a GPU.
"""

from typing import Any

from matplotlib.patches import Rectangle
from style import (
    INK,
    LIGHT_ORANGE,
    LIGHT_TEAL,
    LINE,
    ORANGE,
    PAPER,
    QUIET,
    TEAL,
    arrow,
    canvas,
    save,
)

from nnunet_octreenca.bands import Rows, spans
from nnunet_octreenca.inference.stream import windows_of
from nnunet_octreenca.octree import level_shapes

ROWS, COLUMNS = 2048, 1400
BAND = Rows(768, 1024)
FACTORS, STEPS = [(2, 2)] * 4, [10, 10, 10, 10, 20]
TOP, HEIGHT = 0.85, 3.0  # inches
WIDE, GAP = 1.0, 0.42


def column(
    axes: Any, x: float, title: str, below: str, parts: list[tuple[float, float, str]]
) -> None:
    """A level (or a file) with parts of its height coloured, given in rows of the image."""
    for first, end, colour in parts:
        top, height = TOP + first / ROWS * HEIGHT, (end - first) / ROWS * HEIGHT
        axes.add_patch(Rectangle((x, top), WIDE, height, facecolor=colour, edgecolor="none"))
    axes.add_patch(Rectangle((x, TOP), WIDE, HEIGHT, fill=False, edgecolor=QUIET, lw=1))
    axes.text(x + WIDE / 2, TOP - 0.12, title, ha="center", va="bottom", weight="bold")
    axes.text(
        x + WIDE / 2, TOP + HEIGHT + 0.12, below, ha="center", va="top", fontsize=8.5, color=QUIET
    )


def main() -> None:
    """Draw and save."""
    shapes = level_shapes((ROWS, COLUMNS), FACTORS)
    windows = windows_of(BAND, (ROWS, COLUMNS), FACTORS, STEPS)
    span = spans(FACTORS)
    coarsest = len(shapes) - 1
    figure, axes = canvas(0.4 + 7 * WIDE + 6 * GAP, TOP + HEIGHT + 0.62)
    read = max(w.end * s for w, s in zip(windows, span, strict=False))
    first = min(w.first * s for w, s in zip(windows, span, strict=False))
    places = [0.2 + number * (WIDE + GAP) for number in range(7)]

    column(
        axes, places[0], "image file", f"{read - first} of {ROWS:,} rows\nin memory",
        [(0, ROWS, PAPER), (first, read, ORANGE)],
    )  # fmt: skip
    column(
        axes, places[1], f"level {coarsest}", f"all {shapes[-1][0]} rows,\n"
        f"{STEPS[-1]} steps", [(0, ROWS, TEAL)],
    )  # fmt: skip
    for number, level in enumerate(reversed(range(coarsest)), 2):
        window = windows[level]
        inside = (window.first * span[level], window.end * span[level])
        column(
            axes, places[number], f"level {level}",
            f"{window.end - window.first} of {shapes[level][0]:,} rows,\n{STEPS[level]} steps",
            [(0, BAND.first, LIGHT_TEAL), (*inside, TEAL)],
        )  # fmt: skip
    column(
        axes, places[6], "labels", "held whole,\n1 byte per pixel",
        [(0, BAND.first, LIGHT_ORANGE), (*BAND, ORANGE)],
    )  # fmt: skip

    middle = TOP + (BAND.first + BAND.end) / 2 / ROWS * HEIGHT
    for x in places[1:]:
        arrow(axes, (x - GAP + 0.06, middle), (x - 0.06, middle))
    # The margins get narrower from level to level: each step may spoil one row.
    edges = [(w.first * s, w.end * s) for w, s in zip(windows, span, strict=False)]
    for x, outer, inner in zip(places[3:], edges[:0:-1], edges[-2::-1], strict=False):
        for above, below in zip(outer, inner, strict=True):
            y = [TOP + above / ROWS * HEIGHT, TOP + below / ROWS * HEIGHT]
            axes.plot([x - GAP, x], y, color=TEAL, lw=0.7, ls=":")
    legend = [
        (TEAL, "state in memory"),
        (LIGHT_TEAL, "finished and released"),
        (ORANGE, "read or labelled now"),
        (LIGHT_ORANGE, "labelled before"),
    ]
    for number, (colour, text) in enumerate(legend):
        x = 0.2 + number * 2.35
        axes.add_patch(Rectangle((x, 0.2), 0.2, 0.17, facecolor=colour, edgecolor=LINE, lw=0.6))
        axes.text(x + 0.28, 0.29, text, va="center", fontsize=9, color=INK)
    axes.set_aspect("equal")
    save(figure, "memory")


if __name__ == "__main__":
    main()
