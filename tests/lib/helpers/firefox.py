"""A page in headless Firefox, driven over Marionette, without a dependency."""

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

FIREFOX = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
_SECONDS = 60
_QUIET = {
    "app.update.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "browser.download.folderList": 2,
    "browser.download.useDownloadDir": True,
    "browser.helperApps.neverAsk.saveToDisk": "image/png,application/gzip,text/csv",
}


class Firefox:
    """One page.

    Args:
        profile: folder of the profile, made here.
        downloads: folder that files are saved in.
        settings: of about:config.
    """

    def __init__(self, profile: Path, downloads: Path, settings: dict[str, Any]) -> None:
        assert FIREFOX is not None
        profile.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        values = {
            **_QUIET, "marionette.port": port, "browser.download.dir": str(downloads), **settings,
        }  # fmt: skip
        lines = [f"user_pref({json.dumps(k)}, {json.dumps(v)});" for k, v in values.items()]
        (profile / "user.js").write_text("\n".join(lines))
        self._process = subprocess.Popen(
            [FIREFOX, "--headless", "--marionette", "--no-remote", "--profile", str(profile)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile)},
        )
        self._buffer, self._number = b"", 0
        self._socket = self._connect(port)
        self._message()
        self.call("WebDriver:NewSession", capabilities={})

    def _connect(self, port: int) -> socket.socket:
        end = time.monotonic() + _SECONDS
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=_SECONDS)
            except OSError:
                assert time.monotonic() < end, "Firefox does not answer"
                time.sleep(0.2)

    def _message(self) -> Any:
        while b":" not in self._buffer:
            self._receive()
        length, _, self._buffer = self._buffer.partition(b":")
        while len(self._buffer) < int(length):
            self._receive()
        message, self._buffer = self._buffer[: int(length)], self._buffer[int(length) :]
        return json.loads(message)

    def _receive(self) -> None:
        chunk = self._socket.recv(1 << 20)
        assert chunk, "Firefox ended"
        self._buffer += chunk

    def call(self, method: str, **parameters: Any) -> Any:
        """A command; its result."""
        self._number += 1
        message = json.dumps([0, self._number, method, parameters])
        self._socket.sendall(f"{len(message.encode())}:{message}".encode())
        _, _, error, result = self._message()
        assert not error, error
        return result

    def open(self, path: Path) -> None:
        """Open a file."""
        self.call("WebDriver:Navigate", url=path.as_uri())

    def run(self, expression: str) -> Any:
        """An expression's value."""
        script = f"return ({expression});"
        return self.call("WebDriver:ExecuteScript", script=script, args=[])["value"]

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + _SECONDS
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"waited in vain: {condition}"
            time.sleep(0.1)

    def choose(self, selector: str, path: Path) -> None:
        """Give a file to a file chooser, as a user does."""
        found = self.call("WebDriver:FindElement", using="css selector", value=selector)["value"]
        (element,) = found.values()
        self.call("WebDriver:ElementSendKeys", id=element, text=str(path))

    def close(self) -> None:
        """End the browser."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
