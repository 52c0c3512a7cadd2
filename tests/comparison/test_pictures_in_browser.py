"""The report of pictures in a real browser: OpenSeadragon shows, zooms and changes them."""

import re

import numpy as np
import pytest
from helpers.browser import CHROMIUM, Browser, shown
from helpers.predicted_pictures import make_pictures

from nnunet_octreenca.cli.main import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: chromium)"),
]
GREEN, RED = (0, 168, 107), (226, 42, 38)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    make_pictures(folder)
    words = [f"{name}={folder / name}" for name in "AB"]
    code = main(
        ["compare", "--truth", str(folder / "truth"), "--predictions", *words, "--images",
         str(folder / "images"), "--viewer", "--metrics", "dice", "-o", str(folder / "out")]
    )  # fmt: skip
    assert code == 0
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.open(folder / "out" / "report.html")
        browser.wait("document.body.dataset.viewer === 'ready'")
        yield browser
    finally:
        browser.close()


def set_value(browser: Browser, name: str, value: str, event: str) -> None:
    """Change a control as a user does, and wait for the pictures."""
    browser.run(
        f"(() => {{ const e = document.getElementById('viewer-{name}'); e.value = {value!r};"
        f"e.dispatchEvent(new Event('{event}')); }})()"
    )
    browser.wait("document.body.dataset.viewer === 'ready'")
    browser.run("new Promise((done) => setTimeout(done, 500))")  # it has faded in


def share(pixels: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Of the pixels that lean to a colour."""
    tint = pixels - pixels.mean(-1, keepdims=True)
    wanted = np.array(colour) - np.mean(colour)
    return float(((tint * wanted).sum(-1) > 0.3 * (wanted**2).sum()).mean())


def test_pictures_zoom_and_change(browser):
    browser.run("new Promise((done) => setTimeout(done, 500))")
    first = shown(browser, "#viewer-frame")
    assert share(first, GREEN) > 0.1  # most of the truth was found
    assert share(first, RED) > 0.01
    place = browser.run("document.getElementById('viewer-place').textContent")
    assert re.fullmatch(r"Pixel x \d+, y \d+", place)

    set_value(browser, "method", "truth", "change")
    truth = shown(browser, "#viewer-frame")
    assert share(truth, RED) < 0.001
    assert share(truth, GREEN) > share(first, GREEN)

    box = browser.run(
        "(() => { const e = document.getElementById('viewer-frame'); e.scrollIntoView();"
        "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    for _ in range(3):
        browser.call(
            "Input.dispatchMouseEvent", type="mouseWheel", x=box[0], y=box[1], deltaX=0, deltaY=-120
        )
        browser.run("new Promise((done) => setTimeout(done, 700))")
    near = shown(browser, "#viewer-frame")
    assert share(near, GREEN) > 1.3 * share(truth, GREEN)

    set_value(browser, "opacity", "0", "input")
    assert share(shown(browser, "#viewer-frame"), GREEN) < 0.01
    assert browser.errors == []
    asked = [a for a in browser.requests if not a.startswith(("file:", "data:", "blob:"))]
    assert asked == []
    assert sum(a.startswith("file:") for a in browser.requests) == 1  # the page itself
