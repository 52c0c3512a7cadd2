"""Pictures within the page, shown by OpenSeadragon (`openseadragon/`), which needs no network."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_octreenca.comparison.overlays import OUTCOMES, LoadedCase
from nnunet_octreenca.comparison.viewer_page import layers, template_values
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonObject

OPENSEADRAGON = Path(__file__).parent / "openseadragon" / "openseadragon.min.js"
_MOST_PIXELS = 16_000_000
_QUALITY = 90  # of JPEG


def picture_viewer(cases: Mapping[str, LoadedCase]) -> JsonObject:
    """What the page's template needs to show slides and other pictures.

    Args:
        cases: by name, of pictures.

    Raises:
        InputError: they are no pictures.
    """
    first = next(iter(cases.values()))
    if first.truth.ndim != 2:
        raise InputError("--viewer shows pictures, and these are none; leave it out")
    pictures = layers(
        cases,
        _MOST_PIXELS,
        lambda case, step: _jpeg(case.image, step),
        lambda outcomes, case, step: _overlay(outcomes, step),
    )
    note = (
        "Scroll or press + and - to zoom, drag or use the arrow keys to move, press 0 for the "
        "whole picture. Colours as above."
    )
    coarser = max(picture["step"] for picture in pictures)
    if coarser > 1:
        note += f" Large pictures are thinned: up to one pixel in {coarser} along each axis."
    library = OPENSEADRAGON.read_text(encoding="utf-8").partition("//# sourceMappingURL")[0]
    return template_values(
        "pictures",
        "Pictures",
        note,
        cases,
        {"cases": pictures},
        f"/* OpenSeadragon 6.1.1, BSD-3-Clause, (c) 2009 CodePlex Foundation, "
        f"2010-2025 OpenSeadragon contributors */\n{library}",
        "pictures.js",
    )


def _jpeg(image: NDArray[np.uint8], step: int) -> str:
    """A data URI of (1 or 3 channels, y, x), each pixel the mean of those it stands for."""
    rows = np.moveaxis(image, 0, -1)
    shown = Image.fromarray(rows[..., 0] if rows.shape[-1] == 1 else np.ascontiguousarray(rows))
    if step > 1:
        shown = shown.reduce(step)
    data = io.BytesIO()
    shown.save(data, "JPEG", quality=_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def _overlay(outcomes: NDArray[np.uint8], step: int) -> str:
    """A data URI of a PNG in the outcomes' colours, transparent where there is none."""
    start = step // 2  # of each square the middle
    kept = outcomes[start::step, start::step]
    wanted = tuple(-(-n // step) for n in outcomes.shape)
    kept = np.pad(kept, [(0, w - k) for w, k in zip(wanted, kept.shape, strict=True)], "edge")
    shown = Image.fromarray(np.ascontiguousarray(kept), "P")
    shown.putpalette([0, 0, 0, *(value for _, colour in OUTCOMES.values() for value in colour)])
    data = io.BytesIO()
    shown.save(data, "PNG", transparency=0, optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
