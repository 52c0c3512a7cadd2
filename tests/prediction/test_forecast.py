"""The memory that a case will take, from its header alone."""

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.errors import OutOfMemoryError
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.images.header import read_header
from nnunet_octreenca.images.open_image import open_channels
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.prediction.forecast import forecast
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.prediction.segmentation import Segmentation

GIB = 1 << 30


@pytest.fixture(scope="module")
def rgb(tmp_path_factory):
    return load_model(model_folder(tmp_path_factory.mktemp("models") / "rgb"))


@pytest.fixture(scope="module")
def mri(tmp_path_factory):
    folder = model_folder(
        tmp_path_factory.mktemp("models") / "mri",
        patch=(8, 16, 16),
        channels=2,
        ending=".nii.gz",
        spacing=(2.0, 1.0, 1.0),
    )
    return load_model(folder)


def picture(path, shape=(700, 300)):
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return Case(path.stem, (path,))


def volumes(folder, ending=".nii.gz"):
    files = []
    for channel in range(2):
        voxels = np.random.default_rng(channel).integers(1, 900, (9, 30, 28)).astype(np.int16)
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing((0.7, 0.8, 3.0))
        files.append(folder / f"case_{channel:04d}{ending}")
        sitk.WriteImage(image, str(files[-1]))
    return Case("case", tuple(files))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_header_says_what_the_open_image_says(tmp_path, ending):
    case = volumes(tmp_path, ending)
    header, source = read_header(case.files, channels=2), open_channels(case.files, channels=2)
    assert (header.shape, header.channels) == (source.shape, source.channels)
    assert header.spacing == pytest.approx(source.spacing)
    assert header.kept_bytes >= source.info.kept_bytes
    assert header.dtype.itemsize >= source.dtype.itemsize


@pytest.mark.parametrize("options", [Options(mirror=False), Options(quality=4)])
def test_the_forecast_is_the_plan_of_the_case(rgb, tmp_path, options):
    case = picture(tmp_path / "a.png")
    expected = forecast(case, rgb, options, [GIB, 4 * GIB])
    source = open_channels(case.files, channels=3)
    plan = Segmentation(source, rgb, options).plan
    assert expected.cells == 700 * 300
    assert expected.band_rows == plan.band_rows
    assert 0 < expected.bytes < plan.host


def test_resampled_volumes(mri, tmp_path):
    case = volumes(tmp_path)
    expected = forecast(case, mri, Options(mirror=False), [GIB])
    plan = Segmentation(open_channels(case.files, channels=2), mri, Options(mirror=False)).plan
    assert expected.band_rows >= plan.band_rows
    assert expected.bytes > read_header(case.files, channels=2).kept_bytes


def test_the_smallest_share_that_is_enough(rgb, tmp_path):
    case = picture(tmp_path / "a.png", (3000, 2500))
    options = Options(mirror=False)
    plenty = forecast(case, rgb, options, [4 * GIB])
    tight = plenty.bytes * 3 // 4
    less = forecast(case, rgb, options, [4 * GIB, tight])
    assert less.bytes <= tight
    assert less.band_rows < plenty.band_rows
    with pytest.raises(OutOfMemoryError, match=r"a\.png: .*\(a worker's share of its memory"):
        forecast(case, rgb, options, [1 << 20])
