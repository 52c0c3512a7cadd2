"""Values of DICOM planes against the formula of the standard, computed here in double precision."""

import numpy as np
import pytest
from helpers.dicom_planes import dicom_folder, dicom_plane, enhanced

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import header_checks
from nnunet_octreenca.images.volumes import VolumeSource

pydicom = pytest.importorskip("pydicom")
RNG = np.random.default_rng(3)
SIGNED = RNG.integers(-2000, 3000, (6, 9, 11), np.int16)
UNSIGNED = RNG.integers(0, 65535, (6, 9, 11), np.uint16)
BYTES = (UNSIGNED % 7).astype(np.uint8)


def read(path):
    source = VolumeSource(path)
    return source.read(0, source.shape[0])


def check(path, truth, dtype):
    values = read(path)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values[0], truth.astype(dtype))


SCALES = {
    "as stored": ([1] * 6, [0] * 6, np.int16),
    "CT": ([1] * 6, [-1024] * 6, np.int32),
    "intercepts that differ": ([1] * 6, [0, -1024, -1000, 5, 7, 9], np.int32),
    "a first slope of 1 and fractions": ([1, 0.37, 2.5, 0.01, 11.3, 1e-4], [0] * 6, np.float32),
    "fractions in the intercept": ([1] * 6, [0, 0.5, 0, 0, -0.25, 0], np.float32),
    "PET": ([0.5 + 0.1 * n for n in range(6)], [0, 1.5, -2, 0, 0, 3], np.float32),
    "negative": ([-1] * 6, [10] * 6, np.int32),
    "large": ([100000] * 6, [0] * 6, np.float32),
}


@pytest.mark.parametrize("name", SCALES)
def test_slopes_and_intercepts_of_each_slice(tmp_path, name):
    slopes, intercepts, dtype = SCALES[name]
    dicom_folder(tmp_path / "a", SIGNED, RescaleSlope=slopes, RescaleIntercept=intercepts)
    truth = np.stack(
        [
            s * float(k) + float(i)
            for s, k, i in zip(SIGNED.astype(float), slopes, intercepts, strict=True)
        ]
    )
    check(tmp_path / "a", truth, dtype)


@pytest.mark.parametrize("modality", ["1.4", "128", "7"])
def test_a_slope_counts_in_every_kind_of_image(tmp_path, modality):
    """GDCM leaves it out of MR, for one."""
    uid = f"1.2.840.10008.5.1.4.1.1.{modality}"
    dicom_folder(tmp_path / "a", SIGNED, SOPClassUID=uid, RescaleSlope=[0.5 + n for n in range(6)])
    truth = SIGNED * (0.5 + np.arange(6.0))[:, None, None]
    check(tmp_path / "a", truth, np.float32)


def test_signed_and_unsigned_slices_in_one_series(tmp_path):
    planes = [*SIGNED[:3], *UNSIGNED[3:]]
    dicom_folder(tmp_path / "a", planes)
    check(tmp_path / "a", np.stack([plane.astype(float) for plane in planes]), np.int32)


def test_bytes_and_words_in_one_series(tmp_path):
    planes = [*(SIGNED[:3] % 200).astype(np.uint8), *SIGNED[3:]]
    dicom_folder(tmp_path / "a", planes)
    check(tmp_path / "a", np.stack([plane.astype(float) for plane in planes]), np.int16)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32])
def test_every_type(tmp_path, dtype):
    info = np.iinfo(dtype)
    voxels = RNG.integers(info.min, info.max, SIGNED.shape, dtype, endpoint=True)
    dicom_folder(tmp_path / "a", voxels)
    check(tmp_path / "a", voxels, np.float32 if dtype == np.uint32 else dtype)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("bits", "high"), [(12, 11), (12, 15), (10, 11), (16, 15), (1, 0), (9, 12)]
)
def test_bits_that_are_not_stored_are_none_of_the_value(tmp_path, bits, high, signed):
    """Old files keep overlays in them, or the sign only within the bits stored."""
    least = -(1 << (bits - 1)) if signed else 0
    truth = RNG.integers(least, least + (1 << bits), SIGNED.shape)
    mask = ((1 << bits) - 1) << (high + 1 - bits)
    words = ((truth << (high + 1 - bits)) & mask) | (RNG.integers(0, 65536, truth.shape) & ~mask)
    dicom_folder(
        tmp_path / "a",
        words.astype(np.uint16),
        BitsStored=bits,
        HighBit=high,
        PixelRepresentation=int(signed),
    )
    np.testing.assert_array_equal(read(tmp_path / "a")[0], truth)


def test_bits_stored_that_differ_from_slice_to_slice(tmp_path):
    truth = np.stack([RNG.integers(0, 1 << bits, (9, 11)) for bits in (8, 10, 12, 14, 15, 16)])
    bits = [8, 10, 12, 14, 15, 16]
    dicom_folder(
        tmp_path / "a", truth.astype(np.uint16), BitsStored=bits, HighBit=[b - 1 for b in bits]
    )
    check(tmp_path / "a", truth, np.uint16)


@pytest.mark.parametrize(
    "syntax",
    [
        "ImplicitVRLittleEndian",
        "ExplicitVRBigEndian",
        "DeflatedExplicitVRLittleEndian",
    ],
)
def test_native_transfer_syntaxes(tmp_path, syntax):
    dicom_folder(tmp_path / "a", SIGNED, syntax=getattr(pydicom.uid, syntax), RescaleSlope=0.5)
    check(tmp_path / "a", SIGNED * 0.5, np.float32)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless"])
@pytest.mark.parametrize("voxels", [SIGNED, UNSIGNED, BYTES], ids=["signed", "unsigned", "bytes"])
def test_compressed_slices(tmp_path, syntax, voxels):
    if syntax == "JPEGLSLossless":
        pytest.importorskip("jpeg_ls")
    slopes = [1, 0.37, 2.5, 0.01, 11.3, 1e-4]
    for file in dicom_folder(tmp_path / "a", voxels, RescaleSlope=slopes):
        dataset = pydicom.dcmread(file)
        dataset.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
        dataset.save_as(file)
    check(tmp_path / "a", voxels * np.array(slopes)[:, None, None], np.float32)


# Words only: GDCM's writer damages the heap on an odd number of bytes.
GDCM = [(name, kind) for name in ("JPEG", "JPEG2000", "JPEGLS", "RLE") for kind in "hH"]


@pytest.mark.parametrize(("compressor", "dtype"), GDCM)
def test_what_gdcm_compresses_without_loss(tmp_path, compressor, dtype):
    import SimpleITK as sitk

    voxels = SIGNED.astype(dtype)
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(voxels[:1]))
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    assert dataset.file_meta.TransferSyntaxUID.is_encapsulated
    dataset.RescaleSlope, dataset.RescaleIntercept = 0.25, -3
    dataset.save_as(tmp_path / "a.dcm")
    check(tmp_path / "a.dcm", voxels[:1] * 0.25 - 3, np.float32)


def test_compressed_frames_of_one_file(tmp_path):
    order = [3, 0, 5, 1, 4, 2]
    enhanced(tmp_path / "a.dcm", SIGNED, order, slopes=[1 + n for n in range(6)])
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "a.dcm")
    truth = (SIGNED * (1 + np.arange(6.0))[:, None, None])[np.argsort(order)]
    check(tmp_path / "a.dcm", truth, np.int32)


def test_every_frame_has_its_slope_and_place(tmp_path):
    order = [3, 0, 5, 1, 4, 2]
    slopes = [0.5, 1, 2, 0.3, 4, 5]
    enhanced(tmp_path / "a.dcm", UNSIGNED, order, slopes=slopes)
    truth = (UNSIGNED * np.array(slopes)[:, None, None])[np.argsort(order)]
    check(tmp_path / "a.dcm", truth, np.float32)


def test_a_modality_table(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTExplanation = [256, 0, 16], ""
    values = (np.arange(256) ** 2 // 3).astype(np.uint16)
    table.LUTData, table.ModalityLUTType = values.tobytes(), "OD"
    table["LUTData"].VR = "OW"
    stored = RNG.integers(0, 256, (9, 11)).astype(np.uint8)
    dicom_plane(
        tmp_path / "cr.dcm",
        stored,
        ModalityLUTSequence=[table],
        drop=("RescaleSlope", "RescaleIntercept"),
    )
    check(tmp_path / "cr.dcm", values[stored][None], np.float32)


def test_min_is_white_keeps_its_values(tmp_path):
    dicom_folder(tmp_path / "a", SIGNED, PhotometricInterpretation="MONOCHROME1")
    check(tmp_path / "a", SIGNED, np.int16)


def test_colours_are_channels(tmp_path):
    rgb = RNG.integers(0, 256, (9, 11, 3)).astype(np.uint8)
    form = {"SamplesPerPixel": 3, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    common = {**form, "Rows": 9, "Columns": 11}
    dicom_plane(
        tmp_path / "rgb.dcm", rgb, **common, PhotometricInterpretation="RGB",
        PlanarConfiguration=0, drop=("NumberOfFrames",),
    )  # fmt: skip
    np.testing.assert_array_equal(read(tmp_path / "rgb.dcm")[:, 0], np.moveaxis(rgb, -1, 0))
    dicom_plane(
        tmp_path / "planes.dcm", np.moveaxis(rgb, -1, 0), **common,
        PhotometricInterpretation="RGB", PlanarConfiguration=1, drop=("NumberOfFrames",),
    )  # fmt: skip
    np.testing.assert_array_equal(read(tmp_path / "planes.dcm")[:, 0], np.moveaxis(rgb, -1, 0))
    grey = np.repeat(rgb[..., :1], 3, -1)
    ybr = np.concatenate([grey[..., :1], np.full((9, 11, 2), 128, np.uint8)], -1)
    dicom_plane(
        tmp_path / "ybr.dcm", ybr, **common, PhotometricInterpretation="YBR_FULL",
        PlanarConfiguration=0, drop=("NumberOfFrames",),
    )  # fmt: skip
    np.testing.assert_array_equal(read(tmp_path / "ybr.dcm")[:, 0], np.moveaxis(grey, -1, 0))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"BitsStored": 17, "HighBit": 16}, "do not go together"),
        ({"BitsStored": 12, "HighBit": 3}, "do not go together"),
        ({"BitsAllocated": 12}, "12 bits a pixel"),
    ],
)
def test_pixels_that_cannot_be_read(tmp_path, attributes, message):
    dicom_plane(tmp_path / "a.dcm", UNSIGNED[0], **attributes)
    with pytest.raises(InputError, match=message):
        VolumeSource(tmp_path / "a.dcm")


def test_damaged_compressed_pixels_are_named(tmp_path):
    files = dicom_folder(tmp_path / "a", UNSIGNED)
    dataset = pydicom.dcmread(files[2])
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    dataset.PixelData = dataset.PixelData[:20] + bytes(64) + dataset.PixelData[84:]
    dataset.save_as(files[2])
    with pytest.raises(InputError, match=r"pixels of .*002\.dcm cannot be decoded .*gdcmconv"):
        VolumeSource(tmp_path / "a")


def test_more_planes_than_the_machine_holds(tmp_path, monkeypatch):
    dicom_folder(tmp_path / "a", SIGNED)
    monkeypatch.setattr(header_checks, "total_memory", lambda: SIGNED.nbytes - 1)
    with pytest.raises(InputError, match=r"needs .* in memory"):
        VolumeSource(tmp_path / "a")
