import numpy as np
import pytest
from helpers.label_maps import blobs, noise
from PIL import Image

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels.palette import PALETTE
from nnunet_octreenca.labels.png import write_frame_pngs, write_label_picture

NAMES = {0: "background", 1: "tümor", 2: "stroma"}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
@pytest.mark.parametrize("shape", [(40, 50), (1, 1), (3, 1)])
def test_pixels_are_the_labels_and_show_the_colours(tmp_path, shape, dtype):
    labels = noise(*shape, classes=256, dtype=dtype)
    write_label_picture(labels, tmp_path / "a.png", names=NAMES)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        assert picture.text["classes"] == "0: background\n1: tümor\n2: stroma"
        np.testing.assert_array_equal(np.asarray(picture), labels)
        shown = np.asarray(picture.convert("RGBA"))
    np.testing.assert_array_equal(shown[..., :3], PALETTE[labels])
    np.testing.assert_array_equal(shown[..., 3], np.where(labels == 0, 0, 255))


def test_a_view_is_written_as_it_looks(tmp_path):
    labels = noise(40, 50)[::2, ::-3]
    write_label_picture(labels, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), labels)


@pytest.mark.parametrize(("classes", "dtype"), [(5, np.uint8), (5, np.int16), (900, np.int16)])
def test_plain_pictures_are_what_nnunet_reads(tmp_path, classes, dtype):
    io = pytest.importorskip("skimage.io")
    labels = noise(40, 50, classes=classes, dtype=dtype)
    write_label_picture(labels, tmp_path / "a.png", plain=True)
    found = io.imread(tmp_path / "a.png")
    np.testing.assert_array_equal(found, labels)
    assert found.dtype == (np.uint8 if classes < 256 else np.uint16)


def test_labels_that_do_not_fit(tmp_path):
    with pytest.raises(OutputError, match=r"a\.png cannot hold label 256"):
        write_label_picture(np.array([[256]], np.int16), tmp_path / "a.png")
    with pytest.raises(OutputError, match="2 axes"):
        write_label_picture(np.zeros((1, 2, 3), np.uint8), tmp_path / "a.png")
    with pytest.raises(OutputError, match=r"frames/000001\.png cannot hold label 256"):
        write_frame_pngs(np.array([[[0]], [[256]]], np.int16), tmp_path / "frames", names=NAMES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stems", [None, ["frame_7_endo", "b", "a"]])
def test_one_picture_for_each_frame(tmp_path, stems):
    labels = blobs(3, 20, 30)
    write_frame_pngs(labels, tmp_path / "out", names=NAMES, stems=stems)
    expected = stems or ["000000", "000001", "000002"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{stem}.png" for stem in expected
    )
    for stem, frame in zip(expected, labels, strict=True):
        with Image.open(tmp_path / "out" / f"{stem}.png") as picture:
            assert picture.mode == "P"
            np.testing.assert_array_equal(np.asarray(picture), frame)


@pytest.mark.parametrize("stems", [["a", "b"], ["a", "b", "a"]])
def test_stems_must_name_the_frames(tmp_path, stems):
    with pytest.raises(OutputError, match="needs 3 different file names"):
        write_frame_pngs(blobs(3, 20, 30), tmp_path / "out", names=NAMES, stems=stems)
