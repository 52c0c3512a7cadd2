"""`nnunet_octreenca demo`: phantoms, stock commands, OctreeNCA next to stock nnU-Net, a report."""

import argparse
import math
import os
import sys
import time
from pathlib import Path

from nnunet_octreenca.child_process import (
    CommandError,
    Finished,
    ends_like_ctrl_c,
    find_script,
    run_child,
)
from nnunet_octreenca.cli.demo_progress import Screen, TrainingProgress
from nnunet_octreenca.errors import EnvironmentMismatchError, InputError
from nnunet_octreenca.files import JsonObject

HELP = "train, predict and compare OctreeNCA and stock nnU-Net on generated data"
EXAMPLE = """\
examples:
  nnunet_octreenca demo
  nnunet_octreenca demo -o /tmp/demo --minutes 5 -device cuda

Generates phantoms, plans, preprocesses, trains OctreeNCA and stock nnU-Net for --minutes each,
predicts held-out cases and compares the two in report.json and overlay.png. It runs nnU-Net's own
commands, writes only to the output folder and needs no registration. Takes about 7 minutes on two
cores.
"""

DATASET_ID, DATASET = "999", "Dataset999_Phantoms"
CONFIGURATION, FOLD = "3d_fullres", "0"
TRAINING_CASES, TEST_CASES = 20, 6
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
NETWORKS = {  # name in the report: trainer, plans
    "OctreeNCA": ("OctreeNCATrainerTimeBudget", "nnUNetOctreeNCAPlans"),
    "nnU-Net": ("nnUNetTrainerTimeBudget", "nnUNetPlans"),
}
STAGES = 4 + 2 * len(NETWORKS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "-o",
        type=Path,
        default=Path("octreenca_demo"),
        metavar="FOLDER",
        help="new folder for all output (default: ./octreenca_demo)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=2.0,
        help="training time of each network in minutes (default: 2)",
    )
    parser.add_argument(
        "-device",
        choices=("cpu", "cuda", "mps"),
        help="where to train and predict (default: cuda if there is one, else cpu)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run all stages and print the results."""
    minutes = arguments.minutes
    if not (minutes > 0 and math.isfinite(minutes)):
        raise InputError(f"--minutes ({minutes:g}) must be a number above 0, such as 2")
    folder = new_folder(arguments.o)
    device = find_device(arguments.device)

    from nnunet_octreenca.cli.demo_report import print_table

    print(f"{minutes:g} min of training for each network on {device}; everything is in {folder}")
    try:
        with ends_like_ctrl_c(), Screen(STAGES) as screen:
            report = Demo(folder, minutes, device, screen).run()
    except CommandError as error:
        print(error.last_lines, file=sys.stderr)
        raise
    print_table(report)
    print(f"picture: {folder / 'overlay.png'}")
    print(f"report:  {folder / 'report.json'}")
    print(
        "Next, for your own data: `nnunet_octreenca register`, then nnU-Net's own commands as\n"
        "`nnunet_octreenca --help` lists them."
    )
    return 0


def new_folder(folder: Path) -> Path:
    """Make the folder.

    Raises:
        InputError: it holds something already, or cannot be written.
    """
    folder = folder.expanduser().absolute()
    otherwise = "choose another one with -o FOLDER"
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and is not an empty folder; {otherwise}")
        (folder / "logs").mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}); {otherwise}"
        ) from error
    return folder


def find_device(wanted: str | None) -> str:
    """The device asked for, or else the best that there is.

    Raises:
        EnvironmentMismatchError: it is not there.
    """
    import torch

    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if wanted is None:
        return "cuda" if there["cuda"] else "cpu"
    if not there[wanted]:
        raise EnvironmentMismatchError(
            f"-device {wanted}: torch {torch.__version__} finds no such device here; use -device "
            f"cpu (`nnunet_octreenca doctor` says more)"
        )
    return wanted


def child_environment(folder: Path, minutes: float) -> dict[str, str]:
    """The environment of nnU-Net's commands: the demo's folders, unregistered trainers.

    What stands before the user's environment gives way to what the user has set.
    """
    from nnunet_octreenca.integration.register import TRAINER_SHIMS

    return {
        "nnUNet_def_n_proc": "2",
        "nnUNet_n_proc_DA": "2" if (os.cpu_count() or 1) >= 4 else "1",
        # Threads that spin while they wait take the cores from the data loader: on two busy
        # cores a training got through a fifth (OctreeNCA) or half (U-Net) of the iterations.
        "OMP_WAIT_POLICY": "passive",
        "nnUNet_compile": "f",  # on a GPU it would take a good part of so short a training
        **os.environ,
        **{name: str(folder / name) for name in FOLDERS},
        "nnUNet_extTrainer": str(TRAINER_SHIMS),
        "nnUNet_octreenca_minutes": str(minutes),
        "nnUNet_wandb_enabled": "0",  # what the user logs there is other work
        "PYTHONUNBUFFERED": "1",
    }


class Demo:
    """The stages; each builds on what those before it have written to the folder."""

    def __init__(self, folder: Path, minutes: float, device: str, screen: Screen) -> None:
        self.folder, self.minutes, self.device, self.screen = folder, minutes, device, screen
        self.raw = folder / "nnUNet_raw" / DATASET
        self.environment = child_environment(folder, minutes)
        for name in FOLDERS:
            (folder / name).mkdir()

    def run(self) -> JsonObject:
        """All stages in their order; returns the report."""
        begun = time.monotonic()
        self.make_data()
        self.command(
            "plan and preprocess",
            *("nnUNetv2_plan_and_preprocess", "-d", DATASET_ID, "-c", CONFIGURATION),
            *("-np", "2", "-npfp", "2", "--verify_dataset_integrity"),
        )
        self.command("extend plans", "nnunet_octreenca", "extend_plans", "-d", DATASET_ID)
        networks = {name: self.train(name) for name in NETWORKS}
        for name in NETWORKS:
            networks[name].update(self.predict(name))
        return self.compare(networks, begun)

    def make_data(self) -> None:
        """Phantoms in nnU-Net's raw folder."""
        from nnunet_octreenca.datasets.phantoms import make_phantoms

        with self.screen.stage("make phantoms") as show:
            make_phantoms(self.raw, training=TRAINING_CASES, test=TEST_CASES)
            show(1.0, f"{TRAINING_CASES} cases for training, {TEST_CASES} for the test")

    def train(self, name: str) -> JsonObject:
        """Train a network; returns its columns of the report that concern training."""
        from nnunet_octreenca.cli.demo_report import count_parameters

        trainer, plans = NETWORKS[name]
        progress = TrainingProgress(self.minutes)
        done = self.command(
            f"train {name}",
            *("nnUNetv2_train", DATASET_ID, CONFIGURATION, FOLD),
            *("-tr", trainer, "-p", plans, "-device", self.device),
            progress=progress,
        )
        model = self.folder / "nnUNet_results" / DATASET / f"{trainer}__{plans}__{CONFIGURATION}"
        return {
            "trainer": trainer,
            "plans": plans,
            "parameters": count_parameters(model / f"fold_{FOLD}" / "checkpoint_final.pth"),
            "iterations": progress.iterations,
            "training_seconds": progress.seconds,
            "training_peak_bytes": done.peak_bytes,
        }

    def predict(self, name: str) -> JsonObject:
        """Segment the test cases; returns the columns of the report that concern prediction."""
        trainer, plans = NETWORKS[name]
        done = self.command(
            f"predict {name}",
            *("nnUNetv2_predict", "-d", DATASET_ID, "-c", CONFIGURATION, "-f", FOLD),
            *("-tr", trainer, "-p", plans, "-device", self.device, "-npp", "1", "-nps", "1"),
            *("-i", str(self.raw / "imagesTs"), "-o", str(self.predictions(name))),
        )
        return {
            "prediction_seconds": round(done.seconds, 1),
            "prediction_peak_bytes": done.peak_bytes,
        }

    def predictions(self, name: str) -> Path:
        """Where a network's segmentations of the test cases are."""
        return self.folder / "predictions" / name

    def compare(self, networks: dict[str, JsonObject], begun: float) -> JsonObject:
        """Dice and picture; writes both and returns the report."""
        from nnunet_octreenca.cli import demo_report
        from nnunet_octreenca.files import write_json

        with self.screen.stage("compare"):
            folders = {name: self.predictions(name) for name in NETWORKS}
            for name, folder in folders.items():
                networks[name].update(demo_report.dice_of_folder(self.raw / "labelsTs", folder))
            demo_report.draw(self.raw, folders, networks, self.folder / "overlay.png")
            report = {
                "minutes": self.minutes,
                "device": self.device,
                **demo_report.circumstances(),
                "total_seconds": round(time.monotonic() - begun),
                "networks": networks,
            }
            write_json(self.folder / "report.json", report)
        return report

    def command(
        self, title: str, program: str, *arguments: str, progress: TrainingProgress | None = None
    ) -> Finished:
        """A stage that is one command; all that it prints is kept in `logs`."""
        with self.screen.stage(title) as show:
            log = f"{self.screen.number:02d}_{title.replace(' ', '_')}.log"
            return run_child(
                [find_script(program), *arguments],
                log=self.folder / "logs" / log,
                environment=self.environment,
                on_line=progress.read if progress else lambda line: None,
                on_tick=lambda: show(*progress.state()) if progress else None,
            )
