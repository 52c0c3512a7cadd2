"""Maps of real numbers: read back as they were written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels.formats import LabelInfo
from nnunet_octreenca.labels.output import check_axes
from nnunet_octreenca.labels.values import values_ending, write_values


def read(path: Path) -> np.ndarray:
    if path.suffix == ".tif":
        with Image.open(path) as pages:
            found = []
            for number in range(pages.n_frames):
                pages.seek(number)
                found.append(np.asarray(pages))
        return np.stack(found)
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


@pytest.mark.parametrize(
    ("kind", "image", "ending"),
    [
        ("picture", "a.png", ".tif"),
        ("video", "a.mp4", ".tif"),
        ("volume", "a.nrrd", ".nrrd"),
        ("volume", "a.mhd", ".mha"),
        ("volume", "series", ".nii.gz"),
    ],
)
def test_values_come_back(tmp_path, kind, image, ending):
    (tmp_path / "series").mkdir()
    info = LabelInfo({}, kind, spacing=(1, 2, 3), image_path=tmp_path / image)
    shape = (5, 7) if kind == "picture" else (4, 5, 7)
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    assert values_ending(info) == ending
    path = tmp_path / f"map{ending}"
    write_values(values, path, info)
    assert np.array_equal(read(path).reshape(shape), values)


def test_labels_are_still_integers(tmp_path):
    with pytest.raises(OutputError, match="integers"):
        check_axes(np.zeros((2, 2)), tmp_path / "a.nii.gz", (2, 3))
