import numpy as np
import pytest
from helpers.dicom_planes import dicom_folder, dicom_plane, enhanced
from helpers.dicom_slices import write_series

from nnunet_octreenca.dicom_file import dicom_files, is_dicom
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.dicom_series import read_stack

pydicom = pytest.importorskip("pydicom")
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (8, 13, 17), np.int16)


def test_slices_are_sorted_by_their_position(tmp_path):
    files = write_series(tmp_path / "ct", VOXELS)
    (tmp_path / "ct" / "notes.txt").write_text("no slice")
    (tmp_path / "ct" / "._0.dcm").write_bytes(bytes(128) + b"DICM")
    assert read_stack(tmp_path / "ct").files == files
    assert dicom_files(tmp_path / "ct") == sorted(files)
    assert is_dicom(files[0])
    assert not is_dicom(tmp_path / "ct" / "notes.txt")


@pytest.mark.parametrize(
    "syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "ExplicitVRBigEndian"]
)
@pytest.mark.parametrize("drop", [(), ("SpecificCharacterSet",)])
def test_files_without_preamble(tmp_path, syntax, drop):
    files = dicom_folder(
        tmp_path / "old", VOXELS, preamble=False, syntax=getattr(pydicom.uid, syntax), drop=drop
    )
    assert dicom_files(tmp_path / "old") == files
    stack = read_stack(tmp_path / "old")
    assert stack.files == files
    assert stack.spacing == (0.5, 0.6, 2.0)


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"\x08\x00",
        bytes(200),
        b"\x08\x00\x05\x00" + bytes(196),
        b"\x08\0\0\0\xff\xff" * 30,
        b"# notes on CT, 8 of 12" * 10,
        b"\x89PNG\r\n\x1a\n" + bytes(200),
    ],
)
def test_what_is_no_dicom(tmp_path, begin):
    (tmp_path / "file").write_bytes(begin)
    assert not is_dicom(tmp_path / "file")


@pytest.mark.parametrize("lost", [1, 4, 6])
def test_a_missing_slice_is_named_by_its_neighbours(tmp_path, lost):
    files = write_series(tmp_path / "ct", VOXELS)
    files[lost].unlink()
    before, after = files[lost - 1].name, files[lost + 1].name
    with pytest.raises(InputError, match=rf"{before} and {after} .* 4\.00 mm, elsewhere 2\.00 mm"):
        read_stack(tmp_path / "ct")


def test_positions_that_were_rounded_are_even(tmp_path):
    files = write_series(tmp_path / "ct", VOXELS, positions=[round(0.625 * n, 1) for n in range(8)])
    assert read_stack(tmp_path / "ct").files == files


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.98])
def test_a_truncated_slice_is_named(tmp_path, share):
    files = write_series(tmp_path / "ct", VOXELS)
    files[3].write_bytes(files[3].read_bytes()[: int(share * files[3].stat().st_size)])
    with pytest.raises(InputError, match=rf"{files[3].name} cannot be read as DICOM.*1 of 8"):
        read_stack(tmp_path / "ct")


@pytest.mark.parametrize(
    "syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "ExplicitVRBigEndian"]
)
def test_pixels_that_do_not_fill_rows_and_columns(tmp_path, syntax):
    syntax = getattr(pydicom.uid, syntax)
    for keyword, less, taken in (("Rows", 6, 204), ("Columns", 9, 234)):
        dicom_plane(tmp_path / "a.dcm", VOXELS[0], syntax=syntax)
        header = pydicom.dcmread(tmp_path / "a.dcm")
        header[keyword].value = less
        header.save_as(tmp_path / "a.dcm")
        with pytest.raises(InputError, match=rf"a\.dcm .*take {taken} bytes and 442 are there"):
            read_stack(tmp_path / "a.dcm")


@pytest.mark.parametrize("keyword", ["Rows", "Columns"])
def test_no_rows_or_columns(tmp_path, keyword):
    dicom_plane(tmp_path / "a.dcm", VOXELS[0], **{keyword: 0})
    with pytest.raises(InputError, match=rf"a\.dcm has .*0 {keyword}.*damaged"):
        read_stack(tmp_path / "a.dcm")


def test_several_numbers_where_one_belongs(tmp_path):
    dicom_plane(tmp_path / "a.dcm", VOXELS[0])
    data = (tmp_path / "a.dcm").read_bytes()
    columns = b"\x28\x00\x11\x00US"
    at = data.index(columns) + len(columns)
    (tmp_path / "a.dcm").write_bytes(data[:at] + b"\x04\x00\x11\x00" + data[at + 2 :])
    with pytest.raises(InputError, match=r"a\.dcm cannot be read as DICOM .*what cannot be"):
        read_stack(tmp_path / "a.dcm")


def test_a_type_that_dicom_does_not_have(tmp_path):
    dicom_plane(tmp_path / "a.dcm", VOXELS[0])
    data = (tmp_path / "a.dcm").read_bytes()
    assert data.count(b"\x20\x00\x32\x00DS") == 1
    (tmp_path / "a.dcm").write_bytes(data.replace(b"\x20\x00\x32\x00DS", b"\x20\x00\x32\x00DX"))
    with pytest.raises(InputError, match=r"a\.dcm cannot be read as DICOM .*'DX'"):
        read_stack(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("behind", "said"),
    [
        (b"", None),
        (bytes(100), None),
        (b"\xfc\xff\xfc\xffOB\0\0\x04\0\0\0junk", None),  # padding, as the standard has it
        (VOXELS[0, :1].tobytes(), "something else than elements follows"),
    ],
)
def test_what_follows_the_pixels(tmp_path, behind, said):
    """Bytes that came in amid the pixels push the last of them behind their end."""
    dicom_plane(tmp_path / "a.dcm", VOXELS[0])
    with (tmp_path / "a.dcm").open("ab") as file:
        file.write(behind)
    if said:
        with pytest.raises(InputError, match=rf"a\.dcm .*{said}"):
            read_stack(tmp_path / "a.dcm")
    else:
        assert len(read_stack(tmp_path / "a.dcm").planes) == 1


# --- several series, and what is no image ---

OTHERS = {
    "RTSTRUCT": pydicom.uid.RTStructureSetStorage,
    "SR": pydicom.uid.EnhancedSRStorage,
    "PR": pydicom.uid.GrayscaleSoftcopyPresentationStateStorage,
    "KO": pydicom.uid.KeyObjectSelectionDocumentStorage,
}


def test_two_series_in_a_folder(tmp_path):
    dicom_folder(tmp_path / "ct", VOXELS, SeriesDescription="thin")
    for number, plane in enumerate(VOXELS[:3]):
        dicom_plane(tmp_path / "ct" / f"b{number}", plane, (0, 0, 5 * number), series="2")
    with pytest.raises(
        InputError,
        match=r"2 DICOM series: 2\.25\.8\.1 \(CT 3 thin, 8 files\); 2\.25\.8\.2 \(CT 3, 3 files\); "
        r"choose one with --series UID",
    ):
        read_stack(tmp_path / "ct")
    stack = read_stack(tmp_path / "ct", "2.25.8.2")
    assert [file.name for file in stack.files] == ["b0", "b1", "b2"]
    assert stack.notes == ("ct: left out 8 images of 1 other series",)
    with pytest.raises(InputError, match=r"no DICOM series 2\.25\.8\.3, but 2\.25\.8\.1 "):
        read_stack(tmp_path / "ct", "2.25.8.3")


def test_a_folder_without_a_series(tmp_path):
    with pytest.raises(InputError, match="holds no DICOM series of images"):
        read_stack(tmp_path)
    dicom_plane(
        tmp_path / "a", VOXELS[0], SOPClassUID=OTHERS["SR"], Modality="SR", drop=("Rows", "Columns")
    )
    with pytest.raises(InputError, match="no DICOM series of images, but 1 SR"):
        read_stack(tmp_path)
    with pytest.raises(InputError, match="is a DICOM SR, no image"):
        read_stack(tmp_path / "a")


def test_other_objects_beside_the_images_are_counted(tmp_path):
    folder = tmp_path / "ct"
    files = dicom_folder(folder, VOXELS)
    bare = ("Rows", "Columns", "BitsAllocated", "BitsStored")
    for number, modality in enumerate([*OTHERS, "PR"]):
        dicom_plane(
            folder / f"o{number}",
            VOXELS[0],
            series=str(number),
            SOPClassUID=OTHERS[modality],
            Modality=modality,
            drop=bare,
        )
    for name, uid in (("seg", "66.4"), ("map", "66.7"), ("dose", "481.2")):
        uid = f"1.2.840.10008.5.1.4.1.1.{uid}"
        dicom_plane(folder / name, VOXELS[0], series="7", SOPClassUID=uid)
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    stack = read_stack(folder)
    assert stack.files == files
    assert stack.notes == (
        "ct: left out 1 DICOMDIR, 1 KO, 2 PR, 1 RTDOSE, 1 RTSTRUCT, 2 SEG, 1 SR",
    )


# --- one stack ---

TILT = np.deg2rad(15)
DIFFERENT = {
    "direction": (
        {"ImageOrientationPatient": [[1, 0, 0, 0, 1, 0]] * 7 + [[0, 1, 0, -1, 0, 0]]},
        r"007\.dcm has the direction \(0, 1, 0, -1, 0, 0\) and 000\.dcm \(1, 0, 0, 0, 1, 0\)",
    ),
    "slightly turned": (
        {
            "ImageOrientationPatient": [[1, 0, 0, 0, 1, 0]] * 7
            + [[0.99995, 0.01, 0, -0.01, 0.99995, 0]]
        },
        r"007\.dcm has the direction .* and 000\.dcm",
    ),
    "pixel size": (
        {"PixelSpacing": [[0.6, 0.5]] * 5 + [[0.61, 0.5]] * 3},
        r"005\.dcm has the pixel size \(0\.61, 0\.5\) mm and 000\.dcm \(0\.6, 0\.5\) mm",
    ),
    "no pixel size": (
        {"drop": [()] * 6 + [("PixelSpacing",)] * 2},
        r"006\.dcm has the pixel size \(none\) mm and 000\.dcm \(0\.6, 0\.5\) mm",
    ),
    "units": ({"Units": ["BQML"] * 7 + ["CNTS"]}, r"007\.dcm has Units CNTS and 000\.dcm BQML"),
    "modality": ({"Modality": ["CT"] * 7 + ["PT"]}, r"007\.dcm has Modality PT and 000\.dcm CT"),
    "photometric": (
        {"PhotometricInterpretation": ["MONOCHROME2"] * 4 + ["MONOCHROME1"] * 4},
        r"004\.dcm has PhotometricInterpretation MONOCHROME1 and 000\.dcm MONOCHROME2",
    ),
    "frame of reference": (
        {"FrameOfReferenceUID": ["2.25.1"] * 4 + ["2.25.2"] * 4},
        r"004\.dcm has FrameOfReferenceUID 2\.25\.2 and 000\.dcm 2\.25\.1",
    ),
    "a slope once": (
        {"RescaleSlope": 2, "drop": [()] * 6 + [("RescaleSlope", "RescaleIntercept")] * 2},
        r"006\.dcm has the RescaleSlope None and 000\.dcm 2\.0",
    ),
    "an intercept once": (
        {"RescaleIntercept": -1024, "drop": [()] * 6 + [("RescaleIntercept",)] * 2},
        r"006\.dcm has the RescaleIntercept None and 000\.dcm -1024\.0",
    ),
    "cine": (
        {"position": (0, 0, 7), "TriggerTime": [30 * n for n in range(8)]},
        r"000\.dcm and 001\.dcm lie at one place \(they differ in TriggerTime \(none\) and 30\.0\)"
        r": the 8 planes of .*ct lie at 1 place,",
    ),
    "cine of a place that was rounded": (
        {"position": [(0, 0, 7 + 1e-4 * n) for n in range(8)]},
        r"lie at one place: the 8 planes of .*ct lie at 1 place,",
    ),
    "echoes": (
        {"position": [(0, 0, 3 * (n // 2)) for n in range(8)], "EchoTime": [5, 80] * 4},
        r"they differ in EchoTime 5\.0 and 80\.0\): the 8 planes of .*ct lie at 4 places,",
    ),
    "phases one after another": (
        {
            "position": [(0, 0, 3 * (n % 4)) for n in range(8)],
            "AcquisitionNumber": [1] * 4 + [2] * 4,
        },
        r"000\.dcm and 004\.dcm lie at one place .*AcquisitionNumber 1 and 2",
    ),
    "a slice double": (
        {"position": [(0, 0, z) for z in (0, 2, 4, 4, 6, 8, 10, 12)]},
        r"002\.dcm and 003\.dcm lie at one place",
    ),
    "the same slice": (
        {
            "position": [(0, 0, z) for z in (0, 2, 4, 4, 6, 8, 10, 12)],
            "SOPInstanceUID": [f"2.25.{number}" for number in (0, 1, 2, 2, 4, 5, 6, 7)],
        },
        r"002\.dcm and 003\.dcm are the same slice \(SOPInstanceUID 2\.25\.2\); remove one",
    ),
    "two slabs": (
        {"position": [(0, 0, 2 * n + (50 if n > 3 else 0)) for n in range(8)]},
        r"between .*003\.dcm and 004\.dcm the distance is 52\.00 mm, elsewhere 2\.00 mm",
    ),
    "a last slice far off": (
        {"position": [(0, 0, z) for z in (0, 2, 4, 6, 8, 10, 12, 15)]},
        r"between .*006\.dcm and 007\.dcm the distance is 3\.00 mm",
    ),
    "one row of slices shifted": (
        {"position": [(0, 5 if n > 4 else 0, 2 * n) for n in range(8)]},
        r"005\.dcm is shifted by 5\.00 mm within its plane against 004\.dcm",
    ),
    "one slice shifted": (
        {"position": [(0.4 * (n == 3), 0, 2 * n) for n in range(8)]},
        r"00[34]\.dcm is shifted by 0\.40 mm",
    ),
    "tilted about x": (
        {"ImageOrientationPatient": [[1, 0, 0, 0, np.cos(TILT), np.sin(TILT)]] * 8},
        r"leans by 15\.0 degrees \(a tilted gantry\): from 000\.dcm to 007\.dcm the planes shift "
        r"by 3\.6 mm .*dcm2niix",
    ),
    "tilted about y": (
        {"ImageOrientationPatient": [[np.cos(TILT), 0, np.sin(TILT), 0, 1, 0]] * 8},
        r"leans by 15\.0 degrees",
    ),
    "no position": (
        {"drop": [()] * 7 + [("ImagePositionPatient",)]},
        r"007\.dcm does not say where it lies",
    ),
    "no directions": (
        {"drop": [("ImageOrientationPatient",)] * 8},
        r"000\.dcm does not say where it lies",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_planes_that_are_no_volume_are_named(tmp_path, name):
    changes, message = DIFFERENT[name]
    dicom_folder(tmp_path / "ct", VOXELS, **changes)
    with pytest.raises(InputError, match=message):
        read_stack(tmp_path / "ct")


def test_slices_of_another_size(tmp_path):
    dicom_folder(tmp_path / "ct", VOXELS)
    dicom_plane(tmp_path / "ct" / "x.dcm", VOXELS[0, :5], (10, 20, 16))
    with pytest.raises(InputError, match=r"x\.dcm has 5 x 17 pixels and 000\.dcm 13 x 17"):
        read_stack(tmp_path / "ct")


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("RescaleSlope", 0, "RescaleSlope 0 makes all voxels equal"),
        ("PixelSpacing", [0, 0.5], "PixelSpacing .* is not above 0"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "not a pair of perpendicular axes"),
        ("ImagePositionPatient", [1, 2], "should be 3 numbers"),
    ],
)
def test_a_number_that_is_none_names_its_file(tmp_path, keyword, value, message):
    dicom_folder(tmp_path / "ct", VOXELS, **{keyword: [value] * 8})
    with pytest.raises(InputError, match=rf"000\.dcm has a header .*{message}"):
        read_stack(tmp_path / "ct")


def test_what_does_not_matter_may_differ(tmp_path):
    """Slightly rounded cosines and positions, a lean below a quarter pixel, and bits."""
    files = dicom_folder(
        tmp_path / "ct",
        VOXELS,
        ImageOrientationPatient=[[1, 2e-4 * (n % 2), 0, 0, 1, 0] for n in range(8)],
        position=[(10 + 0.01 * n, 20 - 0.02 * (n % 3), 2 * n) for n in range(8)],
        RescaleIntercept=[-1024, -1000] * 4,
        RescaleType=["HU", ""] * 4,
        AcquisitionNumber=list(range(8)),
    )
    assert read_stack(tmp_path / "ct").files == files


@pytest.mark.parametrize("reverse", [False, True])
def test_oblique_slices_lie_where_itk_has_them(tmp_path, reverse):
    import SimpleITK as sitk

    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    rotation[:, 2] = np.cross(rotation[:, 0], rotation[:, 1])
    steps = range(8)[::-1] if reverse else range(8)
    dicom_folder(
        tmp_path / "mr",
        VOXELS,
        ImageOrientationPatient=[[*rotation[:, 0], *rotation[:, 1]]] * 8,
        position=[tuple([3, 4, 5] + 2.5 * n * rotation[:, 2]) for n in steps],
    )
    stack = read_stack(tmp_path / "mr")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "mr"))
    image = sitk.ReadImage(names)
    assert [str(file) for file in stack.files] == list(names)
    np.testing.assert_allclose(stack.spacing, image.GetSpacing(), atol=1e-6)
    np.testing.assert_allclose(stack.origin, image.GetOrigin(), atol=1e-6)
    np.testing.assert_allclose(stack.direction, image.GetDirection(), atol=1e-6)


# --- frames of one file ---


@pytest.mark.parametrize("order", [range(8), range(8)[::-1], [3, 0, 7, 1, 6, 2, 5, 4]])
def test_frames_are_sorted_by_their_position(tmp_path, order):
    enhanced(tmp_path / "a.dcm", VOXELS, [3 * place for place in order])
    stack = read_stack(tmp_path / "a.dcm")
    assert [plane.frame for plane in stack.planes] == np.argsort(order).tolist()
    assert (stack.spacing, stack.origin) == ((0.5, 0.6, 3.0), (-5.0, 7.0, 0.0))
    assert stack.files == [tmp_path / "a.dcm"]


FRAMES = {
    "two times": (
        [3 * (n % 4) for n in range(8)],
        r"a\.dcm frame 1 and a\.dcm frame 5 lie at one place \(they differ in "
        r"TemporalPositionIndex 1 and 2\): the 8 planes of .* lie at 4 places",
    ),
    "one place": ([6] * 8, "lie at one place"),
    "a gap": ([3 * n + 30 * (n > 3) for n in range(8)], r"frame 4 and a\.dcm frame 5 the distance"),
    "shifted": ([(n // 4, 0, 3 * n) for n in range(8)], r"frame 5 is shifted by 1\.00 mm"),
    "tilted": ([(0, n, 3 * n) for n in range(8)], r"leans by 18\.4 degrees"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_are_no_volume_are_named(tmp_path, name):
    places, message = FRAMES[name]
    enhanced(
        tmp_path / "a.dcm", VOXELS, places, TemporalPositionIndex=[1 + n // 4 for n in range(8)]
    )
    with pytest.raises(InputError, match=message):
        read_stack(tmp_path / "a.dcm")


def test_fewer_frames_described_than_there_are(tmp_path):
    enhanced(tmp_path / "a.dcm", VOXELS, range(7))
    with pytest.raises(InputError, match="has 8 frames and describes 7"):
        read_stack(tmp_path / "a.dcm")


def test_several_multi_frame_files_are_one_stack(tmp_path):
    """As some scanners split long stacks."""
    (tmp_path / "ct").mkdir()
    enhanced(tmp_path / "ct" / "b", VOXELS[:4], [0, 3, 6, 9])
    enhanced(tmp_path / "ct" / "a", VOXELS[4:], [12, 15, 18, 21])
    stack = read_stack(tmp_path / "ct")
    assert [file.name for file in stack.files] == ["b", "a"]
    assert stack.spacing[2] == 3


def test_frames_without_a_place_are_a_film(tmp_path):
    dicom_plane(tmp_path / "us.dcm", VOXELS, Modality="US", FrameTime=40)
    with pytest.raises(InputError, match=r"us\.dcm has 8 frames and does not say where each lies"):
        read_stack(tmp_path / "us.dcm")


def test_frames_of_dose_and_nuclear_medicine(tmp_path):
    dicom_plane(
        tmp_path / "dose.dcm",
        VOXELS,
        (1, 2, 3),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2",
        GridFrameOffsetVector=[2.5 * n for n in range(8)],
        DoseGridScaling=0.001,
        Modality="RTDOSE",
    )
    stack = read_stack(tmp_path / "dose.dcm")
    assert (stack.spacing[2], stack.origin, stack.planes[0].slope) == (2.5, (1, 2, 3), 0.001)
    dicom_plane(
        tmp_path / "nm.dcm",
        VOXELS,
        FrameIncrementPointer=pydicom.tag.Tag(0x00540080),
        SpacingBetweenSlices=4,
        Modality="NM",
    )
    assert read_stack(tmp_path / "nm.dcm").spacing[2] == 4
    dicom_plane(
        tmp_path / "gated.dcm",
        VOXELS,
        FrameIncrementPointer=[pydicom.tag.Tag(0x00540070), pydicom.tag.Tag(0x00540080)],
        SpacingBetweenSlices=4,
        Modality="NM",
    )
    with pytest.raises(InputError, match="does not say where each lies"):
        read_stack(tmp_path / "gated.dcm")


# --- projections ---


@pytest.mark.parametrize(
    ("attributes", "spacing"),
    [
        ({"ImagerPixelSpacing": [0.14, 0.15]}, (0.15, 0.14, 1.0)),
        ({"NominalScannedPixelSpacing": [0.3, 0.3]}, (0.3, 0.3, 1.0)),
        ({}, (1.0, 1.0, 1.0)),
    ],
)
def test_a_projection_without_a_place(tmp_path, attributes, spacing):
    nowhere = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
    dicom_plane(tmp_path / "dx.dcm", VOXELS[0], drop=nowhere, **attributes)
    stack = read_stack(tmp_path / "dx.dcm")
    assert stack.spacing == spacing
    assert stack.origin == (0, 0, 0)
