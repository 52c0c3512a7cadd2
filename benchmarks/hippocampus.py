"""Real MRI, stock commands, a budget in minutes: what Dice does OctreeNCA reach?

    python benchmarks/hippocampus.py --minutes 20 --trainers OctreeNCATrainerTimeBudget
    python benchmarks/hippocampus.py --minutes 30 --json        # and stock nnU-Net beside it

Data: Medical Segmentation Decathlon Task04 (`hippocampus/images`, `hippocampus/labels`), looked
for in --data, $OCTREENCA_DATA or ../shared/data. Fold 0 of nnU-Net's five. The learning rate
follows the clock, so that both schedules are complete when the time is over. Validation (whole
volumes, mirrored eight times) is not counted.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path

from minutes_of_training import OURS, PLANS, STOCK, budget_used, find_data, make_folders, run

DATASET = "Dataset004_Hippocampus"


def make_raw(data: Path, raw: Path, cases: int | None) -> int:
    """The data set in nnU-Net's layout; returns the number of cases."""
    images, labels = raw / DATASET / "imagesTr", raw / DATASET / "labelsTr"
    images.mkdir(parents=True)
    labels.mkdir()
    files = sorted((data / "images").glob("*.nii.gz"))[:cases]
    for file in files:
        shutil.copy(file, images / file.name.replace(".nii.gz", "_0000.nii.gz"))
        shutil.copy(data / "labels" / file.name, labels / file.name)
    (raw / DATASET / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "MRI"},
                "labels": {"background": 0, "anterior": 1, "posterior": 2},
                "numTraining": len(files),
                "file_ending": ".nii.gz",
            }
        )
    )
    return len(files)


def measure(trainer: str, minutes: float, folder: Path, device: str) -> dict:
    """Train, validate and collect what nnU-Net wrote."""
    os.environ["nnUNet_octreenca_minutes"] = str(minutes)
    log = folder / f"{trainer}.log"
    command = ["nnUNetv2_train", DATASET, "3d_fullres", "0", "-tr", trainer]
    trained = run([*command, "-p", PLANS[trainer], "-device", device], log)
    result = folder / "results" / DATASET / f"{trainer}__{PLANS[trainer]}__3d_fullres" / "fold_0"
    summary = json.loads((result / "validation" / "summary.json").read_text())
    iterations, seconds = budget_used(log)
    return {
        "trainer": trainer,
        "minutes": minutes,
        "iterations": iterations,
        "training_seconds": seconds,
        "total_seconds": round(trained.seconds),
        "peak_bytes": trained.peak_bytes,
        "dice": {label: row["Dice"] for label, row in summary["mean"].items()},
        "mean_dice": summary["foreground_mean"]["Dice"],
    }


def main() -> None:
    """Prepare, train, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--trainers", nargs="+", default=[OURS, STOCK], choices=[OURS, STOCK])
    parser.add_argument("--set", action="append", default=[], help="as `extend_plans --set`")
    parser.add_argument("--data", help="folder that holds hippocampus/")
    parser.add_argument("--cases", type=int, help="only the first so many cases")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", help="keep everything in this new folder")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()

    work = Path(arguments.work or tempfile.mkdtemp(prefix="hippocampus_"))
    make_folders(work)
    cases = make_raw(find_data(arguments.data, "hippocampus"), work / "raw", arguments.cases)
    plan = ["nnUNetv2_plan_and_preprocess", "-d", "4", "-c", "3d_fullres", "-np", "2", "-npfp", "2"]
    run(plan, work / "plan.log")
    settings = [part for pair in arguments.set for part in ("--set", pair)]
    run(["nnunet_octreenca", "extend_plans", "-d", "4", *settings], work / "extend.log")

    rows = []
    for trainer in arguments.trainers:
        rows.append(measure(trainer, arguments.minutes, work, arguments.device))
        if not arguments.json:
            row = rows[-1]
            dice = ", ".join(f"{label}: {value:.3f}" for label, value in row["dice"].items())
            print(
                f"{trainer}: {row['iterations']} iterations in {row['training_seconds']} s, mean "
                f"Dice {row['mean_dice']:.3f} ({dice}), peak {row['peak_bytes'] / 1e9:.2f} GB"
            )
    if arguments.json:
        import torch

        print(
            json.dumps(
                {
                    "cases": cases,
                    "processor": platform.processor() or platform.machine(),
                    "threads": os.cpu_count(),
                    "torch": torch.__version__,
                    "settings": arguments.set,
                    "rows": rows,
                },
                indent=4,
            )
        )
    if not arguments.work:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
