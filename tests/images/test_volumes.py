import gzip
import os
import struct

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.bands import check_bands
from helpers.dicom_slices import write_series

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import header_checks
from nnunet_octreenca.images.volumes import VolumeSource

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (11, 13, 17), np.int16)
ENDINGS = ("nii", "nii.gz", "nrrd", "mha", "mhd")
SPACING, ORIGIN = (0.5, 0.75, 2.0), (-10.0, 20.5, 3.0)
DIRECTION = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def write(path, voxels=VOXELS, *, compress=False, vector=False):
    image = sitk.GetImageFromArray(voxels, isVector=vector)
    if image.GetDimension() == 3:
        image.SetSpacing(SPACING)
        image.SetOrigin(ORIGIN)
        image.SetDirection(DIRECTION)
    sitk.WriteImage(image, str(path), compress)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_voxels_and_geometry(tmp_path, ending, compress):
    path = tmp_path / f"a.{ending}"
    write(path, compress=compress)
    source = VolumeSource(path)
    check_bands(source, VOXELS[None], heights=(1, 4))
    assert source.spacing == pytest.approx((2.0, 0.75, 0.5))
    assert source.geometry.spacing == pytest.approx(SPACING)
    assert source.geometry.origin == pytest.approx(ORIGIN)
    assert source.geometry.direction == pytest.approx(DIRECTION, abs=1e-6)
    assert source.geometry.path == path
    assert source.geometry.dicom_files is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_voxels_keep_their_type(tmp_path, dtype):
    write(tmp_path / "a.nii.gz", np.abs(VOXELS % 100).astype(dtype))
    check_bands(VolumeSource(tmp_path / "a.nii.gz"), np.abs(VOXELS % 100).astype(dtype)[None])


def test_what_nibabel_reads(tmp_path):
    """With a slope, which makes the stored integers floats."""
    import nibabel

    image = nibabel.Nifti1Image(VOXELS.transpose(2, 1, 0), np.diag([0.5, 0.75, 2, 1]))
    image.header.set_slope_inter(0.5, -3)
    for name in ("a.nii", "b.nii.gz"):
        nibabel.save(image, tmp_path / name)
        expected = nibabel.load(tmp_path / name).get_fdata().transpose(2, 1, 0)
        source = VolumeSource(tmp_path / name)
        np.testing.assert_allclose(source.read(0, 11)[0], expected)
        assert source.dtype == np.float32
        assert source.spacing == pytest.approx((2.0, 0.75, 0.5))


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_several_values_a_voxel_are_channels(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    write(path, np.stack([VOXELS, 2 * VOXELS, 3 * VOXELS], -1), vector=True)
    check_bands(VolumeSource(path), np.stack([VOXELS, 2 * VOXELS, 3 * VOXELS]))


def test_a_fourth_axis_is_channels_as_nnunet_reads_it(tmp_path):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    path = tmp_path / "a.nii.gz"
    image = sitk.GetImageFromArray(VOXELS)
    image.SetSpacing(SPACING)
    sitk.WriteImage(sitk.JoinSeries([image, 2 * image]), str(path))
    source = VolumeSource(path)
    check_bands(source, np.stack([VOXELS, 2 * VOXELS]))
    stock, properties = SimpleITKIO().read_images([str(path)])
    np.testing.assert_array_equal(source.read(0, 11), stock)
    assert source.spacing == pytest.approx(properties["spacing"])
    assert len(source.geometry.direction) == 9
    assert source.geometry.spacing == pytest.approx(SPACING)


def test_a_two_dimensional_file(tmp_path):
    write(tmp_path / "a.nrrd", VOXELS[0])
    source = VolumeSource(tmp_path / "a.nrrd")
    check_bands(source, VOXELS[:1])
    assert source.spacing == (1.0, 1.0)
    assert len(source.geometry.direction) == 4


def test_bands_are_views_that_outlive_the_source(tmp_path):
    write(tmp_path / "a.nii")
    source = VolumeSource(tmp_path / "a.nii")
    assert source.info.kept_bytes == VOXELS.nbytes
    band = source.read(2, 5)
    assert band.base is not None
    with pytest.raises(ValueError, match="read-only"):
        band[:] = 0
    source.close()
    source.close()
    np.testing.assert_array_equal(band[0], VOXELS[2:5])


@pytest.mark.parametrize("share", [0.0, 0.002, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_truncated_file_is_named(tmp_path, ending, compress, share):
    path = tmp_path / f"cut.{ending}"
    write(path, compress=compress)
    data = path.with_suffix(".zraw" if compress else ".raw") if ending == "mhd" else path
    data.write_bytes(data.read_bytes()[: int(share * data.stat().st_size)])
    with pytest.raises(InputError, match=r"cut\."):
        VolumeSource(path)


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_damaged_compressed_data_are_named(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    write(path, compress=True)
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data) // 2 + 30):
        data[at] ^= 255
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"a\.{ending}"):
        VolumeSource(path)


HEADERS = {
    "nrrd": "NRRD0004\ntype: short\ndimension: 3\nsizes: 100000 100000 100000\nencoding: {0}\n"
    "endian: little\nspace: left-posterior-superior\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n",
    "mha": "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "CompressedData = {1}\nDimSize = 100000 100000 100000\nElementType = MET_SHORT\n"
    "ElementDataFile = LOCAL\n",
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("ending", HEADERS)
def test_a_header_of_a_hundred_thousand_voxels_an_axis(tmp_path, ending, compress):
    path = tmp_path / f"a.{ending}"
    header = HEADERS[ending].format("gzip" if compress else "raw", compress)
    path.write_bytes(header.encode() + bytes(5000))
    with pytest.raises(InputError, match=r"2,000,000,000,000,000 bytes"):
        VolumeSource(path)


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_a_nifti_header_that_promises_too_much(tmp_path, ending):
    write(tmp_path / "b.nii")
    data = bytearray((tmp_path / "b.nii").read_bytes())
    struct.pack_into("<8h", data, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(gzip.compress(data) if ending == "nii.gz" else data)
    with pytest.raises(InputError, match=r"70,362,301,923,6\d\d bytes"):
        VolumeSource(path)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_more_voxels_than_the_header_says(tmp_path, ending, compress):
    """As of a header that was changed, or of bytes that came in amid the voxels."""
    path = tmp_path / f"a.{ending}"
    write(path, compress=compress)
    data = path.read_bytes()
    if ending.startswith("nii"):
        data = gzip.decompress(data) if ending == "nii.gz" else data
        data = data[:40] + struct.pack("<4h", 3, 17, 13, 10) + data[48:]
        path.write_bytes(gzip.compress(data) if ending == "nii.gz" else data)
    else:
        assert data.count(b"17 13 11\n") == 1
        path.write_bytes(data.replace(b"17 13 11\n", b"17 13 10\n"))
    with pytest.raises(InputError, match=r"does not fit its header.*promises .* are there"):
        VolumeSource(path)


@pytest.mark.parametrize(("skipped", "said"), [("-1", None), ("16", None), ("0", "does not fit")])
def test_voxels_behind_another_header(tmp_path, skipped, said):
    """MetaImage's HeaderSize: voxels begin after so many bytes, or end with the file."""
    write(tmp_path / "a.mhd")
    data = (tmp_path / "a.raw").read_bytes()
    (tmp_path / "a.raw").write_bytes(bytes(16) + data)
    header = (tmp_path / "a.mhd").read_text()
    changed = header.replace("ElementDataFile", f"HeaderSize = {skipped}\nElementDataFile")
    (tmp_path / "a.mhd").write_text(changed)
    if said:
        with pytest.raises(InputError, match=said):
            VolumeSource(tmp_path / "a.mhd")
    else:
        check_bands(VolumeSource(tmp_path / "a.mhd"), VOXELS[None])


@pytest.mark.parametrize("cut", [1, 4])
@pytest.mark.parametrize("ending", ["nrrd", "mha", "nii.gz"])
def test_compressed_voxels_without_their_checksum(tmp_path, ending, cut):
    write(tmp_path / f"a.{ending}", compress=True)
    data = (tmp_path / f"a.{ending}").read_bytes()
    (tmp_path / f"a.{ending}").write_bytes(data[:-cut])
    with pytest.raises(InputError, match="truncated"):
        VolumeSource(tmp_path / f"a.{ending}")


def test_what_this_machine_cannot_hold(tmp_path, monkeypatch):
    write(tmp_path / "a.nii.gz")
    monkeypatch.setattr(header_checks, "total_memory", lambda: VOXELS.nbytes - 1)
    with pytest.raises(InputError, match=r"a\.nii\.gz needs .* in memory"):
        VolumeSource(tmp_path / "a.nii.gz")


def test_the_file_beside_is_left_alone(tmp_path):
    """ITK reads the voxels of a.nii when asked for a.nii.gz."""
    write(tmp_path / "a.nii", VOXELS)
    write(tmp_path / "a.nii.gz", 2 * VOXELS)
    check_bands(VolumeSource(tmp_path / "a.nii.gz"), 2 * VOXELS[None])
    check_bands(VolumeSource(tmp_path / "a.nii"), VOXELS[None])


def test_a_header_without_its_data(tmp_path):
    write(tmp_path / "a.mhd")
    os.remove(tmp_path / "a.raw")  # noqa: PTH107
    with pytest.raises(InputError, match=r"a\.mhd names a\.raw .* does not exist"):
        VolumeSource(tmp_path / "a.mhd")


def test_what_is_no_volume(tmp_path):
    with pytest.raises(InputError, match=r"no\.nii does not exist"):
        VolumeSource(tmp_path / "no.nii")
    (tmp_path / "a.nrrd").write_bytes(b"\x89PNG" + bytes(999))
    with pytest.raises(InputError, match=r"a\.nrrd does not hold what its name says: it is PNG"):
        VolumeSource(tmp_path / "a.nrrd")
    complex_voxels = VOXELS.astype(np.complex64)
    sitk.WriteImage(sitk.GetImageFromArray(complex_voxels), str(tmp_path / "c.nii"))
    with pytest.raises(InputError, match=r"c\.nii holds complex.*magnitude"):
        VolumeSource(tmp_path / "c.nii")


def test_a_dicom_series(tmp_path):
    files = write_series(tmp_path / "ct", VOXELS)
    source = VolumeSource(tmp_path / "ct")
    assert source.dtype.kind == "i"
    np.testing.assert_array_equal(source.read(0, 11)[0], VOXELS)
    assert source.spacing == pytest.approx((2.0, 0.6, 0.5))
    assert source.geometry.origin == (10.0, 20.0, 0.0)
    assert source.geometry.dicom_files == files
    assert source.geometry.path == tmp_path / "ct"


def test_a_single_dicom_file(tmp_path):
    (file,) = write_series(tmp_path / "ct", VOXELS[:1])
    for path in (file, tmp_path / "ct"):
        source = VolumeSource(path)
        np.testing.assert_array_equal(source.read(0, 1)[0], VOXELS[:1])
        assert source.geometry.dicom_files == [file]


def test_a_real_volume(data_folder):
    path = sorted((data_folder("hippocampus") / "images").iterdir())[0]
    source = VolumeSource(path)
    image = sitk.ReadImage(str(path))
    check_bands(source, sitk.GetArrayFromImage(image)[None])
    assert source.geometry.direction == image.GetDirection()


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.nhdr", "data file: {}\n"),
        ("a.nhdr", "Data File: {}"),
        ("a.nrrd", "datafile: {}\n\n"),
        ("a.nhdr", "data file: {}%d.raw 1 11 1\n"),
        ("a.nhdr", "data file: LIST\nplane.raw\n{}\n"),
        ("a.mhd", "ElementDataFile = {}\n"),
        ("a.mhd", "ElementDataFile: {}"),
        ("a.mha", " ElementDataFile={}\n"),
        ("a.mhd", "ElementDataFile = {}%d.raw 1 11 1\n"),
        ("a.mhd", "ElementDataFile = LIST\nplane.raw\n{}\n"),
    ],
)
@pytest.mark.parametrize("outside", ["{secret}", "../secret.raw", "deeper/../../secret.raw"])
def test_a_header_that_names_a_file_elsewhere(tmp_path, name, header, outside):
    """A stranger's image would have any file of the machine read as voxels."""
    VOXELS.tofile(tmp_path / "secret.raw")
    folder = tmp_path / "images"
    folder.mkdir()
    named = header.format(outside.format(secret=tmp_path / "secret.raw"))
    begin = (
        "ObjectType = Image\nNDims = 3\nDimSize = 17 13 11\nElementType = MET_SHORT\n"
        if "ElementDataFile" in header
        else "NRRD0004\ntype: short\ndimension: 3\nsizes: 17 13 11\nencoding: raw\nendian: little\n"
    )
    (folder / name).write_text(begin + named)
    with pytest.raises(InputError, match=r"secret\.raw.* for its voxels, which is not in its own"):
        VolumeSource(folder / name)


@pytest.mark.parametrize("named", ["data/a.raw", "{folder}/data/a.raw", "./data/../data/a.raw"])
def test_a_header_that_names_a_file_in_its_own_folder(tmp_path, named):
    (tmp_path / "data").mkdir()
    VOXELS.tofile(tmp_path / "data" / "a.raw")
    (tmp_path / "a.nhdr").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 17 13 11\nencoding: raw\nendian: little\n"
        f"data file: {named.format(folder=tmp_path)}\n"
    )
    check_bands(VolumeSource(tmp_path / "a.nhdr"), VOXELS[None], heights=(4,))


def test_a_header_without_end(tmp_path):
    (tmp_path / "a.nhdr").write_bytes(b"NRRD0004\n" + b"# 34567\n" * (1 << 17))
    with pytest.raises(InputError, match="does not end within 1,048,576 bytes"):
        VolumeSource(tmp_path / "a.nhdr")


@pytest.mark.skipif(os.name != "posix", reason="the file system takes no such names")
@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_a_name_that_ends_itk(tmp_path, ending):
    """ITK would end the process, and with it all cases of a folder."""
    write(tmp_path / f"a.{ending}")
    path = (tmp_path / f"a.{ending}").rename(tmp_path / f"r\udcff.{ending}")
    with pytest.raises(InputError, match=r"r\\xff\..* is not a name in UTF-8"):
        VolumeSource(path)
