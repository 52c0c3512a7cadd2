"""The pictures' scripts run, always draw the same, and drew what is committed."""

import re
import runpy
import sys

import matplotlib as mpl
import pytest
from helpers.doc_blocks import ROOT, pages

PICTURES = ROOT / "docs" / "pictures"
SCRIPTS = sorted(path.stem for path in PICTURES.glob("*.py") if path.stem != "style")


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Runs a script as `python docs/pictures/NAME.py FOLDER ...` does, in this process."""

    def run(name: str, *flags: str) -> str:
        script = PICTURES / f"{name}.py"
        monkeypatch.syspath_prepend(PICTURES)
        monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path), *flags])
        monkeypatch.delitem(sys.modules, "style", raising=False)  # it sets matplotlib up
        with mpl.rc_context():
            runpy.run_path(str(script), run_name="__main__")
        return (tmp_path / f"{name}.svg").read_text(encoding="utf-8")

    return run


def test_every_picture_has_its_script_and_its_place():
    assert sorted(path.stem for path in PICTURES.glob("*.svg")) == SCRIPTS
    shown = set(re.findall(r"pictures/(\w+)\.svg", "".join(p.read_text("utf-8") for p in pages())))
    assert shown == set(SCRIPTS)


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "descent"])
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
