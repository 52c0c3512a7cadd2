"""The pictures' scripts run, always draw the same, and drew what is committed."""

import re
import runpy
import sys

import matplotlib as mpl
import pytest
from helpers.doc_blocks import ROOT, pages
from PIL import Image

PICTURES = ROOT / "docs" / "pictures"
TRAINED = ("descent", "explain", "failures")  # by scripts that train a network first
SCRIPTS = sorted(path.stem for path in PICTURES.glob("*.py") if path.stem != "style")


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Runs a script as `python docs/pictures/NAME.py FOLDER ...` does, in this process."""

    def run(name: str, *flags: str) -> str:
        script = PICTURES / f"{name}.py"
        monkeypatch.syspath_prepend(PICTURES)
        monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path), *flags])
        for module in ("style", "descent"):  # the one sets matplotlib up, the other uses it
            monkeypatch.delitem(sys.modules, module, raising=False)
        with mpl.rc_context():
            runpy.run_path(str(script), run_name="__main__")
        svg = tmp_path / f"{name}.svg"
        return svg.read_text(encoding="utf-8") if svg.exists() else ""

    return run


def test_every_picture_has_its_script_and_its_place():
    drawn = [path.stem for ending in ("svg", "gif") for path in PICTURES.glob(f"*.{ending}")]
    assert sorted(drawn) == SCRIPTS
    shown = set(
        re.findall(r"pictures/(\w+)\.(?:svg|gif)", "".join(p.read_text("utf-8") for p in pages()))
    )
    assert shown == set(SCRIPTS)


@pytest.mark.parametrize("name", [n for n in SCRIPTS if n not in TRAINED])
def test_picture_is_what_its_script_draws(name, draw):
    drawn = draw(name)
    committed = (PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<?xml")
    if f"Matplotlib v{mpl.__version__}," in committed:  # others place text differently
        assert drawn == committed


def test_the_descent_is_the_networks(draw):
    """The script compares its levels with the network's own result; a short training will do."""
    drawn = draw("descent", "--iterations", "2")
    committed = (PICTURES / "descent.svg").read_text(encoding="utf-8")
    assert drawn.count("<image") == committed.count("<image") == 6


def test_the_failures_are_a_networks(draw):
    """Five panels, each an image with what was found and what is there, whatever the training."""
    drawn = draw("failures", "--iterations", "2")
    committed = (PICTURES / "failures.svg").read_text(encoding="utf-8")
    assert drawn.count("<image") == committed.count("<image") == 5
    for picture in (drawn, committed):
        assert 5 < picture.count('id="QuadContourSet') <= 10


def test_the_animation_is_small_and_of_its_script(draw, tmp_path):
    """As many frames as the network has views, whatever the training."""
    draw("explain", "--iterations", "1")
    committed = PICTURES / "explain.gif"
    assert committed.stat().st_size < 500_000
    with Image.open(committed) as shown, Image.open(tmp_path / "explain.gif") as drawn:
        assert shown.size == drawn.size
        assert shown.n_frames >= 40
