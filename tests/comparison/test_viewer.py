"""Volumes for the page's viewer: where they lie, and that text cannot leave its script."""

import base64
import gzip
import json

import nibabel as nib
import numpy as np
import pytest
from helpers.predicted_folders import make_folders

from nnunet_octreenca.comparison import volume_viewer as viewer
from nnunet_octreenca.comparison.inputs import find_inputs
from nnunet_octreenca.comparison.overlays import load_case
from nnunet_octreenca.comparison.volume_viewer import NIIVUE, volume_viewer
from nnunet_octreenca.errors import InputError


def opened(text: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


@pytest.fixture
def loaded(tmp_path):
    truth, methods = make_folders(tmp_path, cases=1, images=True)
    methods = {"</script><b>": methods["A"], "B": methods["B"]}
    return load_case(find_inputs(truth, methods, images=tmp_path / "images"), 0)


def test_volumes_lie_as_the_files_do(loaded):
    made = volume_viewer({"case": loaded})
    assert "<" not in made["data"]
    (case,) = json.loads(made["data"])["cases"]
    assert made["methods"] == ["</script><b>", "B", "truth"]
    overlay = opened(case["overlays"]["</script><b>"])
    stored = loaded.outcomes["</script><b>"]
    assert np.array_equal(np.asarray(overlay.dataobj), stored.T)
    # The files have ITK's axes (left, back, up); NIfTI's are right, forward, up.
    assert nib.aff2axcodes(overlay.affine) == ("L", "P", "S")
    assert np.abs(np.diag(overlay.affine)[:3]) == pytest.approx([0.8, 0.8, 2.5])
    assert case["corner"] == list(loaded.corner[::-1])
    assert np.array_equal(np.asarray(opened(case["image"]).dataobj), loaded.image[0].T)


def test_large_volumes_are_thinned_and_the_page_says_so(loaded, monkeypatch):
    monkeypatch.setattr(viewer, "_MOST_VOXELS", 300)
    made = volume_viewer({"case": loaded})
    (case,) = json.loads(made["data"])["cases"]
    assert case["step"] > 1
    assert f"one voxel in {case['step']} along each axis" in made["note"]
    kept = opened(case["image"])
    assert kept.shape == tuple(-(-n // case["step"]) for n in loaded.truth.shape[::-1])
    assert kept.header.get_zooms()[2] == pytest.approx(2.5 * case["step"])


def test_only_volumes(loaded):
    from dataclasses import replace

    with pytest.raises(InputError, match="--viewer shows volumes"):
        volume_viewer({"case": replace(loaded, video=True)})


def test_the_library_can_stand_in_a_page():
    text = NIIVUE.read_text(encoding="utf-8")
    assert "</script" not in text.lower()
    assert "<!--" not in text
    licence = (NIIVUE.parent / "LICENSE").read_text(encoding="utf-8")
    assert "BSD 2-Clause" in licence
    assert "Niivue" in licence
