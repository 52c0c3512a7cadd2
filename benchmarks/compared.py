"""OctreeNCA, two-level automata and U-Nets side by side, by `nnunet_octreenca compare`.

    python benchmarks/compared.py --datasets acdc chase_db1 --budget 8m --json
    python benchmarks/compared.py --datasets chase_db1 --methods OctreeNCA nnU-Net --budget 1h

Makes the data sets of recipe_data.py and their plans, trains the methods on fold 0, one after the
other, and writes a report for each data set into --work. On CHASE_DB1 the second reader is a method
of the report. Resumed: trainings that are finished in --work are not repeated, and one that was
killed goes on. --json keeps each report's figures as docs/results/NAME_compared.json.
"""

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minutes_of_training import OURS, PLANS, find_data, run
from recipe_data import DATA_SETS, prepare, save_vessels

METHODS = {
    "hippocampus": ("OctreeNCA", "nnU-Net", "TinyUNet", "M3D-NCA"),
    "acdc": ("OctreeNCA", "M3D-NCA", "nnU-Net"),
    "chase_db1": ("OctreeNCA", "Med-NCA", "nnU-Net", "U-Net ResNet18", "SegFormer"),
    "clip": ("OctreeNCA", "Med-NCA", "nnU-Net"),
    "hrf": ("OctreeNCA", "nnU-Net"),
}
THIN = ("chase_db1", "hrf")
"""Whose structures are thin: the centreline's Dice is measured."""

PATIENTS = {"chase_db1": "^Image_[0-9]+"}
"""The patient in a case's name, where there are several cases of one."""

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def second_reader(source: Path, folder: Path) -> None:
    """Label maps of CHASE_DB1's second reader, under the names of the training cases."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((source / "labels").glob("*_2ndHO.png")):
        save_vessels(path, folder / path.name.replace("_2ndHO", ""))


def command_of(name: str, given: argparse.Namespace) -> list[str]:
    """The comparison of a data set that `prepare` has made."""
    chosen = DATA_SETS[name]
    words = ["nnunet_octreenca", "compare", "-d", str(chosen.number), "-c", chosen.configuration]
    words += ["-f", "0", "--methods", *(given.methods or METHODS[name]), "--budget", given.budget]
    words += ["--memory", "0", "--cases", str(given.cases)]
    if name in THIN:
        words += ["--metrics", "dice", "cldice"]
    if name in PATIENTS:
        words += ["--group-by", PATIENTS[name]]
    if name == "chase_db1":
        reader = given.work / "second_reader"
        second_reader(find_data(given.data, chosen.source), reader)
        words += ["--predictions", f"second reader={reader}"]
    return [*words, "-o", str(given.work / f"report_{name}")]


def compare(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Prepare, train, compare; returns the figures that are kept."""
    preprocessed = prepare(name, given.work, given.data)
    if not (preprocessed / f"{PLANS[OURS]}.json").exists():
        extend = ["nnunet_octreenca", "extend_plans", "-d", str(DATA_SETS[name].number)]
        run(extend, given.work / f"{name}_extend.log")
    command = command_of(name, given)
    print(shlex.join(command), flush=True)
    run(command, given.work / f"{name}_compare.log")
    return kept(given.work / f"report_{name}", command, given.work)


def kept(report: Path, command: Sequence[str], work: Path) -> dict[str, Any]:
    """Of a report what tells the methods apart, without places of this machine."""
    content = json.loads((report / "comparison.json").read_text(encoding="utf-8"))
    records = json.loads((report / "records.json").read_text(encoding="utf-8"))
    found = {
        "command": shlex.join(command),
        "processors": os.cpu_count(),
        "used": len(os.sched_getaffinity(0)),
        "versions": content["versions"],
        "cases": len(content["cases"]),
        "summary": content["summary"],
        "records": records["methods"],
        "caveats": content["caveats"],
    }
    text: dict[str, Any] = json.loads(json.dumps(found).replace(f"{work}/", ""))
    return text


def main() -> None:
    """Compare on each data set, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--methods", nargs="+", help="of `compare` (default: some for each)")
    parser.add_argument("--budget", default="8m", help="of each training (default: 8m)")
    parser.add_argument("--cases", type=int, default=3, help="to time predictions on (default: 3)")
    parser.add_argument("--work", type=Path, default=Path("compared"), help="folder for everything")
    parser.add_argument("--data", help="folder of the data (default: $OCTREENCA_DATA)")
    parser.add_argument("--json", action="store_true", help="write docs/results/NAME_compared.json")
    given = parser.parse_args()
    given.work = given.work.resolve()
    for name in given.datasets:
        found = compare(name, given)
        first = found["summary"][0]["class_name"]  # of several classes their mean
        for row in found["summary"]:
            if row["class_name"] == first:
                print(row["metric"], row["method"], row["interval"], flush=True)
        if given.json:
            text = json.dumps(found, indent=2) + "\n"
            (RESULTS / f"{name}_compared.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
