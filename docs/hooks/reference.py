"""Reference pages that cannot get stale: commands, plans keys and the Python API, from the code.

A page holds a line `<!-- generated: NAME -->`, which mkdocs replaces by what the function of that
name returns.
"""

import argparse
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nnunet_octreenca
from nnunet_octreenca.cli.main import build_parser
from nnunet_octreenca.planning.settings import RANGES, Settings

RESULTS = Path(__file__).parents[1] / "results"
PLACEHOLDER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **context: Any) -> str:
    """mkdocs' hook: fill in what is generated."""
    return PLACEHOLDER.sub(lambda found: GENERATED[found[1]](), markdown)


def commands() -> str:
    """Every command with every flag, from the parsers themselves."""
    return "\n".join(
        line
        for parser, depth in subcommands(build_parser())
        for line in _command(parser, "#" * (depth + 1))
    )


def subcommands(
    parser: argparse.ArgumentParser, depth: int = 1
) -> Iterator[tuple[argparse.ArgumentParser, int]]:
    """All parsers below one with their depth, in the order of its help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help for choice in action._choices_actions}
            for name, below in action.choices.items():
                below.description = texts.get(name, below.description)
                yield below, depth
                yield from subcommands(below, depth + 1)


def _command(parser: argparse.ArgumentParser, marks: str) -> Iterator[str]:
    yield f"{marks} `{parser.prog}`"
    yield ""
    yield _sentence(parser.description or "")
    yield ""
    rows = [row for group in parser._action_groups for row in _group(group)]
    if rows:
        yield from ("| flag | |", "|---|---|", *rows, "")
    if parser.epilog:
        yield from ("```text", parser.epilog.strip("\n"), "```", "")


def _group(group: Any) -> Iterator[str]:
    actions = [
        action
        for action in group._group_actions
        if not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))
    ]
    usual = group.title in ("positional arguments", "options", "optional arguments")
    if actions and not usual:
        yield f"| **{_cell(group.title)}** | |"
    for action in actions:
        yield f"| {_flag(action)} | {_meaning(action)} |"


def _flag(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.dest}`"
    if action.nargs == 0:
        return names
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    more = " ..." if action.nargs == "+" else ""
    return f"{names} `{_cell(str(value))}{more}`"


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "") % {"default": action.default, "prog": ""}
    default = action.default
    known = re.search(r"\bdefault\b", text)
    if not known and action.nargs != 0 and default not in (None, [], argparse.SUPPRESS):
        text += f" (default: {default})"
    return _cell(_sentence(text) + (" **Required.**" if action.required else ""))


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ")")) or not text else ".")


def _cell(text: str) -> str:
    """Text for a table cell; pipes and angle brackets mean themselves."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def settings() -> str:
    """The plans' `octreenca` block: key, default, what is allowed, meaning."""
    meanings = attributes(Settings.__doc__ or "")
    lines = ["| key | default | allowed | |", "|---|---|---|---|"]
    for field in dataclasses.fields(Settings):
        default = json.dumps(field.default)
        lines.append(
            f"| `{field.name}` | `{default}` | {_cell(RANGES[field.name][1])} | "
            f"{_cell(_sentence(meanings[field.name]))} |"
        )
    return "\n".join(lines)


def attributes(docstring: str) -> dict[str, str]:
    """The `Attributes:` of a docstring.

    >>> attributes('''A class.
    ...
    ... Attributes:
    ...     one: what it is,
    ...         in two lines.
    ...     two: another.
    ... ''')
    {'one': 'what it is, in two lines.', 'two': 'another.'}
    """
    _, _, section = inspect.cleandoc(docstring).partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif line.startswith(" " * 8) and name:
            found[name] += " " + line.strip()
        else:
            break
    return found


def python_api() -> str:
    """A mkdocstrings directive for every public name of the package."""
    lines = []
    for name in nnunet_octreenca.__all__:
        if not name.startswith("_"):
            thing = getattr(nnunet_octreenca, name)
            lines += [f"::: {thing.__module__}.{thing.__qualname__}", ""]
    return "\n".join(lines)


def versions() -> str:
    """The combinations of versions that were tested, from docs/results/matrix.json."""
    rows = json.loads((RESULTS / "matrix.json").read_text(encoding="utf-8"))
    libraries = ("torch", "nnunetv2", "numpy", "pillow", "simpleitk", "zarr")
    lines = [
        f"| combination | Python | {' | '.join(libraries)} | tests | |",
        "|---" * (len(libraries) + 4) + "|",
    ]
    for row in rows:
        found = " | ".join(row["versions"].get(name, "-") for name in libraries)
        tests = f"{row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped"
        lines.append(f"| {row['name']} | {row['python']} | {found} | {tests} | {row['state']} |")
    return "\n".join(lines)


GENERATED = {
    "commands": commands,
    "settings": settings,
    "python_api": python_api,
    "versions": versions,
}
