"""Optional libraries, and Pillow's limit."""

import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from nnunet_octreenca import libraries
from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.libraries import import_optional, unlimited_pillow

ROOT = Path(__file__).parents[1]


def test_a_missing_package_says_what_to_install():
    with pytest.raises(EnvironmentMismatchError, match=r'pip install "nnunet-octreenca\[slides\]"'):
        import_optional("no_such_package", "slides")


def test_a_package_whose_shared_library_is_missing_says_so(tmp_path, monkeypatch):
    """As openslide-python does without OpenSlide."""
    (tmp_path / "no_library.py").write_text("import ctypes\nctypes.CDLL('libno_such.so.0')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentMismatchError, match=r"no_library cannot be .*libno_such"):
        import_optional("no_library", "slides")


@pytest.mark.parametrize("module", ["zarr", "ome_zarr.writer", "numcodecs"])
def test_a_library_that_this_python_is_too_old_for(module, monkeypatch):
    """Installing the extra again would not bring it."""
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentMismatchError, match=r"needs Python 3\.11 or later.* is 3\.10"):
        import_optional(module, "slides")


def test_pythons_that_libraries_need_are_those_of_pyproject():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    marked = dict(re.findall(r"\"([\w-]+)[^\";]*; python_version >= '([\d.]+)'", project))
    needed = {name: ".".join(map(str, python)) for name, python in libraries._NEEDED_PYTHON.items()}
    assert marked == {"zarr": "3.11", "ome-zarr": "3.11"}
    assert {name.replace("-", "_"): version for name, version in marked.items()}.items() <= (
        needed.items()
    )


def test_the_limit_comes_back():
    before = Image.MAX_IMAGE_PIXELS
    assert before is not None

    def fail():
        with unlimited_pillow():
            with unlimited_pillow():
                assert Image.MAX_IMAGE_PIXELS is None
            assert Image.MAX_IMAGE_PIXELS is None
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert before == Image.MAX_IMAGE_PIXELS
