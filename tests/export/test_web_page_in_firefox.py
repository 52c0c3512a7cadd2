"""The exported page in Firefox, which rounds and decodes by itself; also with pixels it alters."""

import time

import numpy as np
import pytest
from helpers.firefox import FIREFOX, Firefox
from helpers.oracle import native_kernels
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca import load_model, segment_file
from nnunet_octreenca.export.html import write_html
from nnunet_octreenca.ops.native import KERNELS_VARIABLE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FIREFOX is None, reason="Firefox is not installed (Debian: firefox-esr)"),
]
READY = "document.body.dataset.state === 'ready'"
STATUS = "document.getElementById('status').textContent"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A page, its model's folder, and a picture in two formats."""
    folder = tmp_path_factory.mktemp("firefox")
    y, x = np.mgrid[:120, :161]
    waves = [130 + 90 * np.sin(x / 9 + c) * np.cos(y / (14 + c)) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 9, (120, 161, 3))
    picture = Image.fromarray((np.stack(waves, -1) + noise).clip(1, 255).astype(np.uint8))
    picture.save(folder / "a.png")
    picture.save(folder / "a.jpg", quality=92)
    model = model_folder(folder / "model", folds=("0", "1"))
    write_html(load_model(model), folder / "page.html")
    return folder


@pytest.fixture(params=[False, True], ids=["plain", "resistFingerprinting"])
def firefox(request, files, tmp_path):
    (tmp_path / "saved").mkdir()
    settings = {"privacy.resistFingerprinting": request.param}
    browser = Firefox(tmp_path / "profile", tmp_path / "saved", settings)
    try:
        browser.open(files / "page.html")
        browser.wait(READY)
        yield browser, request.param
    finally:
        browser.close()


def segmented(browser, path):
    browser.run("document.body.dataset.state = 'asked'")
    browser.choose("#files", path)
    browser.wait(READY)
    return browser.run(STATUS)


def picture_of(path):
    """A picture's pixels, once it is there whole."""
    end = time.monotonic() + 30
    while True:
        try:
            return np.asarray(Image.open(path))
        except OSError:
            assert time.monotonic() < end, f"{path.name} was not saved"
            time.sleep(0.1)


def test_labels_are_those_of_predict_or_refused(firefox, files, tmp_path, monkeypatch):
    browser, resists = firefox
    for name in ("a.png", "a.jpg"):
        said = segmented(browser, files / name)
        if resists and name == "a.jpg":
            assert "alters pixels that a page reads" in said
            continue
        assert said.startswith(f"{name}: 161 x 120"), said
        kernels = "avx2" if "WebAssembly relaxed" in said else "plain"
        if kernels in native_kernels():
            monkeypatch.setenv(KERNELS_VARIABLE, kernels)
        wanted = segment_file(files / name, files / "model")
        saved = tmp_path / "saved" / "a_labels.png"
        saved.unlink(missing_ok=True)
        browser.run("document.getElementById('save-labels').click()")
        labels = picture_of(saved)
        assert len(np.unique(wanted)) > 1
        assert (labels != wanted).sum() == 0
