"""A model that was never trained, images, and moto's S3 as the store that they are put into."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.s3_server import empty_server
from helpers.tiny_slides import halved, picture, write_pyramid
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.prediction.folder import predict
from nnunet_octreenca.stores import faults


@pytest.fixture
def s3(monkeypatch):
    """The empty server, with its credentials in the environment."""
    yield from empty_server(monkeypatch)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(faults, "FIRST_PAUSE", 0.001)


@pytest.fixture(scope="package")
def rgb_folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("models") / "rgb")


@pytest.fixture(scope="package")
def rgb(rgb_folder):
    """A model for colours, 2-D."""
    return load_model(rgb_folder)


@pytest.fixture(scope="package")
def images(tmp_path_factory, rgb):
    """Two pictures, a slide, and the folder of what `predict` makes of them on a disk."""
    base = tmp_path_factory.mktemp("images")
    for seed, name in enumerate("ab"):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 44, 3), np.uint8)
        (base / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(base / "pictures" / f"{name}.png")
    fine = picture(1536, 1280)
    write_pyramid(
        base / "slides" / "s.tif",
        [fine, halved(fine), halved(fine, 2), halved(fine, 3)],
        mpp=0.25,
        tile=64,
    )
    predict(base / "pictures", base / "pictures_out", rgb, mirror=False)
    of_slide = predict(base / "slides", base / "slides_out", rgb, mirror=False, mpp=2.0)
    return SimpleNamespace(
        folder=base,
        pictures=base / "pictures",
        pictures_out=base / "pictures_out",
        slide=base / "slides" / "s.tif",
        slide_labels=of_slide.done[0].labels_sha256,
    )


@pytest.fixture
def scratch(tmp_path):
    """A folder for scratch, in which nothing is left after the test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    assert not list(folder.iterdir())
