"""Pictures for the page's viewer: what is seen where, and that no text leaves its script."""

import base64
import io
import json

import numpy as np
import pytest
from helpers.predicted_pictures import make_pictures
from PIL import Image

from nnunet_octreenca.comparison import picture_viewer
from nnunet_octreenca.comparison.inputs import find_inputs
from nnunet_octreenca.comparison.overlays import OUTCOMES, load_case
from nnunet_octreenca.errors import InputError


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


@pytest.fixture
def loaded(tmp_path):
    truth, methods = make_pictures(tmp_path, cases=1)
    methods = {"</script><b>": methods["A"], "B": methods["B"]}
    return load_case(find_inputs(truth, methods, images=tmp_path / "images"), 0)


def test_overlays_lie_over_the_image(loaded):
    made = picture_viewer.picture_viewer({"case": loaded})
    assert "<" not in made["data"]
    (case,) = json.loads(made["data"])["cases"]
    assert made["methods"] == ["</script><b>", "B", "truth"]
    assert case["corner"] == list(loaded.corner[::-1])
    image = np.asarray(opened(case["image"]).convert("RGB"), int)
    assert np.abs(image - np.moveaxis(loaded.image, 0, -1)).mean() < 12  # JPEG of noise
    shown = np.asarray(opened(case["overlays"]["</script><b>"]).convert("RGBA"))
    stored = loaded.outcomes["</script><b>"]
    assert np.array_equal(shown[..., 3] > 0, stored > 0)
    for number, (_, colour) in OUTCOMES.items():
        assert (shown[stored == number][:, :3] == colour).all()


def test_large_pictures_are_thinned_and_the_page_says_so(loaded, monkeypatch):
    monkeypatch.setattr(picture_viewer, "_MOST_PIXELS", 500)
    made = picture_viewer.picture_viewer({"case": loaded})
    (case,) = json.loads(made["data"])["cases"]
    assert case["step"] > 1
    assert f"one pixel in {case['step']} along each axis" in made["note"]
    wanted = tuple(-(-n // case["step"]) for n in loaded.truth.shape[::-1])
    assert opened(case["image"]).size == opened(case["overlays"]["B"]).size == wanted


def test_only_pictures(loaded):
    from dataclasses import replace

    volume = replace(loaded, truth=np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(InputError, match="--viewer shows pictures"):
        picture_viewer.picture_viewer({"case": volume})


def test_the_library_can_stand_in_a_page():
    text = picture_viewer.OPENSEADRAGON.read_text(encoding="utf-8")
    assert "</script" not in text.lower()
    assert "<!--" not in text
    licence = (picture_viewer.OPENSEADRAGON.parent / "LICENSE").read_text(encoding="utf-8")
    assert "OpenSeadragon contributors" in licence
    assert "Neither the name of CodePlex Foundation" in licence
