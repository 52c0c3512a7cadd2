"""What is generated is complete, and what is written by hand names what is there."""

import argparse
import dataclasses
import doctest
import importlib.util
import json
import re
from pathlib import Path

import pytest
from helpers.doc_blocks import ROOT, pages

import nnunet_octreenca
from nnunet_octreenca.cli.main import build_parser
from nnunet_octreenca.images.open_image import ENDINGS
from nnunet_octreenca.labels.formats import FORMATS
from nnunet_octreenca.planning.settings import Settings

DOCS = ROOT / "docs"
SOURCES = [
    path
    for folder in ("nnunet_octreenca", "cpu", "cuda")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".cpp", ".hpp", ".cuh")
]
VARIABLE = re.compile(r'"((?:OCTREENCA|OMP|PYTHON|XDG)_?[A-Z_]+|nnUNet_[A-Za-z_]+)"')
# Quoted like a variable, and none: a kernel's name and the like.
OTHER = {"OCTREENCA_KERNEL"}


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("reference_hook", DOCS / "hooks/reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_every_flag_of_every_command(hook):
    text = hook.commands()
    sections = dict(re.findall(r"^#+ `([^`]+)`\n(.*?)(?=^#+ `|\Z)", text, re.M | re.S))
    parsers = [parser for parser, _ in hook.subcommands(build_parser())]
    assert {"nnunet_octreenca predict", "nnunet_octreenca convert slides"} <= set(sections)
    assert {parser.prog for parser in parsers} == set(sections)
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            for flag in action.option_strings:
                row = re.search(rf"^\| .*`{re.escape(flag)}`.* \| (.+) \|$",
                                sections[parser.prog], re.M)  # fmt: skip
                assert row, f"{parser.prog} {flag} is not documented"
                assert len(row[1]) > 5
    assert "default: nnUNetOctreeNCAPlans" in sections["nnunet_octreenca extend_plans"]
    assert "**Required.**" in sections["nnunet_octreenca predict"]


def test_every_key_of_the_plans(hook):
    rows = hook.settings().splitlines()
    fields = dataclasses.fields(Settings)
    assert len(rows) == 2 + len(fields)
    for field, row in zip(fields, rows[2:], strict=True):
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 4
        assert all(cells)
        assert cells[0] == f"`{field.name}`"
    assert any("0.0016" in row for row in rows)


def test_every_public_name(hook):
    text = hook.python_api()
    public = [name for name in nnunet_octreenca.__all__ if not name.startswith("_")]
    assert [line.rsplit(".", 1)[1] for line in text.split("\n") if line] == public


def test_what_is_generated_has_its_place(hook):
    asked = {name for page in pages() for name in hook.PLACEHOLDER.findall(page.read_text("utf-8"))}
    assert asked == set(hook.GENERATED)
    page = "before\n<!-- generated: settings -->\nafter"
    assert hook.on_page_markdown(page) == f"before\n{hook.settings()}\nafter"
    assert doctest.testmod(hook).failed == 0


def test_environment_variables():
    """Every variable that the package reads or sets has a row, and no other one of ours."""
    used = {name for path in SOURCES for name in VARIABLE.findall(path.read_text("utf-8"))} - OTHER
    assert {"OCTREENCA_ENGINE", "nnUNet_octreenca_seed", "nnUNet_extTrainer"} <= used
    rows = [line.split(" | ")[0] for line in read("reference/environment.md").splitlines()]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert used - documented == set()
    ours = {name for name in documented if "octreenca" in name.lower()}
    assert ours - used == set()


def test_formats():
    text = read("reference/formats.md")
    read_part, written = text.split("## Label formats")
    first_cells = [line.split(" | ")[0] for line in written.splitlines() if line.startswith("| `")]
    assert {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)} == set(FORMATS)
    listed = set(re.findall(r"`(\.[\w.]+)`", read_part))
    assert listed == {ending for endings in ENDINGS.values() for ending in endings}


def test_scripts_and_files_that_pages_name_exist():
    named = {
        (page.name, name)
        for page in pages()
        for name in re.findall(
            r"(?:benchmarks|tests|cpu|cuda|docs/pictures)/[\w/]+\.(?:py|cpp|cuh|hpp)",
            page.read_text(encoding="utf-8"),
        )
    }
    assert len(named) > 8
    assert {name for name in named if not (ROOT / name[1]).is_file()} == set()


def test_the_designs_sections_are_numbered_as_they_are_cited():
    headings = {
        int(n): title for n, title in re.findall(r"^## (\d+)\. (.+)$", read("design.md"), re.M)
    }
    assert list(headings) == list(range(1, 11))
    cited = {
        (path.name, int(number))
        for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]
        for number in re.findall(r"DESIGN section (\d+)", path.read_text(encoding="utf-8"))
    }
    assert len(cited) > 8
    assert {number for _, number in cited} <= set(headings)
    # What is cited by words has to be there as well.
    assert {headings[1], headings[2], headings[3], headings[5]} == {
        "The model", "The planner", "Training", "Whole images of any size",
    }  # fmt: skip
    assert "**Output.**" in read("design.md")
    assert "**Fire draws are counter-based.**" in read("design.md")


def test_version_of_the_citation():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert version
    assert f"\nversion: {version[1]}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_changelog_and_contributing_guide_are_pages(tmp_path):
    spec = importlib.util.spec_from_file_location("project", DOCS / "hooks/project_files.py")
    assert spec
    pytest.importorskip("mkdocs")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.LINK.sub(r"\1", "[a](docs/design.md)") == "[a](design.md)"
    assert all((ROOT / name).is_file() for name in module.PAGES.values())


def test_pages_are_where_the_navigation_says():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.md$", text, re.M))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert named - there == {"changelog.md", "contributing.md"}
    assert there - named == set()


def test_no_page_names_a_folder_of_the_machine():
    for path in [*pages(), *(Path(ROOT / name) for name in ("CITATION.cff", "SECURITY.md"))]:
        assert not re.search(r"(?<![\w.])/(work|root|home)/", path.read_text("utf-8")), path


def test_promises_name_tests_that_exist():
    """Every test that the page on reliability names is a function of the file it names."""
    page = read("explanation/reliability.md")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 50
    missing = []
    for path, function in named:
        file = ROOT / path
        defined = file.exists() and re.search(rf"^def {function}\(", file.read_text("utf-8"), re.M)
        if not defined:
            missing.append(f"{path}::{function}")
    assert not missing, "reliability.md names tests that are not there"


def test_every_promise_has_a_test():
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", read("explanation/reliability.md"), re.M)
    promises = [row for row in rows if row[0] not in ("promise", "---")]
    assert len(promises) > 40
    assert all("::test_" in row[1] for row in promises)


def test_table_of_versions(hook):
    """One row per combination that was run, with what came of it."""
    rows = json.loads(read("results/matrix.json"))
    text = hook.versions()
    for row in rows:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {row['name']} |"))
        assert line.endswith(f"| {row['state']} |")
        assert f"{row['passed']} passed, {row['failed']} failed" in line
        if row["state"] == "passed":
            assert row["passed"] > 20
            assert row["failed"] == 0
            assert row["versions"]["torch"] in line
