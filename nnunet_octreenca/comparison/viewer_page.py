"""What the viewers of volumes and of pictures share: their layers, the values of the template."""

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.comparison.overlays import RIGHT, LoadedCase
from nnunet_octreenca.files import JsonObject

TRUTH = "truth"
VIEWER_DATA = "data"
"""The template's name for JSON in which no "<" ends its script."""


def thinning(case: LoadedCase, most: int) -> int:
    """Every how many pixels or voxels along an axis one is kept, so that the page stays small."""
    step = 1
    while prod(-(-n // step) for n in case.truth.shape) > most:
        step += 1
    return step


def layers(
    cases: Mapping[str, LoadedCase],
    most: int,
    image: Callable[[LoadedCase, int], str],
    overlay: Callable[[NDArray[np.uint8], LoadedCase, int], str],
) -> list[JsonObject]:
    """Image, truth and outcomes of every case, as the page's scripts read them.

    Args:
        cases: by name.
        most: pixels or voxels of a layer; larger ones are thinned.
        image: a case's image as text, every so many pixels.
        overlay: outcomes as text, of that case, every so many pixels.
    """
    steps = {name: thinning(case, most) for name, case in cases.items()}
    return [
        {
            "case": name,
            "corner": list(case.corner[::-1]),
            "step": steps[name],
            "image": image(case, steps[name]),
            "overlays": {
                TRUTH: overlay((case.truth > 0) * np.uint8(RIGHT), case, steps[name]),
                **{m: overlay(o, case, steps[name]) for m, o in case.outcomes.items()},
            },
        }
        for name, case in cases.items()
    ]


def template_values(
    kind: str,
    title: str,
    note: str,
    cases: Mapping[str, LoadedCase],
    data: JsonObject,
    library: str,
    script: str,
) -> JsonObject:
    """What the page's template needs.

    Args:
        kind: "volumes" or "pictures".
        title: of the section.
        note: how to use it.
        cases: by name; the methods are the first one's.
        data: of the script.
        library: JavaScript with its notice.
        script: file name of our own, in `page/`.
    """
    first = next(iter(cases.values()))
    return {
        "kind": kind,
        "title": title,
        "note": note,
        "cases": list(cases),
        "methods": [*first.outcomes, TRUTH],
        VIEWER_DATA: json.dumps(data).replace("<", "\\u003c"),
        "library": library,
        "script": (Path(__file__).parent / "page" / script).read_text(encoding="utf-8"),
    }
