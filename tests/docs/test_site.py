"""The site builds without a warning, links included, and needs no network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.doc_blocks import ROOT

pytest.importorskip("mkdocs", reason='the docs need `pip install ".[docs]"`')
pytest.importorskip("material", reason='the docs need `pip install ".[docs]"`')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def html(site: Path, name: str) -> str:
    return (site / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_pages(site):
    names = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {"index.html", "tutorial/first-model.html", "results/index.html"} <= names
    assert {"design.html", "changelog.html", "contributing.html"} <= names
    assert not list(site.rglob("*.py"))
    assert (site / "pictures/octree.svg").is_file()


@pytest.mark.slow
def test_the_live_page_is_a_model_of_the_zoo_with_a_made_image(site):
    assert '<iframe src="live/model.html"' in html(site, "live.html")
    page = html(site, "live/model.html")
    assert "connect-src &#39;none&#39;" in page
    model = json.loads(re.search(r'id="model">(.*?)</script>', page)[1])
    assert model["example"]["name"].startswith("made.")
    assert len(page) < 1_000_000


@pytest.mark.slow
def test_what_is_generated_arrives_on_the_pages(site):
    commands = html(site, "reference/commands.html")
    assert 'id="nnunet_octreenca-convert-slides"' in commands
    assert "--disable_tta" in commands
    assert "oversample_foreground_percent" in html(site, "reference/plans.html")
    api = html(site, "reference/python.html")
    assert 'id="nnunet_octreenca.network.octreenca.OctreeNCA"' in api
    assert "probability that a cell applies its update" in api
    for path in site.rglob("*.html"):
        assert "<!-- generated" not in path.read_text("utf-8"), path


@pytest.mark.slow
def test_nothing_comes_from_the_network(site):
    loaded = re.compile(
        r"""<(?:script|img|iframe|source)[^>]+src=["']?https?:|<link[^>]+href=["']?https?:"""
    )
    for path in site.rglob("*.html"):
        assert not loaded.search(path.read_text("utf-8")), path
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?https?:", path.read_text("utf-8")), path
