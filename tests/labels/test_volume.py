import numpy as np
import pytest
import SimpleITK as sitk
from helpers.label_maps import blobs, noise

from nnunet_octreenca.errors import InputError, OutputError
from nnunet_octreenca.labels.formats import LabelInfo, check_labels
from nnunet_octreenca.labels.volume import ENDINGS, write_volume

SPACING = (0.7, 0.81, 2.5)
ORIGIN = (-100.25, 3.5, 7.125)
DIRECTION = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
GEOMETRY = {"spacing": SPACING, "origin": ORIGIN, "direction": DIRECTION}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
@pytest.mark.parametrize("ending", ENDINGS)
def test_labels_and_geometry_come_back(tmp_path, ending, dtype):
    labels = blobs(7, 20, 30, classes=4, dtype=dtype)
    write_volume(labels, tmp_path / f"case.x{ending}", **GEOMETRY)
    image = sitk.ReadImage(tmp_path / f"case.x{ending}")
    found = sitk.GetArrayFromImage(image)
    np.testing.assert_array_equal(found, labels)
    assert found.dtype == dtype
    # NIfTI keeps the geometry in single precision.
    exactly = {"rtol": 1e-7, "atol": 1e-7} if "nii" in ending else {"rtol": 0, "atol": 0}
    np.testing.assert_allclose(image.GetSpacing(), SPACING, **exactly)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN, **exactly)
    np.testing.assert_allclose(image.GetDirection(), DIRECTION, **exactly)


def test_nibabel_sees_the_same_place(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    labels = blobs(7, 20, 30, classes=4)
    write_volume(labels, tmp_path / "case.nii.gz", **GEOMETRY)
    image = nibabel.load(tmp_path / "case.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), labels.transpose(2, 1, 0))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(DIRECTION, (3, 3)) * SPACING
    affine[:3, 3] = ORIGIN
    affine[:2] *= -1  # from ITK's left, posterior, superior
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)


def test_pictures_and_no_geometry(tmp_path):
    labels = blobs(20, 30)
    write_volume(labels, tmp_path / "case.nrrd")
    image = sitk.ReadImage(tmp_path / "case.nrrd")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), labels)
    assert (image.GetSpacing(), image.GetOrigin()) == ((1, 1), (0, 0))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_files_are_compressed(tmp_path, ending):
    labels = np.zeros((10, 100, 100), np.uint8)
    write_volume(labels, tmp_path / f"case{ending}")
    assert (tmp_path / f"case{ending}").stat().st_size < 2000


@pytest.mark.parametrize(
    ("name", "geometry", "message"),
    [
        ("case.png", {}, r"does not end in \.nii\.gz, \.nii, \.nrrd, \.mha"),
        ("case.mha", {"spacing": (1, 2)}, r"spacing \(1, 2\).* for 3 axes"),
        ("case.mha", {"spacing": (1, 0, 2)}, r"spacing \(1, 0, 2\)"),
        ("case.mha", {"direction": (1, 0, 0)}, r"direction \(1, 0, 0\)"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, name, geometry, message):
    with pytest.raises(OutputError, match=message):
        write_volume(blobs(3, 4, 5), tmp_path / name, **geometry)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", [1, 1000, 0.9])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_ends_early_is_noticed(tmp_path, monkeypatch, ending, missing):
    # As ITK leaves it on a full disk, without an error.
    write_whole_image = sitk.WriteImage

    def write_less(image, path, **options):
        write_whole_image(image, path, **options)
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(size - (missing if missing >= 1 else int(missing * size)))

    monkeypatch.setattr(sitk, "WriteImage", write_less)
    with pytest.raises(OutputError, match="shorter than its labels"):
        write_volume(noise(5, 30, 30), tmp_path / f"case{ending}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["nrrd", "mha", "nii.gz"])
def test_a_name_that_ends_itk_is_refused_before_anything_is_computed(tmp_path, ending):
    labels = np.zeros((2, 3, 4), np.uint8)
    with pytest.raises(InputError, match="is not a name in UTF-8"):
        write_volume(labels, tmp_path / f"r\udcff.{ending}")
    info = LabelInfo({}, "volume")
    with pytest.raises(InputError, match="is not a name in UTF-8"):
        check_labels([ending], labels.shape, tmp_path / "r\udcff", info)
