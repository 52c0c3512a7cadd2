"""What the comparisons on a budget of minutes share: the data, nnU-Net's folders, its commands."""

import os
import re
import sys
from pathlib import Path

from nnunet_octreenca.child_process import Finished, find_script, run_child
from nnunet_octreenca.integration.register import TRAINER_SHIMS

STOCK, OURS = "nnUNetTrainerTimeBudget", "OctreeNCATrainerTimeBudget"
PLANS = {STOCK: "nnUNetPlans", OURS: "nnUNetOctreeNCAPlans"}
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def find_data(given: str | None, name: str) -> Path:
    """The folder of a data set: in the folder given, in $OCTREENCA_DATA or in ../shared/data."""
    for base in (given, os.environ.get("OCTREENCA_DATA"), SHARED_DATA):
        if base and (Path(base) / name).is_dir():
            return Path(base) / name
    sys.exit(f"no {name}/ found: give --data FOLDER or set OCTREENCA_DATA")


def make_folders(work: Path) -> None:
    """nnU-Net's three folders in a new one, and the environment of its commands."""
    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir(parents=True)
        os.environ[f"nnUNet_{name}"] = str(work / name)
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    os.environ.setdefault("nnUNet_n_proc_DA", "1")
    # Works whether or not the trainers are registered.
    os.environ.setdefault("nnUNet_extTrainer", str(TRAINER_SHIMS))
    # Few cores for training, augmentation and validation: threads that spin while they wait
    # would take them from the others.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def run(command: list[str], log: Path) -> Finished:
    """An installed command or a program, its output in a log; ends us where it fails."""
    program = command[0] if Path(command[0]).is_file() else find_script(command[0])
    return run_child([program, *command[1:]], log=log, environment=dict(os.environ))


def budget_used(log: Path) -> tuple[int, int]:
    """Iterations and seconds of a training, from what it printed at its end."""
    iterations, seconds = re.findall(r"budget over: (\d+) iterations in (\d+) s", log.read_text())[
        -1
    ]
    return int(iterations), int(seconds)
