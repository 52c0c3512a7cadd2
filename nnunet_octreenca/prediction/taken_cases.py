"""Which cases a service was at when it died: one that kills it every time is not tried for ever."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nnunet_octreenca.errors import OctreeNCAError
from nnunet_octreenca.files import load_json, write_json


class TakenCases:
    """Which cases the program was at when it died, and how often.

    Args:
        path: of the file that says so.
        inputs: the drop folder; what is no longer in it is forgotten.
    """

    def __init__(self, path: Path, inputs: Path) -> None:
        self._path = path
        self._cases: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            content = load_json(path.read_text(encoding="utf-8"))
            for name, (stamped, times) in content.items():
                if (inputs / name).exists():
                    self._cases[name] = [str(stamped), int(times)]

    def deaths(self, name: str, stamped: str) -> int:
        """How often the program died while it was at a case with these files."""
        found = self._cases.get(name)
        return found[1] if found is not None and found[0] == stamped else 0

    @contextmanager
    def while_taken(self, name: str, stamped: str) -> Iterator[None]:
        """Context around a case; if the program dies in it, the next one knows."""
        self._cases[name] = [stamped, self.deaths(name, stamped) + 1]
        self._write()
        try:
            yield
        finally:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Forget a case."""
        if self._cases.pop(name, None) is not None:
            self._write()

    def _write(self) -> None:
        with suppress(OSError, OctreeNCAError):
            if self._cases:
                write_json(self._path, self._cases)
            else:
                self._path.unlink(missing_ok=True)
