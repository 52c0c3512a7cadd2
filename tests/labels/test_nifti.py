"""Labels in NIfTI lie on their image for every reader."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.label_maps import blobs

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.images.nifti import read_nifti
from nnunet_octreenca.labels.formats import LabelInfo, check_labels, write
from nnunet_octreenca.labels.nifti import write_nifti

SHAPE = (5, 6, 7)
BASE = np.array([[1, 0, 0, -10], [0, 1.5, 0, 20], [0, 0, 2, 5], [0, 0, 0, 1.0]])
ANGLE = np.deg2rad(20)
TURNED = np.eye(4)
TURNED[:2, :2] = [[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]]
SHEARED = BASE.copy()
SHEARED[0, 2] = 0.6
KEPT = ("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
        "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")  # fmt: skip


def image_file(path, qform, sform, codes, units=2, kind=nibabel.Nifti1Image, shape=SHAPE):
    image = kind(np.zeros(shape[::-1], np.float32), None)
    image.header.set_qform(qform, codes[0])
    image.header.set_sform(sform, codes[1])
    image.header["xyzt_units"] = units
    nibabel.save(image, path)
    return image


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    ("qform", "sform", "codes", "units"),
    [
        (BASE, BASE, (1, 1), 2),
        (BASE, TURNED @ BASE, (1, 4), 2),
        (BASE, TURNED @ BASE, (0, 2), 2),
        (TURNED @ BASE, BASE, (3, 0), 2),
        (BASE, SHEARED, (1, 2), 2),
        (BASE, SHEARED, (0, 2), 2),
        (BASE, BASE, (0, 0), 2),
        (BASE @ np.diag([-1, 1, 1, 1]), BASE, (1, 1), 2),
        (BASE, BASE, (1, 1), 3),
        (BASE, BASE, (1, 1), 1),
        (BASE, BASE, (1, 1), 0),
    ],
)
def test_the_place_is_the_images(tmp_path, ending, dtype, kind, qform, sform, codes, units):
    image_file(tmp_path / "image.nii", qform, sform, codes, units, kind)
    labels = blobs(*SHAPE, classes=4, dtype=dtype)
    write_nifti(labels, tmp_path / f"a{ending}", read_nifti(tmp_path / "image.nii").place)
    image, found = nibabel.load(tmp_path / "image.nii"), nibabel.load(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), labels.T)
    assert found.get_data_dtype() == dtype
    assert type(found) is kind
    np.testing.assert_array_equal(found.affine, image.affine)
    for name in KEPT:
        length = 4 if name == "pixdim" else None
        one, other = (np.ravel(header[name])[:length] for header in (image.header, found.header))
        np.testing.assert_array_equal(one, other)
    if kind is nibabel.Nifti2Image:  # which ITK does not read
        return
    try:
        before = sitk.ReadImage(str(tmp_path / "image.nii"))
    except RuntimeError:  # ITK refuses shear where there is no qform
        assert sform is SHEARED
        assert codes[0] == 0
        return
    after = sitk.ReadImage(str(tmp_path / f"a{ending}"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), labels)
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_array_equal(getattr(after, name)(), getattr(before, name)())


def test_labels_of_a_two_dimensional_image_and_of_one_with_channels(tmp_path):
    image_file(tmp_path / "flat.nii", BASE, BASE, (1, 1), shape=(6, 7))
    place = read_nifti(tmp_path / "flat.nii").place
    labels = blobs(6, 7)
    write_nifti(labels, tmp_path / "a.nii.gz", place)
    np.testing.assert_array_equal(
        np.asanyarray(nibabel.load(tmp_path / "a.nii.gz").dataobj), labels.T
    )
    image_file(tmp_path / "four.nii", BASE, BASE, (1, 1), units=2 + 8, shape=(3, *SHAPE))
    labels = blobs(*SHAPE)
    write_nifti(labels, tmp_path / "b.nii.gz", read_nifti(tmp_path / "four.nii").place)
    found = nibabel.load(tmp_path / "b.nii.gz")
    assert found.shape == SHAPE[::-1]
    assert int(found.header["xyzt_units"]) == 2


def test_long_axes_need_the_second_version(tmp_path):
    image_file(tmp_path / "image.nii", BASE, BASE, (1, 1))
    labels = np.zeros((2, 2, 40000), np.uint8)
    write_nifti(labels, tmp_path / "a.nii.gz", read_nifti(tmp_path / "image.nii").place)
    assert type(nibabel.load(tmp_path / "a.nii.gz")) is nibabel.Nifti2Image


def test_the_same_labels_make_the_same_file(tmp_path):
    image_file(tmp_path / "image.nii", BASE, BASE, (1, 1))
    place = read_nifti(tmp_path / "image.nii").place
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(blobs(*SHAPE), tmp_path / name, place)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("name", ["nrrd", "mha", "dcm"])
def test_other_formats_cannot_hold_shear(tmp_path, name):
    image_file(tmp_path / "image.nii", BASE, SHEARED, (1, 2))
    place = read_nifti(tmp_path / "image.nii").place
    info = LabelInfo(names={0: "background"}, kind="volume", nifti=place)
    with pytest.raises(OutputError, match="not at right angles; NIfTI can: choose nii"):
        check_labels([name], SHAPE, tmp_path / "a", info)
    check_labels(["nii.gz"], SHAPE, tmp_path / "a", info)
    write("nii.gz", blobs(*SHAPE), tmp_path / "a", info)
    np.testing.assert_allclose(nibabel.load(tmp_path / "a.nii.gz").affine, SHEARED, atol=1e-6)


def test_labels_that_are_no_integers(tmp_path):
    image_file(tmp_path / "image.nii", BASE, BASE, (1, 1))
    place = read_nifti(tmp_path / "image.nii").place
    with pytest.raises(OutputError, match="give integers"):
        write_nifti(np.zeros(SHAPE, np.float32), tmp_path / "a.nii", place)
