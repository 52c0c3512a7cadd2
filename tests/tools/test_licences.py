"""The list of licences: what metadata say, what wheels bundle, and the page of the docs."""

import json
from email.message import Message
from types import SimpleNamespace

import licences
import pytest
from helpers.doc_blocks import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def installed(*files: str, **fields: str | list[str]) -> SimpleNamespace:
    """A package with these metadata and files."""
    metadata = Message()
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            metadata[name.replace("_", "-")] = value
    return SimpleNamespace(metadata=metadata, files=list(files))


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License_Expression": "MIT", "License": "something else"}, "MIT"),
        ({"License": "LGPL-3.0-or-later"}, "LGPL-3.0-or-later"),
        ({"License": "UNKNOWN", "Classifier": ["License :: OSI Approved :: MIT License"]},
         "MIT License"),
        ({"License": "Apache License\n   Version 2.0, January 2004"}, "Apache-2.0"),
        ({"License": "Copyright\nRedistributions of source code must retain"}, "BSD"),
        ({"Classifier": ["License :: OSI Approved", "Programming Language :: C++"]}, "not stated"),
        ({}, "not stated"),
    ],
)  # fmt: skip
def test_licence_of(fields, licence):
    assert licences.licence_of(installed(**fields)) == licence


def test_copyleft_libraries_in_a_wheel_are_found():
    wheel = installed(
        "av.libs/libx264-1a2b.so.164", "av.libs/libavcodec-3c.so.61", "av/libx265.py",
        "av/.dylibs/libgmp.10.dylib",
    )  # fmt: skip
    assert licences.bundled_in(wheel) == (
        "FFmpeg: LGPL-3.0-or-later as built for PyAV",
        "GMP: LGPL-3.0-or-later or GPL-2.0-or-later",
        "x264: GPL-2.0-or-later",
    )


def test_closure_follows_extras_and_names_what_is_missing(monkeypatch):
    requires = {
        "top": ["a", 'b[more]; extra == "x"', 'never; python_version < "3"'],
        "a": ["c"],
        "b": ['d; extra == "more"', 'e; extra == "less"'],
        "c": ["a"],
    }

    def find(name):
        if name not in requires:
            raise licences.PackageNotFoundError(name)
        return SimpleNamespace(requires=requires[name])

    monkeypatch.setattr(licences, "distribution", find)
    assert licences.closure("top", ()) == ({"a", "c"}, [])
    assert licences.closure("top", ("x",)) == ({"a", "b", "c"}, ["d"])


def test_the_script_runs(capsys):
    assert licences.main(["--json"]) == 0
    by_name = {canonicalize_name(p["name"]): p for p in json.loads(capsys.readouterr().out)}
    assert "LGPL" in by_name["connected-components-3d"]["licence"]
    assert by_name["torch"]["direct"]
    assert by_name["torch"]["extras"] == []
    assert by_name["av"]["extras"] == ["video"]


def test_page_lists_every_direct_dependency():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"]]
    for extra in licences.EXTRAS:
        wanted += project["optional-dependencies"][extra]
    page = licences.PAGE.read_text(encoding="utf-8")
    listed = {canonicalize_name(line.split("|")[1].strip()) for line in page.splitlines()
              if line.startswith("| ")}  # fmt: skip
    for line in wanted:
        assert canonicalize_name(Requirement(line).name) in listed


def test_the_wheels_licence_is_that_of_all_its_contents():
    """A model whose data have a licence of their own must be in the metadata and on the page."""
    tomllib = pytest.importorskip("tomllib")
    spdx = pytest.importorskip("packaging.licenses")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    models = json.loads(licences.MODELS.read_text(encoding="utf-8"))["models"]
    inside = {licence for _, licence in licences.CONTENTS}
    inside |= {one["licence"] for one in models.values()}
    assert project["license"] == " AND ".join(sorted(inside))
    assert spdx.canonicalize_license_expression(project["license"]) == project["license"]
    for pattern in project["license-files"]:
        assert list(ROOT.glob(pattern)), pattern
    assert {path.parent.name for path in ROOT.glob("nnunet_octreenca/zoo/*/card.md")} == set(models)
    page = licences.PAGE.read_text(encoding="utf-8")
    for line in licences.contents():
        assert line in page, "run tools/licences.py --write"


def test_page_names_the_copyleft_parts():
    copyleft = licences.PAGE.read_text(encoding="utf-8").partition("## NVIDIA")[0]
    for name in ("connected-components-3d", "openslide-bin", "openslide-python", "av"):
        assert f"| {name} |" in copyleft


def test_other_extras_are_not_forgotten():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tools = {"all", "test", "docs", "dev"}
    assert set(project["optional-dependencies"]) - tools == {*licences.EXTRAS, *licences.UNLISTED}
