import numpy as np
import pytest
from dicom_slices import write_series

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.dicom_series import dicom_files, is_dicom, series_files

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (8, 13, 17), np.int16)


def test_slices_are_sorted_by_their_position(tmp_path):
    files = write_series(tmp_path / "ct", VOXELS)
    (tmp_path / "ct" / "notes.txt").write_text("no slice")
    (tmp_path / "ct" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert series_files(tmp_path / "ct") == files
    assert dicom_files(tmp_path / "ct") == sorted(files)
    assert is_dicom(files[0])
    assert not is_dicom(tmp_path / "ct" / "notes.txt")


@pytest.mark.parametrize("lost", [1, 4, 6])
def test_a_missing_slice_is_named_by_its_neighbours(tmp_path, lost):
    files = write_series(tmp_path / "ct", VOXELS)
    files[lost].unlink()
    before, after = files[lost - 1].name, files[lost + 1].name
    with pytest.raises(InputError, match=rf"{before} and {after} .* 4\.00 mm, elsewhere 2\.00 mm"):
        series_files(tmp_path / "ct")


def test_a_slice_twice(tmp_path):
    write_series(tmp_path / "ct", VOXELS, positions=[0, 2, 4, 4, 6, 8, 10, 12])
    with pytest.raises(InputError, match=r"0\.00 mm, elsewhere 2\.00 mm; .* missing or double"):
        series_files(tmp_path / "ct")


def test_positions_that_were_rounded_are_even(tmp_path):
    files = write_series(tmp_path / "ct", VOXELS, positions=[round(0.625 * n, 1) for n in range(8)])
    assert series_files(tmp_path / "ct") == files


@pytest.mark.parametrize("share", [0.5, 0.98])
def test_a_truncated_slice_is_named(tmp_path, share):
    """GDCM leaves it out without a word."""
    files = write_series(tmp_path / "ct", VOXELS)
    files[3].write_bytes(files[3].read_bytes()[: int(share * files[3].stat().st_size)])
    with pytest.raises(InputError, match=rf"{files[3].name} cannot be read as DICOM.*1 of 8"):
        series_files(tmp_path / "ct")


def test_two_series_in_a_folder(tmp_path):
    write_series(tmp_path / "ct", VOXELS, series="1")
    write_series(tmp_path / "ct", VOXELS[:3], series="2")
    with pytest.raises(InputError, match=r"2 DICOM series: .*\(8 files\), .*\(3 files\)"):
        series_files(tmp_path / "ct")


def test_a_folder_without_a_series(tmp_path):
    with pytest.raises(InputError, match="holds 0 DICOM series"):
        series_files(tmp_path)


def test_slices_of_several_directions(tmp_path):
    turned = [(1, 0, 0, 0, 1, 0)] * 7 + [(0, 1, 0, -1, 0, 0)]
    files = write_series(tmp_path / "ct", VOXELS, directions=turned)
    with pytest.raises(InputError, match=rf"{files[-1].name} differs in size or direction"):
        series_files(tmp_path / "ct")
