"""NaN and infinity in every format that can hold them: refused with the file's name and a count."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from helpers.dicom_planes import dicom_folder
from untrained_model import model_folder

from nnunet_octreenca import segment_file
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.integration.model import load_model

PLANES = np.random.default_rng(0).normal(size=(6, 9, 11)).astype(np.float32)
BAD = ((2, 3, 4), (5, 0, 10))  # z, y, x


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flat")
    return load_model(
        model_folder(
            folder, channels=6, patch=(16, 16), schemes=["ZScoreNormalization"] * 6, steps=1
        )
    )


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    return load_model(model_folder(folder, channels=1, patch=(8, 8, 8), ending=".nii.gz", steps=1))


def with_itk(path, voxels):
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))


def as_nifti(path, voxels):
    data = nibabel.Nifti1Image(voxels.T, np.eye(4)).to_bytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def as_zarr(path, voxels):
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=2)
    array = group.create_array("0", shape=voxels.shape, chunks=voxels.shape, dtype=voxels.dtype)
    array[:] = voxels
    axes = [{"name": name, "type": "space"} for name in "cyx"]
    group.attrs["multiscales"] = [{"axes": axes, "version": "0.4", "datasets": [{"path": "0"}]}]


def as_dicom(path, voxels):
    """Floats in their own element; beside a sign that only integers have."""
    import pydicom

    for file in dicom_folder(path, np.zeros(voxels.shape, np.int32)):
        header = pydicom.dcmread(file)
        plane = voxels[header.InstanceNumber - 1]
        del header.PixelData
        header.FloatPixelData = plane.astype("<f4").tobytes()
        header.PixelRepresentation = 1
        header.save_as(file, enforce_file_format=True)


def as_scaled_dicom(path, voxels):
    """Integers that a slope takes beyond float32."""
    whole = np.nan_to_num(voxels, nan=3, posinf=3, neginf=-3)
    dicom_folder(path, np.where(np.abs(whole) == 3, whole, 0).astype(np.int16), RescaleSlope=2e38)


WRITERS = {
    "a.nii": as_nifti,
    "a.nii.gz": as_nifti,
    "a.nrrd": with_itk,
    "a.mha": with_itk,
    "a.mhd": with_itk,
    "dicom": as_dicom,
    "scaled dicom": as_scaled_dicom,
    "a.tif": lambda path, voxels: tifffile.imwrite(
        path, voxels, photometric="minisblack", planarconfig="separate", metadata=None
    ),
    "tiles.tif": lambda path, voxels: tifffile.imwrite(
        path, voxels, photometric="minisblack", planarconfig="separate", metadata=None,
        tile=(16, 16), compression="deflate",
    ),
    "a.zarr": as_zarr,
}  # fmt: skip


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("name", WRITERS)
def test_they_are_counted_and_the_file_is_named(tmp_path, flat, deep, name, bad):
    voxels = PLANES.copy()
    for place in BAD:
        voxels[place] = bad
    path = tmp_path / name
    WRITERS[name](path, voxels)
    model = flat if name.endswith((".tif", ".zarr")) else deep
    with pytest.raises(InputError, match=r"2 voxels (that )?are NaN or infinite") as raised:
        segment_file(path, model, mirror=False)
    assert str(path) in str(raised.value)
    if model is deep:
        assert "the first at x 4, y 3, z 2;" in str(raised.value)
    for place in BAD:
        voxels[place] = 0
    WRITERS[name](path, voxels)
    segment_file(path, model, mirror=False)
