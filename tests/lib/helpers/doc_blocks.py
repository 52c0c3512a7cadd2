"""Fenced code blocks of the documentation, and what the tests do with each.

The convention is in CONTRIBUTING.md: `bash` is run; `bash` with a title is parsed, command by
command, and the title says why it is not run; `python` is run where `example_folder` lies, with a
title compiled; `json` is parsed; `text` is output; other languages are for the page's own tests.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
LANGUAGES = {"bash", "python", "json", "text", "javascript", "cpp", "ini"}
# CI runs these two from a fresh clone; the tests only hold them fixed.
README_COMMANDS = (
    "python3 -m venv .venv && . .venv/bin/activate && pip install . && nnunet_octreenca demo",
    'python3 -m venv .venv && . .venv/bin/activate && pip install ".[test]" && '
    "nnunet_octreenca register && pytest -n 2",
)
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)


class Block(NamedTuple):
    """A code block; `line` is where its text begins."""

    page: str
    line: int
    language: str
    title: str | None
    text: str

    @property
    def name(self) -> str:
        """For test ids."""
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README, CONTRIBUTING and every page of the site."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
    return top + sorted((ROOT / "docs").rglob("*.md"))


def blocks(*files: Path) -> Iterator[Block]:
    """The blocks of some pages; all if none are given."""
    for page in files or pages():
        content = page.read_text(encoding="utf-8")
        for found in _FENCE.finditer(content):
            language, _, options = found["info"].partition(" ")
            title = re.fullmatch(r'title="([^"]+)"', options)
            assert title or not options, f"{page}: ```{found['info']}"
            indent = found["indent"]
            yield Block(
                page.relative_to(ROOT).as_posix(),
                content.count("\n", 0, found.start("text")) + 1,
                language,
                title[1] if title else None,
                "".join(line.removeprefix(indent) for line in found["text"].splitlines(True)),
            )


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of a shell script, without comments and `&&`."""
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in shlex.split(line, comments=True):
            if word in ("&&", ";"):
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words
