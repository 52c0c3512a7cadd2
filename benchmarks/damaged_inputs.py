"""Damaged files of every format among sound ones: what becomes of each.

    python benchmarks/damaged_inputs.py --json > docs/results/damaged_inputs.json
    python benchmarks/damaged_inputs.py --only "DICOM series" --list

For every format (damaged_files.py) a folder with two sound cases and one case for each damage is
predicted by a small network that was never trained. Sound cases must be segmented; a damaged one

* is refused with a sentence that names it, or
* is segmented as the sound file is (the damage is beside the pixels, or too small to matter), or
* is segmented otherwise where the format has neither checksum nor second length: undetectable.

Anything else is a fault: another exception, a sentence without the file's name, half a result,
other labels where the format protects what was damaged. The exit code is then 1. A crash or hang
(two minutes for a format) of a library ends the program with a traceback.
"""

import argparse
import faulthandler
import json
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from time import perf_counter

import numpy as np
import tifffile
from damaged_files import DAMAGES, FORMATS, Damage, Format
from numpy.typing import NDArray
from untrained_model import model_folder

from nnunet_octreenca.errors import OctreeNCAError
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.integration.model import Model, load_model
from nnunet_octreenca.prediction.case import Destination
from nnunet_octreenca.prediction.folder import Run
from nnunet_octreenca.prediction.options import Options

REFUSED, SAME, UNDETECTABLE, FAULT = "refused", "same labels", "undetectable", "fault"
OUTCOMES = (REFUSED, SAME, UNDETECTABLE, FAULT)
_SECONDS = 120  # after which a format counts as hanging


@dataclass(frozen=True)
class Outcome:
    """What became of one damaged file; `said` is the sentence, the reason or the fault."""

    format: str
    damage: str
    outcome: str
    said: str


def models(folder: Path) -> dict[str, Model]:
    """A network for pictures and one for volumes, in the folder."""
    flat = model_folder(folder / "flat", steps=3)
    deep = model_folder(folder / "deep", patch=(8, 16, 16), channels=1, ending=".nii.gz", steps=3)
    return {"flat": load_model(flat), "deep": load_model(deep)}


def examine(
    form: Format, folder: Path, model: Model, damages: Sequence[Damage] = DAMAGES
) -> list[Outcome]:
    """Damage files of a format and predict them, two sound ones in the same folder.

    Args:
        form: the format.
        folder: empty; for images and results.
        model: that takes such images.
        damages: those of the format itself are added.

    Raises:
        AssertionError: a sound file is not segmented.
    """
    damages = [*damages, *form.more]
    images, results = folder / "images", folder / "results"
    images.mkdir(parents=True)
    form.write(images / f"sound{form.ending}", 0)
    form.write(images / f"zebra{form.ending}", 1)
    for number, damage in enumerate(damages):
        path = images / f"case{number:02d}{form.ending}"
        form.write(path, 0)
        damage.change(form, path, Random(f"{form.name}, {damage.name}"))
    run = Run(model, Destination(results, ("ome.tif",)), Options(mirror=False))
    cases = {case.name: case for case in run.cases(images)}
    for name in ("sound", "zebra"):
        run.segment(cases[name], tell=_silent)
    truth = tifffile.imread(results / "sound.ome.tif")
    found = []
    for number, damage in enumerate(damages):
        case = cases.get(f"case{number:02d}")
        outcome, said = _become(run, case, results, truth, form.unprotected.get(damage.what))
        found.append(Outcome(form.name, damage.name, outcome, said))
    return found


def _become(
    run: Run, case: Case | None, results: Path, truth: NDArray[np.uint8], unprotected: str | None
) -> tuple[str, str]:
    if case is None:
        return FAULT, "it is no case: it was left out"
    result = results / f"{case.name}.ome.tif"
    try:
        run.segment(case, tell=_silent)
    except OctreeNCAError as error:
        sentence = str(error)
        if case.files[0].name not in sentence:
            return FAULT, f"the sentence does not name the file: {sentence}"
        if "\n" in sentence or len(sentence) > 500:
            return FAULT, f"this is no sentence: {sentence[:500]}"
        if any(results.rglob(f"{case.name}*")):
            return FAULT, f"half a result: {sentence}"
        return REFUSED, sentence.replace(str(case.files[0].parent), "")
    except Exception as error:
        return FAULT, f"{type(error).__name__}: {error}"
    labels = tifffile.imread(result)
    if np.array_equal(labels, truth):
        return SAME, ""
    if unprotected is not None:
        return UNDETECTABLE, unprotected
    return FAULT, f"other labels, {labels.shape} for {truth.shape}, and exit code 0"


def _silent(line: str) -> None:
    pass


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row for each format."""
    counts = Counter((one.format, one.outcome) for one in outcomes)
    names = list(dict.fromkeys(one.format for one in outcomes))
    lines = [f"| format | damages | {' | '.join(OUTCOMES)} |", "|---" * (2 + len(OUTCOMES)) + "|"]
    for name in names:
        row = [counts[name, outcome] for outcome in OUTCOMES]
        lines.append(f"| {name} | {sum(row)} | {' | '.join(map(str, row))} |")
    total = [sum(counts[name, outcome] for name in names) for outcome in OUTCOMES]
    lines.append(f"| all | {sum(total)} | {' | '.join(map(str, total))} |")
    return "\n".join(lines)


def _report(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """For --json: numbers, what is undetectable and why, faults."""
    counts = Counter((one.format, one.outcome) for one in outcomes)
    return {
        "outcomes": {
            name: {outcome: counts[name, outcome] for outcome in OUTCOMES}
            for name in dict.fromkeys(one.format for one in outcomes)
        },
        "undetectable": [asdict(one) for one in outcomes if one.outcome == UNDETECTABLE],
        "faults": [asdict(one) for one in outcomes if one.outcome == FAULT],
    }


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="FORMAT", help="a single format of the table")
    parser.add_argument("--list", action="store_true", help="print every damage and its outcome")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    forms = [form for form in FORMATS if arguments.only in (None, form.name)]
    if not forms:
        parser.error(f"--only takes one of: {', '.join(form.name for form in FORMATS)}")
    warnings.simplefilter("ignore")
    logging.disable()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name:
        networks = models(Path(name))
        for number, form in enumerate(forms):
            began = perf_counter()
            faulthandler.dump_traceback_later(_SECONDS, exit=True)
            outcomes += examine(form, Path(name) / str(number), networks[form.model])
            faulthandler.cancel_dump_traceback_later()
            print(f"{form.name}: {perf_counter() - began:.1f} s", file=sys.stderr)
    if arguments.json:
        print(json.dumps(_report(outcomes), indent=4))
    else:
        if arguments.list:
            for one in outcomes:
                print(f"{one.format}, {one.damage}: {one.outcome}. {one.said}")
        print(table(outcomes))
    faults = [one for one in outcomes if one.outcome == FAULT]
    for one in faults:
        print(f"FAULT {one.format}, {one.damage}: {one.said}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
