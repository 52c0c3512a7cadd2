"""MSD Task05: T2 out of four axes, zones merged or kept, geometry as it was."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_octreenca.datasets.prostate import convert_prostate
from nnunet_octreenca.errors import InputError, OutputError

SPACING, ORIGIN = (0.625, 0.625, 3.6), (-70.0, 12.5, 30.0)
DIRECTION = (1.0, 0.0, 0.0, 0.0, 0.8, -0.6, 0.0, 0.6, 0.8)


def write(path: Path, array: np.ndarray, four: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=False)
    direction = np.eye(3 + four)
    direction[:3, :3] = np.reshape(DIRECTION, (3, 3))
    image.SetSpacing((*SPACING, 1.0) if four else SPACING)
    image.SetOrigin((*ORIGIN, 0.0) if four else ORIGIN)
    image.SetDirection(direction.ravel().tolist())
    sitk.WriteImage(image, str(path))


def case(number: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(number)
    images = generator.uniform(0, 900, (2, 5, 9, 8 + number)).astype(np.float32)
    return images, generator.integers(0, 3, images.shape[1:]).astype(np.uint8)


@pytest.fixture
def decathlon(tmp_path) -> Path:
    """Three training cases and a test case in the published layout, with macOS's leftovers."""
    folder = tmp_path / "Task05_Prostate"
    for number in (0, 1, 4):
        images, labels = case(number)
        write(folder / f"imagesTr/prostate_{number:02d}.nii.gz", images, four=True)
        write(folder / f"labelsTr/prostate_{number:02d}.nii.gz", labels, four=False)
    write(folder / "imagesTs/prostate_03.nii.gz", case(3)[0], four=True)
    (folder / "imagesTr/._prostate_00.nii.gz").write_bytes(b"apple")
    (folder / "dataset.json").write_text("{}")
    return folder


def read(path: Path) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    assert image.GetSpacing() == pytest.approx(SPACING, rel=1e-5)
    assert image.GetOrigin() == pytest.approx(ORIGIN, rel=1e-5)
    assert image.GetDirection() == pytest.approx(DIRECTION, abs=1e-5)
    return sitk.GetArrayFromImage(image)


@pytest.mark.parametrize("channels", ["t2", "both"])
@pytest.mark.parametrize("zones", ["merge", "keep"])
def test_voxels_are_the_originals(decathlon, tmp_path, channels, zones):
    target = tmp_path / "Dataset105_Prostate"
    done = convert_prostate(decathlon.parent, target, channels=channels, zones=zones)
    assert (done.training, done.test, done.configuration) == (3, 1, "3d_fullres")
    count = 1 if channels == "t2" else 2
    for part, number in (("Tr", 0), ("Tr", 1), ("Tr", 4), ("Ts", 3)):
        images, labels = case(number)
        for channel in range(count):
            path = target / f"images{part}/prostate_{number:02d}_{channel:04d}.nii.gz"
            assert np.array_equal(read(path), images[channel])
        if part == "Tr":
            written = read(target / f"labelsTr/prostate_{number:02d}.nii.gz")
            assert np.array_equal(written, labels if zones == "keep" else labels > 0)
    assert len(list((target / "imagesTr").iterdir())) == 3 * count
    content = json.loads((target / "dataset.json").read_text())
    assert content["channel_names"] == dict(zip("01", ["T2", "ADC"][:count], strict=False))
    assert list(content["labels"].values()) == ([0, 1] if zones == "merge" else [0, 1, 2])
    assert not (target / "splits_final.json").exists()


def test_nnunets_reader_reads_it(decathlon, tmp_path):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    convert_prostate(decathlon, tmp_path / "out")
    files = [str(tmp_path / "out/imagesTr/prostate_01_0000.nii.gz")]
    image, properties = SimpleITKIO().read_images(files)
    assert np.array_equal(image[0], case(1)[0][0])
    assert properties["spacing"] == pytest.approx(SPACING[::-1], rel=1e-5)


def test_bad_input(decathlon, tmp_path):
    target = tmp_path / "out"
    label = decathlon / "labelsTr/prostate_01.nii.gz"
    good = label.read_bytes()
    label.unlink()
    with pytest.raises(InputError, match=r"prostate_01\.nii\.gz is missing"):
        convert_prostate(decathlon, target)
    assert not target.exists()
    write(label, case(0)[1], four=False)
    with pytest.raises(InputError, match=r"prostate_01.* has the size \(8, 9, 5\), but its image"):
        convert_prostate(decathlon, target)
    write(label, case(1)[1] + 1, four=False)
    with pytest.raises(InputError, match=r"prostate_01.* holds the value\(s\) \[3\]"):
        convert_prostate(decathlon, target)
    label.write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match=r"prostate_01.* cannot be read"):
        convert_prostate(decathlon, target)
    label.write_bytes(good)
    # What was written goes on; then it exists.
    written = (target / "labelsTr/prostate_00.nii.gz").stat().st_mtime_ns
    assert convert_prostate(decathlon, target).training == 3
    assert (target / "labelsTr/prostate_00.nii.gz").stat().st_mtime_ns == written
    with pytest.raises(OutputError, match="--overwrite"):
        convert_prostate(decathlon, target)
    assert convert_prostate(decathlon, target, overwrite=True).training == 3
    write(decathlon / "imagesTr/prostate_00.nii.gz", case(0)[1], four=False)
    with pytest.raises(InputError, match="four axes"):
        convert_prostate(decathlon, target, overwrite=True)
    with pytest.raises(InputError, match=r"holds no imagesTr/prostate_XX\.nii\.gz"):
        convert_prostate(tmp_path / "labelsTr", tmp_path / "other")
    with pytest.raises(InputError, match="'flair'"):
        convert_prostate(decathlon, tmp_path / "other", channels="flair")
