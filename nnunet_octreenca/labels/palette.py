"""One colour per label, the same in every file we write."""

import colorsys

import numpy as np
from numpy.typing import NDArray

# Okabe and Ito's colours, told apart with every kind of colour blindness, then Paul Tol's
# "muted" where it adds to them. Black is left out: label 0 is the background, and transparent.
# The first two are far apart also on pink tissue, on red retinas and on grey scans.
_CHOSEN = (
    (86, 180, 233),  # sky blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
    (213, 94, 0),  # vermillion
    (0, 114, 178),  # blue
    (204, 121, 167),  # reddish purple
    (136, 34, 85),  # wine
    (51, 34, 136),  # indigo
    (153, 153, 51),  # olive
    (170, 68, 153),  # purple
    (17, 119, 51),  # green
    (221, 204, 119),  # sand
    (102, 17, 0),  # brown
)
_GOLDEN = 0.618034  # of a turn: each new hue falls into the widest gap
_TONES = ((0.55, 0.85), (0.35, 0.7), (0.75, 0.75))  # lightness and saturation, in turn


def _table() -> NDArray[np.uint8]:
    colours = [(0, 0, 0), *_CHOSEN]
    number = 0
    while len(colours) < 256:
        lightness, saturation = _TONES[number % len(_TONES)]
        rgb = colorsys.hls_to_rgb(number * _GOLDEN % 1, lightness, saturation)
        colour = tuple(round(255 * part) for part in rgb)
        if colour not in colours:
            colours.append((colour[0], colour[1], colour[2]))
        number += 1
    return np.array(colours, np.uint8)


PALETTE = _table()
PALETTE.setflags(write=False)
"""(256, 3) uint8: the RGB colour of each label; row 0 is black and meant to be transparent."""


def colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a label, 0 to 255 each; from label 256 on they repeat.

    >>> colour(1)
    (86, 180, 233)
    >>> colour(256) == colour(1)
    True
    """
    red, green, blue = PALETTE[(label - 1) % 255 + 1 if label > 0 else 0].tolist()
    return red, green, blue
