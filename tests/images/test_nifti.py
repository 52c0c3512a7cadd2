"""NIfTI against nibabel (voxels, affine) and ITK (spacing, origin, direction)."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.file_kinds import content_of_bytes
from nnunet_octreenca.images.nifti import read_nifti, require_sound_nifti
from nnunet_octreenca.images.volumes import VolumeSource

RNG = np.random.default_rng(0)
VOXELS = RNG.integers(-1000, 1000, (7, 6, 5), np.int16)  # x, y, z
BASE = np.array([[1, 0, 0, -10], [0, 1.5, 0, 20], [0, 0, 2, 5], [0, 0, 0, 1.0]])
ANGLE = np.deg2rad(20)
TURNED = BASE.copy()
TURNED[:2, :3] = [[np.cos(ANGLE), -np.sin(ANGLE) * 1.5, 0], [np.sin(ANGLE), np.cos(ANGLE) * 1.5, 0]]
LEFT_HANDED = BASE @ np.diag([-1, 1, 1, 1])


NIFTI1, NIFTI2 = nibabel.Nifti1Image, nibabel.Nifti2Image


def save(path, voxels=VOXELS, qform=BASE, sform=BASE, codes=(1, 1), kind=NIFTI1, **fields):
    image = kind(voxels, None)
    image.header.set_qform(qform, codes[0])
    image.header.set_sform(sform, codes[1])
    for name, value in fields.items():
        image.header[name] = value
    data = image.to_bytes()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("kind", [NIFTI1, NIFTI2])
@pytest.mark.parametrize(
    ("qform", "sform", "codes"),
    [
        (BASE, BASE, (1, 1)),
        (TURNED, TURNED, (1, 1)),
        (TURNED, BASE, (1, 4)),
        (TURNED, BASE, (1, 0)),
        (BASE, TURNED, (0, 2)),
        (LEFT_HANDED, LEFT_HANDED, (1, 1)),
        (LEFT_HANDED, TURNED, (2, 0)),
    ],
)
def test_place_as_itk_has_it(tmp_path, ending, kind, qform, sform, codes):
    path = tmp_path / f"a.{ending}"
    save(path, qform=qform, sform=sform, codes=codes, kind=kind)
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.voxels[0], VOXELS.T)
    save(tmp_path / "itk.nii", qform=qform, sform=sform, codes=codes)  # which reads NIfTI-1 only
    image = sitk.ReadImage(str(tmp_path / "itk.nii"))
    np.testing.assert_allclose(volume.spacing, image.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(volume.origin, image.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(volume.direction, image.GetDirection(), atol=1e-5)
    assert not volume.place.sheared


@pytest.mark.parametrize(("code", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (3 + 8, 0.001)])
def test_units(tmp_path, code, mm):
    save(tmp_path / "a.nii", xyzt_units=code)
    volume = read_nifti(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.spacing, np.array([1, 1.5, 2]) * mm, rtol=1e-6)
    np.testing.assert_allclose(volume.origin, np.array([10, -20, 5]) * mm, rtol=1e-6)


def test_the_sforms_size_where_there_is_no_qform(tmp_path):
    save(tmp_path / "a.nii", codes=(0, 2), pixdim=[1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii").spacing, [1, 1.5, 2], rtol=1e-6)


@pytest.mark.parametrize(("shear", "sheared"), [(2e-4, False), (0.01, False), (0.3, True)])
@pytest.mark.parametrize("codes", [(0, 1), (1, 2)])
def test_shear(tmp_path, shear, sheared, codes):
    affine = BASE.copy()
    affine[0, 1] = shear
    save(tmp_path / "a.nii.gz", sform=affine, codes=codes)
    volume = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.voxels[0], VOXELS.T)
    assert volume.place.sheared == sheared
    matrix = np.reshape(volume.direction, (3, 3))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_types_and_byte_orders(tmp_path, dtype, order):
    voxels = (VOXELS % 100).astype(dtype)
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(dtype)
    image = nibabel.Nifti1Image(voxels, BASE, header)
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    found = read_nifti(tmp_path / "a.nii").voxels
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found[0], voxels.T)


@pytest.mark.parametrize(
    ("slope", "intercept"), [(0.37, 0), (1, -1024), (-2, 0.5), (1e-4, 7), (1, 1e-3)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_slopes_as_the_formula_has_them(tmp_path, slope, intercept, dtype):
    voxels = (VOXELS % 200).astype(dtype)
    save(tmp_path / "a.nii", voxels)
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = np.array([slope, intercept], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    slope, intercept = np.array([slope, intercept], np.float32).astype(float)
    truth = (voxels.astype(float) * slope + intercept).astype(np.float32)
    found = read_nifti(tmp_path / "a.nii").voxels
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0], truth.T)


@pytest.mark.parametrize(
    ("slope", "intercept"), [(0, 3), (0, np.nan), (np.nan, 0), (np.nan, np.nan), (1, 0)]
)
def test_a_slope_that_is_none(tmp_path, slope, intercept):
    save(tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = np.array([slope, intercept], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    found = read_nifti(tmp_path / "a.nii").voxels
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found[0], VOXELS.T)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((7, 6), (1, 6, 7)),
        ((7, 6, 1), (1, 1, 6, 7)),
        ((7, 6, 5, 1), (1, 5, 6, 7)),
        ((7, 6, 5, 3), (3, 5, 6, 7)),
        ((7, 6, 5, 1, 3), (3, 5, 6, 7)),
        ((7, 6, 1, 1, 3), (3, 1, 6, 7)),
    ],
)
def test_axes(tmp_path, shape, expected):
    voxels = RNG.integers(0, 99, shape, np.int16)
    save(tmp_path / "a.nii.gz", voxels)
    found = read_nifti(tmp_path / "a.nii.gz").voxels
    assert found.shape == expected
    np.testing.assert_array_equal(found.ravel(), voxels.T.ravel())


def test_colours_are_channels(tmp_path):
    rgb = RNG.integers(0, 256, (7, 6, 5, 3)).astype(np.uint8)
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(tmp_path / "a.nii", np.ascontiguousarray(rgb).view(kind)[..., 0])
    found = read_nifti(tmp_path / "a.nii").voxels
    np.testing.assert_array_equal(found, rgb.transpose(3, 2, 1, 0))


def test_an_extension_and_a_file_that_says_no_offset(tmp_path):
    image = nibabel.Nifti1Image(VOXELS, BASE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 100))
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii").voxels[0], VOXELS.T)
    save(tmp_path / "b.nii")
    raw = bytearray((tmp_path / "b.nii").read_bytes())
    raw[108:112] = bytes(4)
    (tmp_path / "b.nii").write_bytes(raw)
    np.testing.assert_array_equal(read_nifti(tmp_path / "b.nii").voxels[0], VOXELS.T)


# --- names and contents ---


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII", "A.NII.GZ", "a.Nii.Gz"])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_gzip_is_known_by_its_bytes(tmp_path, name, layers):
    save(tmp_path / "x.nii")
    data = (tmp_path / "x.nii").read_bytes()
    for _ in range(layers):
        data = gzip.compress(data)
    (tmp_path / name).write_bytes(data)
    np.testing.assert_array_equal(VolumeSource(tmp_path / name).read(0, 5)[0], VOXELS.T)


@pytest.mark.parametrize("ending", [".NRRD", ".Nrrd", ".MHA", ".Mha", ".MHD", ".NHDR"])
def test_endings_in_any_case(tmp_path, ending):
    image = sitk.GetImageFromArray(VOXELS.T.copy())
    lower = tmp_path / f"a{ending.lower()}"
    sitk.WriteImage(image, str(lower))
    path = lower.rename(tmp_path / f"b{ending}")
    np.testing.assert_array_equal(VolumeSource(path).read(0, 5)[0], VOXELS.T)


OTHERS = {
    b"\x89PNG\r\n\x1a\n" + bytes(999): "it is PNG",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n": "git lfs pull",
    b"../.git/annex/objects/SHA256E-s1--e3.nii.gz\n": "git annex get",
    b"<!DOCTYPE html><html>404" + b" " * 400: "a web page",
    b"": "an empty file",
    bytes(5000): "zeros only",
    b"NRRD0004\ntype: short" + b" " * 400: "it is NRRD",
    b"PK\x03\x04" + bytes(999): "a ZIP archive; unpack it",
    b"\x89HDF\r\n\x1a\n" + bytes(999): "it is HDF5",
    gzip.compress(b"\x89PNG\r\n\x1a\n" + bytes(999)): "gzip around PNG",
    gzip.compress(b"<html>moved</html>" + b" " * 999): "gzip around a web page",
    b"abc": "only 3 bytes long",
    RNG.bytes(2000): "no format that its first bytes would tell",
}


@pytest.mark.parametrize("content", OTHERS, ids=list(OTHERS.values()))
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_what_is_no_nifti_is_called_what_it_is(tmp_path, ending, content):
    (tmp_path / f"a.{ending}").write_bytes(content)
    with pytest.raises(InputError, match=OTHERS[content]) as raised:
        VolumeSource(tmp_path / f"a.{ending}")
    assert "damaged" not in str(raised.value)


@pytest.mark.parametrize("ending", ["nrrd", "mha", "mhd", "nhdr", "dcm"])
def test_a_volume_that_is_called_another_format(tmp_path, ending):
    save(tmp_path / "x.nii")
    for name, content in (("NIfTI", (tmp_path / "x.nii").read_bytes()), ("a web page", b"<html>")):
        (tmp_path / f"a.{ending}").write_bytes(content)
        with pytest.raises(InputError, match=f"does not hold what its name says: it is {name}"):
            VolumeSource(tmp_path / f"a.{ending}")


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_axes_that_are_not_at_right_angles_in_other_formats(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS.T.copy()), str(path))
    raw = path.read_bytes()
    old = {"nrrd": b"(0,1,0)", "mha": b"TransformMatrix = 1 0 0 0 1 0"}[ending]
    new = {"nrrd": b"(1,1,0)", "mha": b"TransformMatrix = 1 0 0 1 1 0"}[ending]
    assert old in raw
    path.write_bytes(raw.replace(old, new))
    with pytest.raises(InputError, match=r"not at right angles \(not orthonormal\); save"):
        VolumeSource(path)


def test_gzip_that_is_cut_or_damaged(tmp_path):
    save(tmp_path / "a.nii.gz", RNG.integers(-9999, 9999, (30, 30, 30), np.int16))
    whole = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(whole[:-1000])
    with pytest.raises(InputError, match=r"cannot be decompressed .* it is truncated"):
        read_nifti(tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes(whole[:-8] + b"12345678")
    with pytest.raises(InputError, match=r"cannot be decompressed .* it is damaged"):
        read_nifti(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"datatype": 1536, "bitpix": 128}, "type that cannot be read"),
        ({"datatype": 1}, "type that cannot be read"),
        ({"datatype": 32, "bitpix": 64}, "complex numbers; save its magnitude"),
        ({"pixdim": [1, 0, 1.5, 2, 0, 0, 0, 0]}, r"pixdim\[1\] is 0, and must be above 0"),
        ({"pixdim": [1, 1, 1.5, -2, 0, 0, 0, 0]}, r"pixdim\[3\] is -2, and must be above 0"),
        ({"pixdim": [1, 1, np.nan, 2, 0, 0, 0, 0]}, r"pixdim\[2\] is nan, and must be above 0"),
        ({"pixdim": [1, 1, np.inf, 2, 0, 0, 0, 0]}, r"pixdim\[2\] is inf, and must be above 0"),
        ({"pixdim": [1, np.inf, 1, 2, 0, 0, 0, 0], "qform_code": 0}, r"pixdim\[1\] is inf"),
        ({"pixdim": [np.nan, 1, 1, 2, 0, 0, 0, 0]}, r"pixdim\[0\] is nan, and must be 1 or -1"),
        ({"dim": [9, 7, 6, 5, 1, 1, 1, 1]}, r"dim\[0\] is 9, and must be 1 to 7"),
        ({"dim": [3, 7, 0, 5, 1, 1, 1, 1]}, r"dim\[2\] is 0, and must be 1 or more"),
        ({"dim": [3, 7, -6, 5, 1, 1, 1, 1]}, r"dim\[2\] is -6, and must be 1 or more"),
        ({"dim": [7, *[32767] * 7]}, r"32767, vox_offset 352\) promises 81,112,308,840,6"),
        ({"bitpix": 8}, "bitpix is 8, and must be 16 where datatype is 4"),
        ({"vox_offset": np.nan}, "vox_offset is nan, and must be a whole number from 352"),
        ({"vox_offset": 348}, "vox_offset is 348, and must be a whole number from 352"),
        ({"vox_offset": -352}, "vox_offset is -352, and must be"),
        ({"vox_offset": 1e30}, r"truncated: .*dim 7 x 6 x 5, vox_offset 1\d+\) promises"),
        ({"scl_slope": np.inf}, "scl_slope is inf, and must be finite"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "scl_inter is nan, and must be finite"),
        ({"scl_slope": 1, "scl_inter": -np.inf}, "scl_inter is -inf, and must be finite"),
        ({"scl_slope": np.nan, "scl_inter": 7}, "scl_slope is nan, and .* where scl_inter is 7"),
        ({"qform_code": -3}, "qform_code is -3, and must be 0 to 5"),
        ({"sform_code": 900}, "sform_code is 900, and must be 0 to 5"),
        ({"quatern_c": 1.5}, "quatern_c is 1.5, and must be from -1 to 1"),
        ({"quatern_b": 0.9, "quatern_c": 0.9}, r"quatern_b, c, d is \(0.9, 0.9, 0\)"),
        ({"qoffset_y": np.nan}, "qoffset_y is nan, and is no place"),
        ({"qoffset_z": 1e30}, r"qoffset_z is 1e\+30, and is no place"),
        ({"srow_y": [0, 1, np.nan, 0]}, r"srow_y\[2\] is nan, and must be finite"),
        ({"srow_z": [0, 0, 1, np.inf], "qform_code": 0}, r"srow_z\[3\] is inf, and must be"),
        ({"dim": [5, 7, 6, 1, 5, 1, 1, 1], "qform_code": 0, "sform_code": 1,
          "srow_x": [0, 0, 0, 0], "srow_y": [0, 1, 0, 0]}, "in size|span no volume"),
        ({"quatern_b": np.nan}, "quatern_b is nan, and must be from -1 to 1"),
    ],
)  # fmt: skip
def test_headers_that_cannot_be(tmp_path, fields, message):
    save(tmp_path / "a.nii")
    header = nibabel.Nifti1Header((tmp_path / "a.nii").read_bytes()[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4) + bytes(420))
    with pytest.raises(InputError, match=message):
        read_nifti(tmp_path / "a.nii")


@pytest.mark.parametrize("qfac", [0, 1, -1])
def test_a_handedness_of_0_counts_as_1(tmp_path, qfac):
    save(tmp_path / "a.nii", qform=TURNED, codes=(1, 0))
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[76:80] = np.float32(qfac).tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    itk, ours = sitk.ReadImage(str(tmp_path / "a.nii")), read_nifti(tmp_path / "a.nii")
    np.testing.assert_allclose(ours.direction, itk.GetDirection(), atol=1e-5)
    assert ours.direction[8] == pytest.approx(-1 if qfac == -1 else 1)


def test_half_turns_as_nibabel_has_them(tmp_path):
    """Rounding to float32 leaves some of a first part that is 0."""
    generator = np.random.default_rng(4)
    for _ in range(20):
        axis = generator.normal(size=3)
        axis /= np.linalg.norm(axis)
        affine = BASE.copy()
        affine[:3, :3] = 2 * np.outer(axis, axis) - np.eye(3)
        save(tmp_path / "a.nii", qform=affine, codes=(1, 0))
        found = read_nifti(tmp_path / "a.nii")
        expected = nibabel.load(tmp_path / "a.nii").affine[:3, :3] * [[-1], [-1], [1]]
        np.testing.assert_allclose(np.reshape(found.direction, (3, 3)), expected, atol=1e-6)


# --- voxels that are no numbers ---


@pytest.mark.parametrize("reads", [read_nifti, require_sound_nifti])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8"])
def test_nan_and_infinity_are_counted_and_the_first_is_named(tmp_path, dtype, ending, reads):
    voxels = VOXELS.astype(dtype)
    voxels[2, 3, 1], voxels[6, 0, 4], voxels[0, 0, 2] = np.nan, -np.inf, np.inf
    path = tmp_path / f"a.{ending}"
    header = nibabel.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(dtype)
    data = NIFTI1(voxels, BASE, header).to_bytes()
    path.write_bytes(gzip.compress(data) if ending == "nii.gz" else data)
    with pytest.raises(InputError, match=r"3 voxels are NaN or infinite, .* x 2, y 3, z 1"):
        reads(path)


def test_a_channel_is_named(tmp_path):
    voxels = np.zeros((4, 3, 2, 2), np.float32)
    voxels[1, 2, 0, 1] = np.nan
    save(tmp_path / "a.nii", voxels)
    with pytest.raises(InputError, match=r"1 voxel is NaN .* x 1, y 2, z 0 of channel 1; replace"):
        read_nifti(tmp_path / "a.nii")


@pytest.mark.parametrize("reads", [read_nifti, require_sound_nifti])
def test_a_slope_that_float32_cannot_hold_is_named(tmp_path, reads):
    save(tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = np.array([1e37, 5], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    beyond = int((np.abs(VOXELS.astype(float) * 1e37) > np.finfo(np.float32).max).sum())
    by = r"beyond float32 after scaling with scl_slope 1e\+37 and scl_inter 5"
    with pytest.raises(InputError, match=f"{beyond} voxels are {by}"):
        reads(tmp_path / "a.nii")


def test_doubles_that_float32_cannot_hold(tmp_path):
    voxels = VOXELS.astype(np.float64)
    voxels[0, 0, 0] = 1e200
    save(tmp_path / "a.nii", voxels)
    with pytest.raises(InputError, match="1 voxel is NaN or infinite"):
        read_nifti(tmp_path / "a.nii")


def test_a_header_without_voxels(tmp_path):
    save(tmp_path / "a.nii")
    raw = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(raw.replace(b"n+1", b"ni1", 1))
    with pytest.raises(InputError, match="header without its voxels"):
        read_nifti(tmp_path / "a.nii")


def test_what_bytes_say():
    assert content_of_bytes(bytes(128) + b"DICM") == "DICOM"
    assert content_of_bytes(b"hello world" * 50) is None
