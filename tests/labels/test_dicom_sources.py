"""Segmentations of sources that lack what one must have, and what dciodvfy says of them."""

import shutil
import subprocess

import numpy as np
import pytest
from helpers.dicom_planes import dicom_folder, dicom_plane, enhanced
from helpers.label_maps import blobs

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.images.dicom_series import read_stack
from nnunet_octreenca.labels.dicom_seg import check_dicom_seg, write_dicom_seg

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")
SHAPE = (4, 9, 11)
STORED = np.random.default_rng(0).integers(0, 999, SHAPE, np.uint16)
LABELS = blobs(*SHAPE, classes=3)
NAMES = {0: "background", 1: "tümor", 2: "stroma"}


def errors(path):
    """What dciodvfy, of Debian's dicom3tools, finds wrong."""
    program = shutil.which("dciodvfy")
    if program is None:
        return []
    said = subprocess.run([program, path], capture_output=True, check=False)
    lines = (said.stdout + said.stderr).decode("latin-1").splitlines()
    return sorted({line for line in lines if line.startswith("Error")})


def segment(source, out, labels=LABELS, **more):
    """Check, then write, as a prediction does; the data set that was written."""
    stack = read_stack(source)
    geometry = {
        "spacing": stack.spacing,
        "origin": stack.origin,
        "direction": stack.direction,
        "dicom_files": stack.files,
    }
    check_dicom_seg(labels.shape, out, names=NAMES, **geometry)
    write_dicom_seg(labels, out, names=NAMES, **geometry, **more)
    return pydicom.dcmread(out)


SOURCES = {
    "complete": {},
    "no frame of reference": {"drop": ("FrameOfReferenceUID",)},
    "an empty frame of reference": {"FrameOfReferenceUID": ""},
    "no thickness": {"drop": ("SliceThickness",)},
    "an empty thickness": {"SliceThickness": None},
    "no character set": {"drop": ("SpecificCharacterSet",)},
    "no patient": {
        "drop": ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate",
                 "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")
    },
    "no study": {"drop": ("StudyInstanceUID", "SeriesInstanceUID")},
    "no position reference": {"drop": ("PositionReferenceIndicator",)},
    "no preamble": {"preamble": False},
    "no meta information, implicit": {
        "preamble": False, "syntax": pydicom.uid.ImplicitVRLittleEndian
    },
    "big endian": {"syntax": pydicom.uid.ExplicitVRBigEndian},
    "MR": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR"},
    "PET": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128", "Modality": "PT", "Units": "BQML"},
    "oblique": {"ImageOrientationPatient": [[0.6, 0.8, 0, -0.8, 0.6, 0]] * 4},
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_a_series(tmp_path, name):
    files = dicom_folder(tmp_path / "ct", STORED, **SOURCES[name])
    found = segment(tmp_path / "ct", tmp_path / "a.dcm")
    assert errors(tmp_path / "a.dcm") == []
    measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) == 2
    assert list(map(float, measures.PixelSpacing)) == [0.6, 0.5]
    assert found.FrameOfReferenceUID
    source = pydicom.dcmread(files[0], force=True)
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        if source.get(keyword):
            assert found.get(keyword) == source.get(keyword)
    back = np.zeros(SHAPE, int)
    frames = found.pixel_array.reshape(-1, *SHAPE[1:])
    for frame, group in zip(frames, found.PerFrameFunctionalGroupsSequence, strict=True):
        plane = round(float(group.PlanePositionSequence[0].ImagePositionPatient[2]) / 2)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        back[plane][frame == 1] = number
    np.testing.assert_array_equal(back, LABELS)


PERSONS = {
    "latin 1": ("ISO_IR 100", "Müller^Jörg"),
    "UTF-8": ("ISO_IR 192", "山田^太郎"),
    "Japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "Cyrillic": ("ISO_IR 144", "Люкceмбypг"),
    "Greek": ("ISO_IR 126", "Διονυσιος"),
    "Arabic": ("ISO_IR 127", "قباني^لنزار"),
    "Chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
}


@pytest.mark.parametrize("name", PERSONS)
def test_names_keep_their_characters(tmp_path, name):
    characters, person = PERSONS[name]
    dicom_folder(
        tmp_path / "ct",
        STORED,
        SpecificCharacterSet=[characters] * 4,
        PatientName=person,
        ReferringPhysicianName=person,
    )
    found = segment(tmp_path / "ct", tmp_path / "a.dcm")
    assert str(found.PatientName) == person
    assert str(found.ReferringPhysicianName) == person
    assert found.SpecificCharacterSet == "ISO_IR 192"
    segments = found.SegmentSequence
    assert segments[0].SegmentLabel == "tümor"
    assert errors(tmp_path / "a.dcm") == []


NOWHERE = ("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "PixelSpacing")


@pytest.mark.parametrize("frame", [True, False])
@pytest.mark.parametrize("sop_class", ["1.1", "1.1.1", "1.2", "7"])
def test_a_projection(tmp_path, sop_class, frame):
    more = () if frame else ("FrameOfReferenceUID", "PositionReferenceIndicator")
    header = dicom_plane(
        tmp_path / "dx.dcm",
        STORED[0],
        SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{sop_class}",
        Modality="DX",
        ImagerPixelSpacing=[0.14, 0.15],
        drop=(*NOWHERE, *more),
    )
    found = segment(tmp_path / "dx.dcm", tmp_path / "a.dcm", LABELS[:1])
    assert "FrameOfReferenceUID" not in found
    assert found.StudyInstanceUID == header.StudyInstanceUID
    back = np.zeros(SHAPE[1:], int)
    frames = found.pixel_array.reshape(-1, *SHAPE[1:])
    for frame_, group in zip(frames, found.PerFrameFunctionalGroupsSequence, strict=True):
        back[frame_ == 1] = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    np.testing.assert_array_equal(back, LABELS[0])
    assert errors(tmp_path / "a.dcm") == []


def test_a_single_slice_with_a_place(tmp_path):
    dicom_plane(tmp_path / "a.dcm", STORED[0], (1, 2, 3), SliceThickness=5)
    found = segment(tmp_path / "a.dcm", tmp_path / "s.dcm", LABELS[:1])
    group = found.PerFrameFunctionalGroupsSequence[0]
    assert list(map(float, group.PlanePositionSequence[0].ImagePositionPatient)) == [1, 2, 3]
    assert errors(tmp_path / "s.dcm") == []


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_a_multi_frame_file(tmp_path, order):
    enhanced(tmp_path / "ct.dcm", STORED, [3 * place for place in order])
    found = segment(tmp_path / "ct.dcm", tmp_path / "a.dcm")
    back = np.zeros(SHAPE, int)
    frames = found.pixel_array.reshape(-1, *SHAPE[1:])
    for frame, group in zip(frames, found.PerFrameFunctionalGroupsSequence, strict=True):
        place = [float(x) for x in group.PlanePositionSequence[0].ImagePositionPatient]
        assert place[:2] == [-5, 7]
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        back[round(place[2] / 3)][frame == 1] = number
    np.testing.assert_array_equal(back, LABELS)
    assert errors(tmp_path / "a.dcm") == []


def test_several_multi_frame_files(tmp_path):
    (tmp_path / "ct").mkdir()
    enhanced(tmp_path / "ct" / "b", STORED[:2], [0, 3])
    enhanced(tmp_path / "ct" / "a", STORED[2:], [6, 9])
    segment(tmp_path / "ct", tmp_path / "a.dcm")
    assert errors(tmp_path / "a.dcm") == []


@pytest.mark.parametrize("labelmap", [False, True])
def test_slides_and_volumes_that_are_no_dicom(tmp_path, labelmap):
    write_dicom_seg(blobs(70, 101, classes=3), tmp_path / "slide.dcm", names=NAMES, mpp=0.5,
                    labelmap=labelmap, tile=32)  # fmt: skip
    write_dicom_seg(LABELS, tmp_path / "volume.dcm", names=NAMES, labelmap=labelmap)
    if labelmap:  # newer than the program's tables
        return
    assert errors(tmp_path / "slide.dcm") == []
    assert errors(tmp_path / "volume.dcm") == []


def test_what_cannot_be_written_is_refused_before(tmp_path):
    files = dicom_folder(tmp_path / "ct", STORED)
    with pytest.raises(OutputError, match="needs the pixel size of the slide"):
        check_dicom_seg((9, 11), tmp_path / "a.dcm", names=NAMES)
    with pytest.raises(OutputError, match=r"has shape \(4, 9, 11\), the labels \(5, 9, 11\)"):
        check_dicom_seg((5, 9, 11), tmp_path / "a.dcm", names=NAMES, dicom_files=files)
    files[0].write_bytes(b"cut")
    with pytest.raises(OutputError, match=r"cannot reference .*000\.dcm"):
        check_dicom_seg(SHAPE, tmp_path / "a.dcm", names=NAMES, dicom_files=files)
    assert not (tmp_path / "a.dcm").exists()
