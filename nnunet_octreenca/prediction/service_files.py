"""What a service that segments for months says of itself: a health file and a log of events."""

import json
import os
import platform
import threading
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from nnunet_octreenca import __version__
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.files import JsonMapping, JsonObject, remove_leftovers, write_json
from nnunet_octreenca.resources import free_disk, peak_memory, resident_memory

FORM = 1
"""Of the health file; raised where older readers would misread it."""
RENEWED = 10.0
"""Seconds between two renewals of the health file, also while a case is segmented."""


def utc_now() -> str:
    """The time for people and machines, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def open_handles() -> int:
    """Files, sockets and pipes that this process has open."""
    process = psutil.Process()
    return int(process.num_fds() if hasattr(process, "num_fds") else process.num_handles())


class EventLog:
    """One line of JSON for each event.

    The file is opened for every line, so that whoever rotates it may move it away at any time.

    Args:
        path: of the log; None for standard output.

    Raises:
        OutputError: it cannot be written to.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.open("a").close()
            except OSError as error:
                raise OutputError(
                    f"{path} cannot be written to ({error}); give another --log"
                ) from error

    def __call__(self, event: str, **details: Any) -> None:
        """Write a line; a log that cannot be written to for a while stops no segmentation."""
        line = json.dumps({"time": utc_now(), "event": event, **details}, default=str)
        with suppress(OSError):
            if self.path is None:
                print(line, flush=True)
            else:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


class HealthFile:
    """A JSON file that is renewed every few seconds while the process lives.

    Args:
        path: of the file; its folder has to be there.
        values: to begin with.
        every: seconds between renewals.
    """

    def __init__(self, path: Path, values: JsonMapping, every: float = RENEWED) -> None:
        self.path, self.every = path, every
        self.values: JsonObject = {
            "form": FORM,
            "state": "starting",
            "version": __version__,
            "host": platform.node(),
            "pid": os.getpid(),
            "started": utc_now(),
            "every_seconds": every,
            **values,
        }
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="health file", daemon=True)

    def __enter__(self) -> "HealthFile":
        """Begin.

        Raises:
            OutputError: the file cannot be written.
        """
        remove_leftovers(self.path.parent, self.path.name)
        try:
            self.write()
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written ({error}); give another folder with -o"
            ) from error
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        self.update(state="stopped")

    def update(self, **values: Any) -> None:
        """Change values, and write them where the disk allows it."""
        self.values.update(values)
        with suppress(OSError, OutputError):
            self.write()

    def write(self) -> None:
        """Renew the file, atomically.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            free = None
            with suppress(OSError):
                free = free_disk(self.path.parent)
            content = {
                **self.values,
                "updated": utc_now(),
                "memory_bytes": resident_memory(),
                "peak_memory_bytes": peak_memory(),
                "open_handles": open_handles(),
                "free_disk_bytes": free,
            }
            write_json(self.path, content)

    def _renew(self) -> None:
        while not self._end.wait(self.every):
            with suppress(OSError, OutputError):
                self.write()
