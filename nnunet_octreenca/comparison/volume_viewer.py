"""Volumes within the page, shown by NiiVue (`niivue/`, BSD licence), which needs no network."""

import base64
import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.comparison.overlays import OUTCOMES, LoadedCase
from nnunet_octreenca.comparison.viewer_page import layers, template_values
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonObject

NIIVUE = Path(__file__).parent / "niivue" / "niivue.umd.js"
_MOST_VOXELS = 4_000_000


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
    volumes = layers(
        cases, _MOST_VOXELS, lambda case, step: nifti(case.image[0], case, step), nifti
    )
    colours = [(0, 0, 0), *(colour for _, colour in OUTCOMES.values())]
    table = {
        **{band: [c[n] for c in colours] for n, band in enumerate("RGB")},
        "A": [0] + [255] * len(OUTCOMES),
        "I": list(range(len(colours))),
        "labels": ["", *(name for name, _ in OUTCOMES.values())],
    }
    note = (
        "Click or scroll to move, or use the arrow keys, Page Up and Page Down. Colours as above."
    )
    coarser = max(volume["step"] for volume in volumes)
    if coarser > 1:
        note += f" Large volumes are thinned: one voxel in {coarser} along each axis."
    return template_values(
        "volumes",
        "Volumes",
        note,
        cases,
        {"colours": table, "cases": volumes},
        f"/* NiiVue 0.69.0, BSD-2-Clause, (c) 2021 Niivue */\n{library}",
        "viewer.js",
    )


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
