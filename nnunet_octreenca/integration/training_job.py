"""A training of a comparison, in a process of its own: `python -m ...training_job JOB.json`.

Any of nnU-Net's trainers, trained or continued, then validated. What it took is written beside
the checkpoints, for trainings that nnU-Net's own command finished too.
"""

import os
import random
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch.nn import functional

from nnunet_octreenca.errors import OctreeNCAError
from nnunet_octreenca.files import JsonMapping, JsonObject, read_json, write_json
from nnunet_octreenca.integration.fold_folder import FoldFolder
from nnunet_octreenca.integration.time_budget import (
    MINUTES_VARIABLE,
    SPENT,
    WholeCheckpoints,
    with_budget,
)
from nnunet_octreenca.integration.trainer import OctreeNCATrainer
from nnunet_octreenca.resources import peak_memory

FACTS = "training.json"
"""Beside a fold's checkpoints: what the training took."""

FINAL, LATEST = "checkpoint_final.pth", "checkpoint_latest.pth"
SAVE_SECONDS = 120.0  # between checkpoints of a training without a budget


def main() -> None:
    """Do what the file that is named in the arguments says."""
    job = read_json(sys.argv[1], "start the comparison again")
    try:
        if job.get("probe"):
            write_json(job["probe"], probe(job))
        else:
            train(job)
    except OctreeNCAError as error:
        sys.exit(f"ERROR: {error}")


def train(job: JsonMapping) -> None:
    """Train, continue or take as finished; write the facts; validate.

    Args:
        job: `trainer`, `plans` and `dataset` (files), `configuration`, `fold`, `device`; `minutes`
            and `seed` may be null.
    """
    trainer = make_trainer(job)
    folder = Path(trainer.output_folder)
    with ExitStack() as held:
        if not isinstance(trainer, OctreeNCATrainer):  # which holds its folder itself
            held.enter_context(FoldFolder(folder, job["fold"], first=True).held("training"))
        if (folder / FINAL).is_file():
            trainer.load_checkpoint(str(folder / FINAL))
        else:
            if (folder / LATEST).is_file():
                trainer.load_checkpoint(str(folder / LATEST))
            trainer.run_training()
        if not (folder / FACTS).is_file():
            write_json(folder / FACTS, facts(trainer, job))
        trainer.perform_actual_validation()


def make_trainer(job: JsonMapping) -> Any:
    """The trainer of a job, with a budget if it has one, seeded if it has a seed."""
    if job.get("seed") is not None:
        random.seed(job["seed"])
        np.random.seed(job["seed"])
        torch.manual_seed(job["seed"])
    found = recursive_find_trainer_class_by_name(job["trainer"])
    if job.get("minutes") is not None:
        os.environ[MINUTES_VARIABLE] = repr(job["minutes"])
        found = with_budget(found)
    elif not issubclass(found, OctreeNCATrainer):
        found = type(found.__name__, (_Saving, found), {"__module__": __name__})
    plans = read_json(job["plans"], "plan the data set again")
    dataset = read_json(job["dataset"], "plan the data set again")
    return found(
        {**plans, "continue_training": False},
        job["configuration"],
        int(job["fold"]),
        dataset,
        device=torch.device(job["device"]),
    )


class _Saving(WholeCheckpoints):
    """nnU-Net's trainers save every 50 epochs, which may be a day."""

    save_every: int
    _saved = 0.0

    def on_epoch_end(self) -> None:
        due = time.monotonic() - self._saved > SAVE_SECONDS
        self.save_every = 1 if due else 1 << 30
        self._saved = time.monotonic() if due else self._saved
        trainer: Any = super()
        trainer.on_epoch_end()


def facts(trainer: Any, job: JsonMapping) -> JsonObject:
    """What a finished training took; of one that this process did not train, what is known."""
    log = trainer.logger.local_logger.my_fantastic_logging
    seconds = [
        end - start
        for start, end in zip(
            log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=False
        )
    ]
    spent = trainer.my_init_kwargs.get(SPENT) or {}
    iterations = trainer.current_epoch * trainer.num_iterations_per_epoch
    cuda = trainer.device.type == "cuda"
    return {
        "trainer": type(trainer).__name__,
        "minutes": job.get("minutes"),
        "seed": job.get("seed"),
        "seconds": spent.get("seconds", sum(seconds)),
        "iterations": spent.get("iterations", iterations),
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "peak_bytes": peak_memory() if trainer.dataloader_train is not None else None,
        "device_peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "curve": [
            [round(float(at), 1), round(float(dice), 5)]
            for at, dice in zip(np.cumsum(seconds), log["ema_fg_dice"], strict=False)
        ],
    }


def probe(job: JsonMapping) -> JsonObject:
    """Seconds of a training step on noise, and how many steps the training has.

    The results' folder should be one that is thrown away: a trainer makes folders.
    """
    trainer = make_trainer(job)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.network.train()
    batch = _noise(trainer)
    seconds = 0.0
    for _ in range(2):  # the first step allocates and compiles
        begun = time.monotonic()
        trainer.train_step(batch)
        seconds = time.monotonic() - begun
        if seconds > 10:
            break
    return {
        "step_seconds": seconds,
        "steps": trainer.num_epochs * trainer.num_iterations_per_epoch,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
    }


def _noise(trainer: nnUNetTrainer) -> JsonObject:
    """A batch as the loader's."""
    size = trainer.configuration_manager.batch_size
    patch = tuple(trainer.configuration_manager.patch_size)
    labels = trainer.label_manager
    if labels.has_regions:
        heads = labels.num_segmentation_heads + labels.has_ignore_label
        target = torch.randint(0, 2, (size, heads, *patch)).bool()
    else:
        target = torch.randint(0, max(labels.all_labels) + 1, (size, 1, *patch)).short()
    scales = trainer._get_deep_supervision_scales() if trainer.enable_deep_supervision else None
    targets: Any = target
    if scales is not None:
        shapes = [[round(n * s) for n, s in zip(patch, scale, strict=True)] for scale in scales]
        targets = [
            functional.interpolate(target.float(), shape).to(target.dtype) for shape in shapes
        ]
    data = torch.randn(size, int(trainer.num_input_channels or 1), *patch)
    return {"data": data, "target": targets, "keys": [f"noise_{n}" for n in range(size)]}


if __name__ == "__main__":
    main()
