"""One run of recipes.py: trains and validates what its only argument, JSON, describes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from recipe_data import DATA_SETS
from recipe_trials import Trial, TrialTrainer

from nnunet_octreenca.files import read_json, write_json
from nnunet_octreenca.integration.time_budget import LAST_PROGRESS, nnUNetTrainerTimeBudget
from nnunet_octreenca.octree import level_shapes
from nnunet_octreenca.planning.context import MOST_CROP_CELLS, speed_crop
from nnunet_octreenca.planning.rules import level_factors, level_steps

EPOCH = 25  # iterations between two looks at the time for a checkpoint
SAVE_EVERY = 60.0  # seconds
SPENT = "spent.json"


class Budgeted:
    """Mixin, listed before the trainer: ends by the clock, processor time or iterations.

    A training that was killed goes on with the budget that its last checkpoint had left.
    """

    unit: str
    amount: float
    spent = 0.0  # before this process
    done = 0
    started: float | None = None

    def _clock(self) -> float:
        return time.monotonic() if self.unit == "minutes" else time.process_time()

    @property
    def used(self) -> float:
        """Of the budget, in seconds or iterations."""
        if self.unit == "iterations":
            return float(self.done)
        return self.spent + (0.0 if self.started is None else self._clock() - self.started)

    @property
    def part_used(self) -> float:
        """Of the budget, 0 to 1 or a little above."""
        return self.used / (self.amount * (1 if self.unit == "iterations" else 60))

    @property
    def progress(self) -> float:
        """Part of the budget that is used, 0 to `LAST_PROGRESS`, for the learning rate."""
        return min(self.part_used, LAST_PROGRESS)

    def run_training(self) -> None:
        """Nothing is validated in between."""
        trainer: Any = self
        spent = Path(trainer.output_folder, SPENT)
        latest = Path(trainer.output_folder, "checkpoint_latest.pth")
        trainer.on_train_start()
        if latest.exists() and spent.exists():
            trainer.load_checkpoint(str(latest))
            kept = read_json(spent, "remove the run's folder")
            self.done = trainer.current_epoch * EPOCH
            self.spent = float(kept[str(trainer.current_epoch)])
        trainer.num_iterations_per_epoch = EPOCH
        self.started = self._clock()
        saved = time.monotonic()
        while self.part_used < 1:
            trainer.on_train_epoch_start()
            losses = []
            for _ in range(EPOCH):
                self.follow_the_clock()
                step = trainer.train_step(next(trainer.dataloader_train))
                losses.append(float(step["loss"]))
                self.done += 1
                if self.part_used >= 1:
                    break
            trainer.current_epoch += 1
            if trainer.current_epoch % 20 == 0:
                print(f"{self.done} iterations, {self.used:.0f} used, loss {np.mean(losses):.4f}")
                sys.stdout.flush()
            if time.monotonic() - saved > SAVE_EVERY:
                before = read_json(spent, "remove it") if spent.exists() else {}
                epoch = trainer.current_epoch
                # The checkpoint's own epoch is one less: nnU-Net saves before it counts.
                write_json(spent, {**dict(list(before.items())[-1:]), str(epoch): self.used})
                trainer.current_epoch -= 1
                trainer.save_checkpoint(str(latest))
                trainer.current_epoch += 1
                saved = time.monotonic()
        for batches in (trainer.dataloader_train, trainer.dataloader_val):
            if hasattr(batches, "close"):
                batches.close()

    def follow_the_clock(self) -> None:
        """Set the learning rate, where the trainer does not do so itself."""


class BudgetedTrial(Budgeted, TrialTrainer):
    """OctreeNCA, with or without a trial."""


class BudgetedStock(Budgeted, nnUNetTrainer):
    """Stock nnU-Net."""

    def follow_the_clock(self) -> None:
        """nnU-Net's polynomial decay."""
        nnUNetTrainerTimeBudget.follow_the_clock(self)


def changed(plans: dict[str, Any], configuration: str, change: dict[str, Any], seed: int) -> None:
    """Put a recipe's keys into the plans, in place."""
    chosen = plans["configurations"][configuration]
    for key in ("batch_size", "patch_size"):
        if key in change:
            chosen[key] = change[key]
    if "octreenca" in chosen:
        chosen["octreenca"].update(change.get("octreenca", {}), seed=seed)
        network = chosen["architecture"]["arch_kwargs"]
        network.update(change.get("arch_kwargs", {}))
        context = tuple(chosen["patch_size"])
        halve_by_spacing = change.get("halve_by_spacing", False)
        if halve_by_spacing:
            factors = level_factors(context, chosen["spacing"])
            steps = level_steps(level_shapes(context, factors), steps=network["steps"][0])
            network.update(factors=[list(row) for row in factors], steps=steps)
        if "steps" in change:
            network["steps"][:-1] = [change["steps"]] * len(network["factors"])
        if "crop_cells" in change or halve_by_spacing:
            most = change.get("crop_cells", MOST_CROP_CELLS)
            crop = speed_crop(context, network["factors"], most, network["steps"][0])
            shape, levels = crop or (None, 0)
            chosen["octreenca"].update(crop_shape=shape and list(shape), crop_levels=levels)


def commit() -> str | None:
    """Of this checkout, with "-dirty" where files differ: runs of one build can be compared."""
    try:
        described = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # no git
        return None
    return described.stdout.strip() or None


def main() -> None:
    """Train, validate, add a line to rows.jsonl."""
    spec = json.loads(sys.argv[1])
    work, folder, change = Path(spec["work"]), Path(spec["folder"]), spec["change"]
    dataset = DATA_SETS[spec["dataset"]]
    stock = change.get("stock", False)
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    preprocessed = work / "preprocessed" / dataset.folder
    plans = read_json(preprocessed / f"{spec['plans']}.json", "prepare the data set again")
    changed(plans, dataset.configuration, change, spec["seed"])
    plans["continue_training"] = False
    trainer_class = BudgetedStock if stock else BudgetedTrial
    if not stock:
        TrialTrainer.trial = Trial(**change.get("trial", {}))
    description = read_json(preprocessed / "dataset.json", "prepare the data set again")
    trainer: Any = trainer_class(
        plans, dataset.configuration, 0, description, device=torch.device("cpu")
    )
    trainer.unit, trainer.amount = spec["budget"]
    trainer.output_folder = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    began = time.monotonic()
    trainer.run_training()
    seconds = time.monotonic() - began
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    trainer.perform_actual_validation()
    summary = read_json(folder / "validation" / "summary.json", "validate again")
    row = {
        "dataset": spec["dataset"],
        "recipe": spec["recipe"],
        "seed": spec["seed"],
        "budget": f"{trainer.amount:g}-{trainer.unit}",
        "mean_dice": summary["foreground_mean"]["Dice"],
        "dice": {label: entry["Dice"] for label, entry in summary["mean"].items()},
        "iterations": trainer.done,
        "used": round(trainer.used, 1),
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "change": change,
        "commit": commit(),
    }
    with (work / "rows.jsonl").open("a") as rows:
        rows.write(json.dumps(row) + "\n")
        rows.flush()
        os.fsync(rows.fileno())


if __name__ == "__main__":
    main()
