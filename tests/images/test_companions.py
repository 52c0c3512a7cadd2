import numpy as np
import pytest
import SimpleITK

from nnunet_octreenca.images.companions import all_files, with_companions


def names(path):
    return [file.name for file in with_companions(path)]


@pytest.mark.parametrize(
    ("header", "text", "expected"),
    [
        ("a.mhd", "NDims = 3\nElementDataFile = a.raw\n", ["a.raw"]),
        ("a.mhd", "ElementDataFile = LIST\np1.raw\np2.raw\n", ["p1.raw", "p2.raw"]),
        ("a.mhd", "ElementDataFile = p%d.raw 1 2 1\n", ["p1.raw", "p2.raw"]),
        ("a.mhd", "ElementDataFile = p%03d.raw 1 2 1\n", ["p1.raw", "p2.raw"]),
        ("a.mha", "ElementDataFile = LOCAL\n1234", []),
        ("a.nhdr", "NRRD0004\ndata file: a.raw\n", ["a.raw"]),
        ("a.nhdr", "NRRD0004\ndata file: LIST\np1.raw\np2.raw", ["p1.raw", "p2.raw"]),
        ("a.nrrd", "NRRD0004\nencoding: raw\n\n1234", []),
        ("a.vms", "[Virtual Microscope]\nImageFile=a.raw\nNo=1\nX=../b\n", ["a.raw"]),
        ("a.nhdr", "NRRD0004\ndata file: gone.raw\n", []),
        ("a.png", "ElementDataFile = a.raw\n", []),
    ],
)
def test_what_is_read_beside_a_header(tmp_path, header, text, expected):
    for name in ("a.raw", "p1.raw", "p2.raw", "b"):
        (tmp_path / name).touch()
    (tmp_path / header).write_text(text)
    assert names(tmp_path / header) == [header, *expected]


def test_a_folder_beside_a_slide(tmp_path):
    (tmp_path / "s.mrxs").touch()
    assert names(tmp_path / "s.mrxs") == ["s.mrxs"]
    (tmp_path / "s").mkdir()
    assert names(tmp_path / "s.mrxs") == ["s.mrxs", "s"]


def test_what_itk_writes(tmp_path):
    image = SimpleITK.GetImageFromArray(np.zeros((2, 3, 4), np.uint8))
    for name in ("a.mhd", "b.nhdr"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
    found = all_files([tmp_path / "a.mhd", tmp_path / "b.nhdr"])
    assert {file.name for file in found} == {file.name for file in tmp_path.iterdir()}
