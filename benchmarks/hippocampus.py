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
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nnunet_octreenca.integration.register import TRAINER_SHIMS

STOCK, OURS = "nnUNetTrainerTimeBudget", "OctreeNCATrainerTimeBudget"
PLANS = {STOCK: "nnUNetPlans", OURS: "nnUNetOctreeNCAPlans"}
DATASET = "Dataset004_Hippocampus"
ROOT = Path(__file__).parent.parent


def find_data(given: str | None) -> Path:
    """The folder that holds `hippocampus/`."""
    for candidate in (given, os.environ.get("OCTREENCA_DATA"), ROOT.parent / "shared" / "data"):
        if candidate and (Path(candidate) / "hippocampus").is_dir():
            return Path(candidate)
    sys.exit("no hippocampus/ folder found: give --data FOLDER or set OCTREENCA_DATA")


def make_raw(data: Path, raw: Path, cases: int | None) -> int:
    """The data set in nnU-Net's layout; returns the number of cases."""
    images, labels = raw / DATASET / "imagesTr", raw / DATASET / "labelsTr"
    images.mkdir(parents=True)
    labels.mkdir()
    files = sorted((data / "hippocampus" / "images").glob("*.nii.gz"))[:cases]
    for file in files:
        shutil.copy(file, images / file.name.replace(".nii.gz", "_0000.nii.gz"))
        shutil.copy(data / "hippocampus" / "labels" / file.name, labels / file.name)
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


def run(command: list[str], log: Path) -> tuple[float, int]:
    """Run a command; returns seconds and peak memory in bytes of its main process."""
    measured = [sys.executable, "-c", _CHILD, *command]
    begun = time.monotonic()
    with log.open("w") as output:
        done = subprocess.run(measured, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    peak = re.findall(r"PEAK_BYTES (\d+)", log.read_text())
    return time.monotonic() - begun, int(peak[-1])


# The peak of a process that nnU-Net's own workers do not enter.
_CHILD = """
import os, re, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print("PEAK_BYTES", usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measure(trainer: str, minutes: float, folder: Path, device: str) -> dict:
    """Train, validate and collect what nnU-Net wrote."""
    os.environ["nnUNet_octreenca_minutes"] = str(minutes)
    log = folder / f"{trainer}.log"
    command = ["nnUNetv2_train", DATASET, "3d_fullres", "0", "-tr", trainer]
    seconds, peak = run([*command, "-p", PLANS[trainer], "-device", device], log)
    result = folder / "results" / DATASET / f"{trainer}__{PLANS[trainer]}__3d_fullres" / "fold_0"
    summary = json.loads((result / "validation" / "summary.json").read_text())
    iterations = re.findall(r"budget over: (\d+) iterations in (\d+) s", log.read_text())
    return {
        "trainer": trainer,
        "minutes": minutes,
        "iterations": int(iterations[-1][0]),
        "training_seconds": int(iterations[-1][1]),
        "total_seconds": round(seconds),
        "peak_bytes": peak,
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
    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir(parents=True)
        os.environ[f"nnUNet_{name}"] = str(work / name)
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    os.environ.setdefault("nnUNet_n_proc_DA", "1")
    # Works whether or not the trainers are registered.
    os.environ.setdefault("nnUNet_extTrainer", str(TRAINER_SHIMS))
    # Two cores for training, augmentation and validation: threads that spin while they wait
    # would take them from the others.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    cases = make_raw(find_data(arguments.data), work / "raw", arguments.cases)
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
