"""A page in headless Chromium, driven over its DevTools pipe, and what it complained of."""

import base64
import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
_SECONDS = 60


class Browser:
    """One page.

    Attributes:
        errors: of the console, and exceptions.
        requests: addresses that were asked for.
    """

    def __init__(self, profile: Path, *, size: tuple[int, int] = (1280, 1000)) -> None:
        assert CHROMIUM is not None
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()

        def plumb() -> None:  # the pipes must be descriptors 3 and 4
            first, second = os.dup(to_child), os.dup(from_child)
            os.dup2(first, 3)
            os.dup2(second, 4)

        self._process = subprocess.Popen(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--remote-debugging-pipe",
                f"--user-data-dir={profile}", "--use-angle=swiftshader",
                "--enable-unsafe-swiftshader", f"--window-size={size[0]},{size[1]}",
                "--hide-scrollbars", "about:blank",
            ],
            preexec_fn=plumb,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_child)
        os.close(from_child)
        self._buffer, self._number, self._session = b"", 0, None
        self.errors: list[str] = []
        self.requests: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A DevTools command; its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _message(self) -> dict[str, Any]:
        import select

        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], _SECONDS)
            assert ready, "Chromium does not answer"
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "Chromium ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        name, told = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"])[:500])
        elif name == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.errors.append(json.dumps(told["args"])[:500])
        elif name == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(told["entry"]["text"])
        elif name == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])

    def open(self, path: Path) -> None:
        """Open a file and wait until it is loaded."""
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        self.run(
            f"new Promise((done, failed) => {{ const end = Date.now() + {1000 * _SECONDS};"
            f"const look = () => {{ if ({condition}) done(true);"
            f"else if (Date.now() > end) failed(new Error('waited in vain'));"
            f"else setTimeout(look, 50); }}; look(); }})"
        )

    def run(self, script: str) -> Any:
        """An expression's value, awaited if it is a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def choose(self, selector: str, *paths: Path) -> None:
        """Give files to a file chooser, as a user does.

        Chromium reads no file whose path leads through a parent (`../scan.nii.gz`).
        """
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call(
            "DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve()) for path in paths]
        )

    def save_into(self, folder: Path) -> None:
        """Where downloads go from now on."""
        session, self._session = self._session, None
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self._session = session

    def resize(self, width: int, height: int, sharp: int = 1) -> None:
        """The size of the window's inside, in CSS pixels; narrow ones are telephones.

        `sharp`: the screen's pixels for one of CSS.
        """
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=sharp, mobile=width < 600,
        )  # fmt: skip

    def touch(self, *fingers: tuple[tuple[float, float], tuple[float, float]]) -> None:
        """Fingers on the screen, each from a place to a place, in CSS pixels of the window."""
        for kind, share in (("touchStart", 0), *(("touchMove", i / 5) for i in range(1, 6))):
            points = [
                {"id": number, "x": a[0] + share * (b[0] - a[0]), "y": a[1] + share * (b[1] - a[1])}
                for number, (a, b) in enumerate(fingers)
            ]
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, name: str) -> None:
        """Press and release a key, such as Enter or ArrowLeft."""
        text = {"text": "\r"} if name == "Enter" else {}
        codes = {"Enter": 13, "Tab": 9, "ArrowUp": 38, "PageUp": 33}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name,
                windowsVirtualKeyCode=codes.get(name, 0), **(text if kind == "keyDown" else {}),
            )  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)


def shown(browser: Browser, selector: str) -> np.ndarray:
    """An element's pixels on the screen."""
    box = browser.run(
        f"(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView();"
        "const b = e.getBoundingClientRect();"
        "return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height, scale: 1}"
        "; })()"
    )
    data = browser.call("Page.captureScreenshot", clip=box, captureBeyondViewport=True)["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), int)
