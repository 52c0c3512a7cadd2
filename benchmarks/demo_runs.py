"""Is OctreeNCA ahead of stock nnU-Net in every demo? Runs `nnunet_octreenca demo` again and again.

    python benchmarks/demo_runs.py --runs 5 --busy 1 --work FOLDER

The last `--busy` runs share the machine with a process that keeps one core busy. Finished runs in
--work are not repeated.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from minutes_of_training import run

NETWORKS = ("OctreeNCA", "nnU-Net")
SPIN = "while True: pass"


def demo(folder: Path, minutes: float, busy: bool) -> None:
    """One run, unless its report is there."""
    if (folder / "report.json").exists():
        return
    beside = subprocess.Popen([sys.executable, "-c", SPIN]) if busy else None
    try:
        command = ["nnunet_octreenca", "demo", "-o", str(folder), "--minutes", str(minutes)]
        run(command, folder.with_suffix(".log"))
    finally:
        if beside is not None:
            beside.kill()


def row(folder: Path, busy: bool) -> dict[str, Any]:
    """What is compared of a finished run."""
    networks = json.loads((folder / "report.json").read_text())["networks"]
    chosen = ("mean_dice", "dice", "iterations", "training_seconds")
    figures = {name: {key: networks[name][key] for key in chosen} for name in NETWORKS}
    return {"busy_core": busy, **figures}


def main() -> None:
    """Run the demos that are missing and print them all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--busy", type=int, default=1, help="runs beside a busy core")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each training")
    parser.add_argument("--work", type=Path, default=Path("demo_runs"), help="kept; resumed")
    parser.add_argument("--json", action="store_true", help="print JSON, no table")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(given.runs):
        busy = number >= given.runs - given.busy
        folder = given.work / f"demo_{number}"
        demo(folder, given.minutes, busy)
        rows.append(row(folder, busy))
    ahead = sum(each["OctreeNCA"]["mean_dice"] > each["nnU-Net"]["mean_dice"] for each in rows)
    if given.json:
        report = {"minutes": given.minutes, "processors": os.cpu_count(), "ahead": ahead}
        print(json.dumps({**report, "runs": rows}, indent=4))
        return
    print("| run | busy core | OctreeNCA | stock nnU-Net | iterations |\n|---|---|---|---|---|")
    for number, each in enumerate(rows, start=1):
        ours, stock = (each[name] for name in NETWORKS)
        print(
            f"| {number} | {'yes' if each['busy_core'] else 'no'} | {ours['mean_dice']:.3f} | "
            f"{stock['mean_dice']:.3f} | {ours['iterations']}, {stock['iterations']} |"
        )
    print(f"\nahead in {ahead} of {len(rows)}")


if __name__ == "__main__":
    main()
