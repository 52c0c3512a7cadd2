"""The report in a real browser: no error, no request, tables that sort, a viewer that moves."""

import base64
import re

import numpy as np
import pytest
from helpers.browser import CHROMIUM, Browser, shown
from helpers.predicted_folders import make_folders

from nnunet_octreenca.cli.main import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: chromium)"),
]
COLUMN = "[...document.querySelectorAll('#summary-table tbody tr')].map(r => r.cells[{}].{})"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    make_folders(folder, cases=7, methods=("A", "B", "C"), images=True)
    words = [f"{name}={folder / name}" for name in "ABC"]
    code = main(
        ["compare", "--truth", str(folder / "truth"), "--predictions", *words,
         "--images", str(folder / "images"), "--viewer", "-o", str(folder / "out")]
    )  # fmt: skip
    assert code == 0
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def browser(report, tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.open(report)
        browser.wait("document.body.dataset.viewer === 'ready'")
        yield browser
    finally:
        browser.close()


@pytest.fixture(autouse=True)
def _no_error_and_no_request(browser):
    yield
    assert browser.errors == []
    asked = [a for a in browser.requests if not a.startswith(("file:", "data:", "blob:"))]
    assert asked == []
    assert sum(a.startswith("file:") for a in browser.requests) == 1  # the page itself


def test_the_page_forbids_what_would_leave_it(browser):
    """A request that a script makes is refused by the page's own policy."""
    refused = browser.run("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
    assert refused == "refused"
    browser.run("document.readyState")  # takes the events
    asked = [a for a in browser.requests if a.startswith("http")]
    complaints = [e for e in browser.errors if "Content Security Policy" in e]
    assert complaints
    browser.errors.clear()
    browser.requests[:] = [a for a in browser.requests if a not in asked]


def test_tables_sort_by_keyboard(browser):
    browser.run("document.querySelectorAll('#summary-table th button')[3].focus()")
    for direction in ("ascending", "descending"):
        browser.key("Enter")
        values = browser.run(COLUMN.format(3, "dataset.value"))
        numbers = [float(value) for value in values]
        assert numbers == sorted(numbers, reverse=direction == "descending")
        state = browser.run("document.querySelectorAll('#summary-table th')[3].ariaSort")
        assert state == direction
    browser.run("document.querySelectorAll('#summary-table th button')[1].click()")
    methods = browser.run(COLUMN.format(1, "textContent"))
    assert methods == sorted(methods)
    assert browser.run("document.querySelectorAll('#summary-table th[aria-sort]').length") == 1


def test_figures_have_text_and_no_double_id(browser):
    assert browser.run("document.querySelectorAll('figure svg text').length") > 100
    double = browser.run(
        "(() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id);"
        "return ids.filter((id, n) => ids.indexOf(id) < n).length; })()"
    )
    assert double == 0


def test_volumes_move_and_change(browser):
    """The keyboard moves the planes; another method and no overlay change the picture."""
    first = shown(browser, "#viewer-canvas")
    assert first.std() > 20  # not blank
    place = browser.run("document.getElementById('viewer-place').textContent")
    assert re.fullmatch(r"Voxel x \d+, y \d+, z \d+: right \(true positive\)", place)
    browser.run("document.getElementById('viewer-canvas').focus()")
    browser.key("PageUp")
    browser.wait(f"document.getElementById('viewer-place').textContent !== {place!r}")
    moved = shown(browser, "#viewer-canvas")
    assert (first != moved).any(-1).mean() > 0.02
    coloured = np.ptp(moved, axis=-1) > 40
    assert coloured.mean() > 0.05
    browser.run(
        "(() => { const e = document.getElementById('viewer-opacity'); e.value = 0;"
        "e.dispatchEvent(new Event('input')); })()"
    )
    assert (np.ptp(shown(browser, "#viewer-canvas"), axis=-1) > 40).mean() < 0.01


def test_scrolling_over_a_plane_moves_it(browser):
    browser.run("document.getElementById('viewer-canvas').scrollIntoView({block: 'center'})")
    place = browser.run("document.getElementById('viewer-place').textContent")
    box = browser.run(
        "(() => { const b = document.getElementById('viewer-canvas').getBoundingClientRect();"
        "return [b.x + b.width / 6, b.y + b.height / 2]; })()"
    )
    browser.call(
        "Input.dispatchMouseEvent", type="mouseWheel", x=box[0], y=box[1], deltaX=0, deltaY=-120
    )
    browser.wait(f"document.getElementById('viewer-place').textContent !== {place!r}")


def test_light_dark_and_print(browser):
    def paper() -> str:
        return browser.run("getComputedStyle(document.body).backgroundColor")

    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", features=dark)
    assert paper() == "rgb(22, 25, 29)"
    ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
    assert browser.run(ink) == "rgb(230, 233, 236)"
    browser.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert paper() == "rgb(255, 255, 255)"
    hidden = "getComputedStyle(document.getElementById('viewer')).display"
    assert browser.run(hidden) == "none"
    assert len(base64.b64decode(browser.call("Page.printToPDF")["data"])) > 20_000
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    assert browser.run(hidden) == "block"
