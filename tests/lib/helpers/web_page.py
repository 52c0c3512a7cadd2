"""An exported page in headless Chromium, used as a person uses it."""

import time
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.browser import Browser
from nnunet_octreenca import load_model
from nnunet_octreenca.export.html import write_html

STATUS = "document.getElementById('status').textContent"


class Page:
    """An exported page and the model that it is of."""

    def __init__(self, folder: Path, model: Path, fault=("", ""), **options) -> None:
        self.model = load_model(model)
        self.file, self.saved = folder / "page.html", folder / "saved"
        self.saved.mkdir()
        write_html(self.model, self.file, **options)
        if fault[0]:  # in the workers' source, which no hash of the policy covers
            text = self.file.read_text(encoding="utf-8")
            assert fault[0] in text
            self.file.write_text(text.replace(*fault), encoding="utf-8")
        self.browser = Browser(folder / "profile")
        self.browser.save_into(self.saved)
        self.browser.open(self.file)
        self.settled()

    def settled(self) -> str:
        try:
            self.browser.wait("document.body.dataset.state === 'ready'")
        except AssertionError as error:
            said = self.browser.run(STATUS)
            raise AssertionError(f"the page does not end its work; it says {said!r}") from error
        return self.browser.run(STATUS)

    def segment(self, *files: Path) -> str:
        """What the page says in the end."""
        self.browser.run("document.body.dataset.state = 'asked'")
        self.browser.choose("#files", *files)
        return self.settled()

    def check(self, name: str, on: bool) -> None:
        self.browser.run(f"document.getElementById('{name}').checked = {str(on).lower()}")

    def click(self, name: str) -> None:
        self.browser.run(f"document.getElementById('{name}').click()")

    def offers(self, button: str) -> bool:
        """Whether a person could press it."""
        found = f"document.getElementById('{button}')"
        return self.browser.run(f"{found}.offsetParent !== null && !{found}.disabled")

    def download(self, button: str, name: str) -> Path:
        path = self.saved / name
        path.unlink(missing_ok=True)
        before = self.browser.run(STATUS)
        assert self.offers(button), f"there is no {name} to save; the page says {before!r}"
        self.click(button)
        end = time.monotonic() + 60
        while not path.is_file():
            found, said = [file.name for file in self.saved.iterdir()], self.browser.run(STATUS)
            assert said == before, f"{name} was not saved; the page says {said!r}"
            assert time.monotonic() < end, f"{name} was not saved, but {found}"
            time.sleep(0.05)
        return path

    def assert_quiet(self) -> None:
        """No error on the console, and no request but for the page itself and its workers."""
        assert self.browser.errors == []
        asked = [a for a in self.browser.requests if not a.startswith("blob:null/")]
        assert asked == [self.file.as_uri()]


def picture(shape: tuple[int, int], seed: int = 0) -> Image.Image:
    """Waves of three colours with noise, nowhere 0."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    waves = [np.sin(x / (9 + seed) + c) * np.cos(y / (14 + c)) for c in range(3)]
    noise = np.random.default_rng(seed).normal(0, 9, (*shape, 3))
    return Image.fromarray((130 + 90 * np.stack(waves, -1) + noise).clip(1, 255).astype(np.uint8))
