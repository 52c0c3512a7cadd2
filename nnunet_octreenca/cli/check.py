"""`nnunet_octreenca check`: what a model holds and what is wrong with it, without running it."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_octreenca.integration.model_check import CheckpointReport, ModelReport, Report

HELP = "say what a model holds and what is wrong with it, without running any of it"
EXAMPLE = """\
examples:
  nnunet_octreenca check model.zip                 before `nnunet_octreenca install model.zip`
  nnunet_octreenca check TRAINER__PLANS__CONFIGURATION
  nnunet_octreenca check --json model.zip > model.json

Checkpoints are read as data, plans and dataset.json are compared with what OctreeNCA supports, and
every file's SHA-256 is printed. Nothing in the model is imported or run.

exit codes: 0 nothing is wrong, 1 something is (a sentence for each fault), 2 wrong arguments
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model folder, a data set's folder in nnUNet_results, zip file, or zoo:NAME",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--max_size",
        metavar="SIZE",
        help="allow a zip file whose files take so much, e.g. 20G (default: 10G, and at most "
        "100 times the zip file)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if there are faults.

    Raises:
        InputError: there is no model to look at, or its zip file cannot be read safely.
    """
    from nnunet_octreenca.inference.memory_plan import parse_memory
    from nnunet_octreenca.integration.model_check import check_files

    max_size = None if arguments.max_size is None else parse_memory(arguments.max_size)
    report = check_files(arguments.model, max_size)
    if arguments.json:
        print(json.dumps({"model": arguments.model, **asdict(report)}, indent=4))
    else:
        for line in describe(report):
            print(printable(line))
    for fault in report.faults:
        print(f"ERROR: {printable(fault)}", file=sys.stderr)
    return 1 if report.faults else 0


def printable(text: str) -> str:
    """Text of a model's author, without what could move a terminal's cursor.

    >>> printable("fold\\x1b[2J 0")
    'fold?[2J 0'
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def describe(report: "Report") -> Iterator[str]:
    """Lines on all models and files."""
    for model in report.models:
        yield "model" if model.folder == "." else model.folder
        yield from (f"  {what:<14} {value}" for what, value in _rows(model) if value)
    yield f"{len(report.files)} files: SHA-256, bytes, name"
    for name, values in report.files.items():
        yield f"  {values['sha256']} {values['bytes']:>12,} {name}"
    if not report.faults:
        yield "Nothing is wrong."


def _rows(model: "ModelReport") -> Iterator[tuple[str, str]]:
    yield "data set", model.dataset
    yield "channels", ", ".join(model.image_channels)
    yield (
        "classes",
        ", ".join(f"{name} {'+'.join(map(str, values))}" for name, values in model.classes.items()),
    )
    yield "plans", model.plans
    yield "configuration", model.configuration
    if model.patch_size and model.spacing:
        yield (
            "context",
            (
                f"{' x '.join(map(str, model.patch_size))} at "
                f"{' x '.join(f'{mm:g}' for mm in model.spacing)} mm"
            ),
        )
    yield "network", _network(model)
    yield "folds", " ".join(model.folds)
    for checkpoint in model.checkpoints:
        yield f"fold {checkpoint.fold}", _checkpoint(checkpoint)


def _network(model: "ModelReport") -> str:
    name = model.network.rsplit(".", 1)[-1]
    if model.steps is None:
        return name
    parameters = "" if model.parameters is None else f", {model.parameters:,} parameters"
    return (
        f"{name}, {model.levels} levels, steps {_numbers(model.steps)}, "
        f"{_numbers(model.channels)} channels, {_numbers(model.hidden)} hidden units{parameters}"
    )


def _numbers(given: int | list[int] | None) -> str:
    """One for all levels, or one for each."""
    return " ".join(map(str, given)) if isinstance(given, list) else str(given)


def _checkpoint(checkpoint: "CheckpointReport") -> str:
    epochs = (
        ""
        if checkpoint.epochs is None
        else f", {checkpoint.epochs} epoch{'s' * (checkpoint.epochs != 1)}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in checkpoint.versions.items())
    return (
        f"{checkpoint.file.rsplit('/', 1)[-1]}, {checkpoint.trainer}{epochs}, "
        f"{checkpoint.parameters:,} parameters, {versions or 'versions not recorded'}"
    )
