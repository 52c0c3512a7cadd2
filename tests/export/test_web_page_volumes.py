"""The exported page of a 3-D model in a real browser: NIfTI in, NIfTI out."""

import nibabel
import numpy as np
import pytest
import torch
from helpers.browser import CHROMIUM
from helpers.web_page import Page
from untrained_model import model_folder

from nnunet_octreenca import segment_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("same_rounding"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: chromium)"),
]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    model = model_folder(
        folder / "model", patch=(8, 16, 16), channels=2, ending=".nii.gz", transpose=(1, 0, 2)
    )
    page = Page(folder, model)
    yield page
    page.browser.close()


@pytest.fixture(autouse=True)
def _no_error_and_no_request(volumes):
    yield
    volumes.assert_quiet()


def volume(folder, name, shape=(21, 17, 12), spacing=(1.0, 1.0, 1.0), seed=0):
    """Two channels, x y z, on a turned grid; files as nnU-Net names them."""
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = 11, -20, 3.5
    files = []
    for channel in range(2):
        voxels = np.random.default_rng(seed + channel).normal(30, 9, shape).astype(np.float32)
        voxels[:3] = voxels[:, 15:] = 0
        files.append(folder / f"{name}_000{channel}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(voxels, affine), files[-1])
    return files


def test_labels_of_volumes_are_those_of_predict(volumes, tmp_path):
    """Cropped, normalised, axes exchanged, zeros around, mirrored; on the file's own grid."""
    files = volume(tmp_path, "case")
    said = volumes.segment(*files)
    assert said.startswith("case.nii.gz: 21 x 17 x 12"), said
    saved = nibabel.load(volumes.download("save-labels", "case_labels.nii.gz"))
    wanted = segment_file(files, volumes.model)
    labels = np.asarray(saved.dataobj).transpose()
    assert len(np.unique(wanted)) == 3
    assert (labels != wanted).sum() == 0
    assert (saved.affine == nibabel.load(files[0]).affine).all()
    text = volumes.browser.run("document.getElementById('legend').innerText")
    assert f"{(wanted == 1).sum() / 1000:.4g}" in text
    assert "ml" in text
    assert volumes.browser.run("document.querySelectorAll('#views canvas').length") == 3
    place = "document.querySelector('#views output').value"
    assert volumes.browser.run(place) == "z 7 of 12"
    volumes.browser.run(
        "(() => { const s = document.querySelector('#views input'); s.value = 2;"
        "s.dispatchEvent(new Event('input')); })()"
    )
    assert volumes.browser.run(place) == "z 3 of 12"


@pytest.mark.parametrize("spacing", [(0.7, 1.0, 1.2), (1.0, 1.1, 4.5)], ids=["fine", "planes"])
def test_a_resampled_volume_differs_in_few_voxels(volumes, tmp_path, spacing):
    """Both ways, images and logits; float32 sums in another order, so not always the last bit."""
    files = volume(tmp_path, "other", spacing=spacing)
    assert volumes.segment(*files).startswith("other.nii.gz: 21 x 17 x 12")
    saved = nibabel.load(volumes.download("save-labels", "other_labels.nii.gz"))
    wanted = segment_file(files, volumes.model)
    assert len(np.unique(wanted)) == 3
    assert (np.asarray(saved.dataobj).transpose() != wanted).mean() < 1e-3
    assert (saved.affine == nibabel.load(files[0]).affine).all()


def test_volumes_that_do_not_fit_the_model_are_refused(volumes, tmp_path):
    said = volumes.segment(volume(tmp_path, "lone")[0])
    assert "it has 1 channel, but the model was trained with 2" in said
    said = volumes.segment(*volume(tmp_path, "lost", spacing=(0.01, 1.0, 1.0)))
    assert "which a page cannot hold" in said
    (tmp_path / "smaller").mkdir()
    first, second = (
        volume(tmp_path, "mixed")[0],
        volume(tmp_path / "smaller", "mixed", (20, 17, 12))[1],
    )
    said = volumes.segment(first, second)
    assert "its channels differ in size: 12 x 17 x 21 and 12 x 17 x 20 voxels" in said
    assert volumes.segment(*volume(tmp_path, "good")).startswith("good.nii.gz: ")


def test_hippocampus(data_folder, tmp_path):
    """Real volumes, a trained-like network of the planner's size: no voxel differs."""
    scans = sorted(data_folder("hippocampus").rglob("*.nii.gz"))[:2]
    torch.manual_seed(0)
    model = model_folder(tmp_path / "model", patch=(40, 56, 40), channels=1, ending=".nii.gz")
    page = Page(tmp_path, model)
    try:
        for scan in scans:
            said = page.segment(scan)
            assert said.startswith(f"{scan.name}: "), said
            stem = scan.name.removesuffix(".nii.gz")
            saved = nibabel.load(page.download("save-labels", f"{stem}_labels.nii.gz"))
            wanted = segment_file(scan, page.model)
            assert (np.asarray(saved.dataobj).transpose() != wanted).sum() == 0, said
    finally:
        page.browser.close()
