"""One step of the automaton: perceive, update, fire.

python docs/pictures/step.py [FOLDER]
"""

from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from style import (
    GREY,
    INK,
    LIGHT_ORANGE,
    LIGHT_TEAL,
    LIGHT_VIOLET,
    LINE,
    ORANGE,
    PAPER,
    QUIET,
    TEAL,
    VIOLET,
    arrow,
    box,
    canvas,
    save,
)

from nnunet_octreenca.ops.fire import fire_mask

GRID, CELL = 7, 0.23  # cells per side, inches per cell
CENTRE = (3, 3)
SEED = 4
MIDDLE = 1.72
# Channels of a cell's state, from the top: image, logit, hidden.
DARK = {LIGHT_VIOLET: VIOLET, LIGHT_ORANGE: ORANGE, LIGHT_TEAL: TEAL}
CHANNELS = [LIGHT_VIOLET] * 3 + [LIGHT_ORANGE] + [LIGHT_TEAL] * 12


def grid(axes: Any, x: float, y: float, face: np.ndarray, marked: int = 0) -> None:
    """Cells with a colour each; `marked` cells around the centre get a frame."""
    for row in range(GRID):
        for column in range(GRID):
            corner = (x + column * CELL, y + row * CELL)
            axes.add_patch(
                Rectangle(corner, CELL, CELL, facecolor=face[row, column], edgecolor=LINE, lw=0.6)
            )
    if marked:
        corner = (x + (CENTRE[1] - marked) * CELL, y + (CENTRE[0] - marked) * CELL)
        side = (2 * marked + 1) * CELL
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=TEAL, lw=2))
    corner = (x + CENTRE[1] * CELL, y + CENTRE[0] * CELL)
    axes.add_patch(Rectangle(corner, CELL, CELL, facecolor=TEAL, edgecolor=INK, lw=0.8))


def bar(axes: Any, x: float, colours: list[str], text: str) -> None:
    """A cell's channels as a column around the middle line."""
    height = 0.098
    y = MIDDLE - len(colours) * height / 2
    for number, colour in enumerate(colours):
        axes.add_patch(
            Rectangle((x, y + number * height), 0.2, height, facecolor=colour, edgecolor=QUIET,
                      lw=0.5)
        )  # fmt: skip
    axes.text(x + 0.1, MIDDLE + 0.98, text, ha="center", va="top", fontsize=8.5, color=QUIET)


def heading(axes: Any, x: float, text: str) -> None:
    """What happens there."""
    axes.text(x, 0.5, text, ha="center", va="center", weight="bold", fontsize=11)


def main() -> None:
    """Draw and save."""
    figure, axes = canvas(10.6, 3.15)
    side = GRID * CELL
    top = MIDDLE - side / 2

    heading(axes, 0.3 + side / 2, "state")
    grid(axes, 0.3, top, np.full((GRID, GRID), GREY), marked=1)
    axes.text(
        0.3 + side / 2, MIDDLE + 0.98, "a cell and its neighbours", ha="center", va="top",
        fontsize=8.5, color=QUIET,
    )  # fmt: skip

    heading(axes, 2.95, "1 perceive")
    arrow(axes, (2.0, MIDDLE), (2.35, MIDDLE))
    bar(axes, 2.52, CHANNELS, "state\n16")
    bar(axes, 3.18, [DARK[colour] for colour in CHANNELS], "perceived\n16")

    heading(axes, 5.0, "2 update")
    arrow(axes, (3.5, MIDDLE), (3.85, MIDDLE))
    box(axes, 3.92, MIDDLE - 0.55, 0.78, 1.1, "linear\n32 to 64", face=GREY, fontsize=8.5)
    box(axes, 4.84, MIDDLE - 0.3, 0.5, 0.6, "ReLU", face=GREY, fontsize=8.5)
    box(axes, 5.48, MIDDLE - 0.55, 0.78, 1.1, "linear\n64 to 13", face=GREY, fontsize=8.5)
    arrow(axes, (6.32, MIDDLE), (6.62, MIDDLE))
    bar(axes, 6.68, CHANNELS[3:], "change\n13")

    heading(axes, 8.1, "3 fire")
    arrow(axes, (7.0, MIDDLE), (7.25, MIDDLE))
    fired = fire_mask((GRID, GRID), fire_rate=0.5, seed=SEED, level=0, step=0).numpy()
    assert fired[CENTRE], "the picture's cell should fire"
    face = np.where(fired, LIGHT_TEAL, PAPER)
    grid(axes, 7.33, top, face)
    axes.text(
        7.33 + side / 2, MIDDLE + 0.98, "half of the cells apply\ntheir change in a step",
        ha="center", va="top", fontsize=8.5, color=QUIET,
    )  # fmt: skip

    heading(axes, 9.95, "new state")
    arrow(axes, (9.05, MIDDLE), (9.7, MIDDLE))
    axes.text(9.37, MIDDLE - 0.1, "add", ha="center", va="bottom", fontsize=8.5, color=QUIET)
    bar(axes, 9.85, CHANNELS, "")
    height = 0.098
    y = MIDDLE - len(CHANNELS) * height / 2
    for first, count, text, colour in (
        (0, 3, "image", VIOLET),
        (3, 1, "logit", ORANGE),
        (4, 12, "hidden", TEAL),
    ):
        axes.text(
            10.12, y + (first + count / 2) * height, text, va="center", fontsize=8.5, color=colour
        )
    axes.set_aspect("equal")
    save(figure, "step")


if __name__ == "__main__":
    main()
