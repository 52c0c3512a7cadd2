import numpy as np
import pytest
from helpers.label_maps import blobs, noise

from nnunet_octreenca import __version__
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels.dicom_seg import write_dicom_seg

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

NAMES = {0: "background", 1: "tümor", 2: "stroma"}
SPACING = (0.7, 0.81, 2.5)
ORIGIN = (-10.25, 5.0, 3.25)
ANGLE = 0.3
ROW = (np.cos(ANGLE), np.sin(ANGLE), 0.0)  # of increasing column index
COLUMN = (-np.sin(ANGLE), np.cos(ANGLE), 0.0)
DIRECTION = tuple(np.stack([ROW, COLUMN, (0, 0, 1)], axis=1).ravel().tolist())


def by_position(dataset, labels_shape):
    """BINARY frames put back by pydicom alone, plane by plane where their positions say."""
    found = np.zeros(labels_shape, int)
    frames = dataset.pixel_array.reshape(-1, *labels_shape[1:])
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        offset = (position - ORIGIN) @ np.reshape(DIRECTION, (3, 3))
        np.testing.assert_allclose(offset[:2], 0, atol=1e-9)
        plane = round(offset[2] / SPACING[2])
        np.testing.assert_allclose(offset[2], plane * SPACING[2], atol=1e-9)
        identification = groups.SegmentIdentificationSequence[0]
        found[plane][frame == 1] = identification.ReferencedSegmentNumber
    return found


def volume_labels(dtype=np.uint8):
    labels = blobs(6, 21, 30, classes=4, dtype=dtype)
    labels[2] = 0
    labels[3][labels[3] == 2] = 0
    return labels


@pytest.fixture
def series(tmp_path):
    """A CT series, its files in the wrong order."""
    folder = tmp_path / "series"
    folder.mkdir()
    study, one_series, frame_of_reference = (highdicom.UID() for _ in range(3))
    for number in range(6):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        slice_.SOPClassUID = pydicom.uid.CTImageStorage
        slice_.SOPInstanceUID = highdicom.UID()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = study, one_series
        slice_.FrameOfReferenceUID = frame_of_reference
        slice_.PatientID, slice_.PatientName = "P1", "Doe^Jane"
        slice_.Modality = "CT"
        slice_.InstanceNumber = number + 1
        slice_.Rows, slice_.Columns = 21, 30
        slice_.PixelSpacing = [SPACING[1], SPACING[0]]
        slice_.SliceThickness = SPACING[2]
        slice_.ImageOrientationPatient = [f"{x:.12f}" for x in (*ROW, *COLUMN)]
        slice_.ImagePositionPatient = [*ORIGIN[:2], ORIGIN[2] + number * SPACING[2]]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 0
        slice_.PixelData = np.full((21, 30), number, np.uint16).tobytes()
        slice_.save_as(folder / f"{9 - number}.dcm", enforce_file_format=True)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
@pytest.mark.parametrize("labelmap", [False, True])
def test_a_volume_comes_back(tmp_path, labelmap, dtype):
    labels = volume_labels(dtype)
    write_dicom_seg(
        labels,
        tmp_path / "a.dcm",
        names=NAMES,
        spacing=SPACING,
        origin=ORIGIN,
        direction=DIRECTION,
        labelmap=labelmap,
    )
    found = highdicom.seg.segread(tmp_path / "a.dcm")
    volume = found.get_volume(combine_segments=True, allow_missing_positions=True)
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(DIRECTION, (3, 3)) * SPACING)[:, ::-1]
    affine[:3, 3] = ORIGIN
    # highdicom turns the planes to its own order; what counts is where each voxel lies.
    here = volume.match_geometry(
        highdicom.VolumeGeometry(
            affine,
            labels.shape,
            coordinate_system="PATIENT",
            frame_of_reference_uid=found.FrameOfReferenceUID,
        )
    )
    np.testing.assert_array_equal(here.array, labels)
    if not labelmap:
        plain = pydicom.dcmread(tmp_path / "a.dcm")
        np.testing.assert_array_equal(by_position(plain, labels.shape), labels)


def test_what_the_segments_say(tmp_path):
    names = {**NAMES, 3: "a\\b" + "x" * 80}
    write_dicom_seg(volume_labels(), tmp_path / "a.dcm", names=names)
    found = highdicom.seg.segread(tmp_path / "a.dcm")
    assert found.SOPClassUID == pydicom.uid.SegmentationStorage
    segments = [found.get_segment_description(number) for number in found.segment_numbers]
    assert [segment.segment_number for segment in segments] == [1, 2, 3]
    assert [segment.segment_label for segment in segments] == [
        "tümor",
        "stroma",
        ("a/b" + "x" * 80)[:64],
    ]
    algorithm = segments[0].algorithm_identification
    assert (algorithm.name, algorithm.version) == ("nnunet_octreenca", __version__)
    assert segments[0].SegmentAlgorithmType == "AUTOMATIC"
    assert str(found.PatientName) == ""


def test_unique_identifiers_are_new(tmp_path):
    written = []
    for _ in range(2):
        write_dicom_seg(volume_labels(), tmp_path / "a.dcm", names=NAMES)
        written.append(pydicom.dcmread(tmp_path / "a.dcm"))
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert written[0][keyword].value != written[1][keyword].value


@pytest.mark.parametrize("geometry", ["of the files", "given"])
def test_a_series_is_referred_to(tmp_path, series, geometry):
    labels = volume_labels()
    given = {"spacing": SPACING, "origin": ORIGIN, "direction": DIRECTION}
    write_dicom_seg(
        labels,
        tmp_path / "a.dcm",
        names=NAMES,
        dicom_files=series,
        **(given if geometry == "given" else {}),
    )
    plain = pydicom.dcmread(tmp_path / "a.dcm")
    np.testing.assert_array_equal(by_position(plain, labels.shape), labels)
    source = [pydicom.dcmread(file) for file in reversed(series)]
    assert (plain.PatientID, str(plain.PatientName)) == ("P1", "Doe^Jane")
    assert plain.StudyInstanceUID == source[0].StudyInstanceUID
    assert plain.FrameOfReferenceUID == source[0].FrameOfReferenceUID
    assert plain.SeriesInstanceUID != source[0].SeriesInstanceUID
    found = highdicom.seg.segread(tmp_path / "a.dcm").get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in source],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )
    np.testing.assert_array_equal(found, labels)


def test_simpleitk_reads_the_series_at_the_same_place(series):
    # What `by_position` takes for granted: ITK's geometry of this series is ours.
    sitk = pytest.importorskip("SimpleITK")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series[0].parent))
    image = sitk.ReadImage(names)
    np.testing.assert_allclose(image.GetSpacing(), SPACING)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN)
    np.testing.assert_allclose(image.GetDirection(), DIRECTION, atol=1e-9)
    assert sitk.GetArrayFromImage(image)[:, 0, 0].tolist() == list(range(6))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
@pytest.mark.parametrize("labelmap", [False, True])
def test_a_slide_comes_back(tmp_path, labelmap, dtype):
    labels = blobs(70, 101, classes=4, dtype=dtype)
    labels[:32, 32:64] = 0
    write_dicom_seg(
        labels, tmp_path / "a.dcm", names=NAMES, mpp=(0.2527, 0.5), labelmap=labelmap, tile=32
    )
    found = highdicom.seg.segread(tmp_path / "a.dcm")
    matrix = found.get_total_pixel_matrix(combine_segments=True)
    np.testing.assert_array_equal(matrix, labels)
    assert (found.TotalPixelMatrixRows, found.TotalPixelMatrixColumns) == (70, 101)
    measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(size) for size in measures.PixelSpacing] == [0.0002527, 0.0005]
    assert (found.Rows, found.Columns) == (32, 32)


def test_a_slides_tiles_by_pydicom_alone(tmp_path):
    labels = noise(70, 101, classes=3)
    write_dicom_seg(labels, tmp_path / "a.dcm", names=NAMES, mpp=0.5, tile=32)
    plain = pydicom.dcmread(tmp_path / "a.dcm")
    found = np.zeros((96, 128), int)
    for frame, groups in zip(
        plain.pixel_array, plain.PerFrameFunctionalGroupsSequence, strict=True
    ):
        position = groups.PlanePositionSlideSequence[0]
        y = position.RowPositionInTotalImagePixelMatrix - 1
        x = position.ColumnPositionInTotalImagePixelMatrix - 1
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[y : y + 32, x : x + 32][frame == 1] = number
    np.testing.assert_array_equal(found[:70, :101], labels)


@pytest.mark.parametrize("shape", [(2, 20, 30), (20, 30)])
def test_nothing_but_background(tmp_path, shape):
    labels = np.zeros(shape, np.uint8)
    write_dicom_seg(labels, tmp_path / "a.dcm", names={0: "background"}, mpp=0.5)
    found = highdicom.seg.segread(tmp_path / "a.dcm")
    assert not found.pixel_array.any()


def test_what_cannot_be_written_is_named(tmp_path, series):
    path = tmp_path / "a.dcm"
    with pytest.raises(OutputError, match="pixel size of the slide; give it with --mpp"):
        write_dicom_seg(blobs(5, 6), path, names=NAMES)
    with pytest.raises(OutputError, match=r"has shape \(6, 21, 30\), the labels \(5, 21, 30\)"):
        write_dicom_seg(volume_labels()[:5], path, names=NAMES, dicom_files=series)
    with pytest.raises(OutputError, match=r"a\.dcm cannot reference .*no\.dcm"):
        write_dicom_seg(volume_labels(), path, names=NAMES, dicom_files=[tmp_path / "no.dcm"])
    with pytest.raises(OutputError, match="needs the volume's spacing"):
        write_dicom_seg(volume_labels()[:1], path, names=NAMES, dicom_files=series[:1])
    with pytest.raises(OutputError, match="highdicom: "):
        write_dicom_seg(volume_labels(), path, names=NAMES, direction=(1, 1, 0, 0, 1, 0, 0, 0, 1))
    header = pydicom.dcmread(series[0])
    del header.ImagePositionPatient
    header.save_as(series[0])
    with pytest.raises(OutputError, match="slices lack a position"):
        write_dicom_seg(volume_labels(), path, names=NAMES, dicom_files=series)
    assert not path.exists()
