"""`predict` of DICOM folders: which series, what is left out, what is refused before computing."""

import nibabel
import numpy as np
import pytest
from helpers.dicom_planes import dicom_folder, dicom_plane
from untrained_model import model_folder

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.prediction import case

pydicom = pytest.importorskip("pydicom")
VOXELS = np.random.default_rng(0).integers(-200, 800, (8, 16, 16), np.int16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "volume"
    return model_folder(folder, patch=(8, 16, 16), channels=1, ending=".nii.gz", spacing=(2, 1, 1))


def predict(model, source, output, *flags):
    given = ["predict", "-m", model, "-i", source, "-o", output, "-device", "cpu", "--quiet"]
    return main([str(part) for part in (*given, "--disable_tta", *flags)])


def test_one_of_two_series(tmp_path, model, capsys):
    dicom_folder(tmp_path / "ct", VOXELS)
    dicom_folder(tmp_path / "alone", VOXELS[:5] + 7, series="2")
    for number, plane in enumerate(VOXELS[:5] + 7):
        dicom_plane(tmp_path / "ct" / f"b{number}", plane, (10, 20, 2 * number), series="2")
    assert predict(model, tmp_path / "ct", tmp_path / "out") == 1
    assert "choose one with --series UID" in capsys.readouterr().err
    flags = ("--formats", "nii.gz")
    assert predict(model, tmp_path / "ct", tmp_path / "out", "--series", "2.25.8.2", *flags) == 0
    assert "ct: left out 8 images of 1 other series" in capsys.readouterr().out
    assert predict(model, tmp_path / "alone", tmp_path / "out", *flags) == 0
    found, expected = (nibabel.load(tmp_path / f"out/{name}.nii.gz") for name in ("ct", "alone"))
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), np.asanyarray(expected.dataobj))
    np.testing.assert_array_equal(found.affine, expected.affine)


def test_our_own_result_beside_the_series_is_left_out(tmp_path, model, capsys):
    dicom_folder(tmp_path / "ct", VOXELS)
    assert predict(model, tmp_path / "ct", tmp_path / "out") == 0
    first = (tmp_path / "out" / "ct.dcm").rename(tmp_path / "ct" / "result.dcm")
    capsys.readouterr()
    assert predict(model, tmp_path / "ct", tmp_path / "out", "--overwrite") == 0
    assert "ct: left out 1 SEG" in capsys.readouterr().out
    again, before = pydicom.dcmread(tmp_path / "out" / "ct.dcm"), pydicom.dcmread(first)
    assert again.PixelData == before.PixelData


def test_a_format_that_cannot_be_written_is_refused_before_computing(tmp_path, model, monkeypatch):
    affine = np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(VOXELS.T.copy(), affine), tmp_path / "a.nii")

    def never(*arguments, **keywords):
        raise AssertionError("computed")

    monkeypatch.setattr(case.Segmentation, "run", never)
    for name in ("nrrd", "mha", "dcm"):
        assert predict(model, tmp_path / "a.nii", tmp_path / "out", "--formats", name) == 1
