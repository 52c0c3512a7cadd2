"""Volumes within the page, shown by NiiVue (`niivue/`, BSD licence), which needs no network."""

import base64
import gzip
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.comparison.overlays import OUTCOMES, RIGHT, LoadedCase
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonObject

NIIVUE = Path(__file__).parent / "niivue" / "niivue.umd.js"
_SCRIPT = Path(__file__).parent / "page" / "viewer.js"
_MOST_VOXELS = 4_000_000
TRUTH = "truth"
VIEWER_DATA = "data"
"""The template's name for JSON in which no "<" ends its script."""


def volume_viewer(cases: Mapping[str, LoadedCase]) -> JsonObject:
    """What the page's template needs to show volumes.

    Args:
        cases: by name, of volumes.

    Raises:
        InputError: they are no volumes.
    """
    first = next(iter(cases.values()))
    if first.truth.ndim != 3 or first.video:
        raise InputError("--viewer shows volumes, and these are none; leave it out")
    library = NIIVUE.read_text(encoding="utf-8")
    steps = {name: thinning(case, _MOST_VOXELS) for name, case in cases.items()}
    volumes = [
        {
            "case": name,
            "corner": list(case.corner[::-1]),
            "step": steps[name],
            "image": nifti(case.image[0], case, steps[name]),
            "overlays": {
                TRUTH: nifti((case.truth > 0) * np.uint8(RIGHT), case, steps[name]),
                **{m: nifti(o, case, steps[name]) for m, o in case.outcomes.items()},
            },
        }
        for name, case in cases.items()
    ]
    colours = [(0, 0, 0), *(colour for _, colour in OUTCOMES.values())]
    table = {
        **{band: [c[n] for c in colours] for n, band in enumerate("RGB")},
        "A": [0] + [255] * len(OUTCOMES),
        "I": list(range(len(colours))),
        "labels": ["", *(name for name, _ in OUTCOMES.values())],
    }
    coarser = [name for name, step in steps.items() if step > 1]
    note = (
        "Click or scroll to move, or use the arrow keys, Page Up and Page Down. Colours as above."
    )
    if coarser:
        note += f" Large volumes are thinned: one voxel in {max(steps.values())} along each axis."
    # "<" would end the script that holds the text.
    text = json.dumps({"colours": table, "cases": volumes}).replace("<", "\\u003c")
    return {
        "kind": "volumes",
        "title": "Volumes",
        "note": note,
        "cases": list(cases),
        "methods": [*first.outcomes, TRUTH],
        VIEWER_DATA: text,
        "library": f"/* NiiVue 0.69.0, BSD-2-Clause, (c) 2021 Niivue */\n{library}",
        "script": _SCRIPT.read_text(encoding="utf-8"),
    }


def thinning(case: LoadedCase, most: int) -> int:
    """Every how many pixels or voxels along an axis one is kept, so that the page stays small."""
    step = 1
    while prod(-(-n // step) for n in case.truth.shape) > most:
        step += 1
    return step


def nifti(voxels: NDArray[np.uint8], case: LoadedCase, step: int) -> str:
    """A NIfTI file in gzip and base64.

    Args:
        voxels: (z, y, x).
        case: says how the volume lies.
        step: every how many voxels are kept.
    """
    import nibabel as nib

    kept = np.ascontiguousarray(voxels[::step, ::step, ::step].T)
    z, y, x = (step * mm for mm in case.spacing)
    up, back, left = case.flips
    # ITK's x and y point left and back, NIfTI's right and forward.
    affine = np.diag([x if left else -x, y if back else -y, z if up else -z, 1.0])
    data = nib.Nifti1Image(kept, affine, dtype=np.uint8).to_bytes()
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode("ascii")
