"""How long does a core take to load and augment a training context, and how long for a step on it?

    python benchmarks/context_loading.py --datasets hippocampus acdc hrf clip clip-3d --json

Each data set is planned by `extend_plans` as it stands. One thread; processor time, which other
programs disturb less. The rates are what `planning/loading.py` reckons with.
"""

import argparse
import json
import os
import sys
import time
from contextlib import redirect_stdout
from math import prod
from pathlib import Path
from typing import Any

import torch
from minutes_of_training import run
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from recipe_data import DATA_SETS, prepare

from nnunet_octreenca.files import read_json
from nnunet_octreenca.integration.batches import loaders_only
from nnunet_octreenca.integration.trainer import OctreeNCATrainer

PLANS = "OctreeNCAcontextloadingPlans"


def measure(dataset: str, work: Path, data: str | None, contexts: int) -> dict[str, Any]:
    """A row of a data set."""
    preprocessed = prepare(dataset, work, data)
    chosen = DATA_SETS[dataset]
    extend = ["nnunet_octreenca", "extend_plans", "-d", str(chosen.number)]
    run([*extend, "-overwrite_plans_name", PLANS], work / "extend.log")
    plans = read_json(preprocessed / f"{PLANS}.json", "plan it again")
    trainer = OctreeNCATrainer(
        {**plans, "continue_training": False},
        chosen.configuration,
        0,
        read_json(preprocessed / "dataset.json", "preprocess it again"),
        device=torch.device("cpu"),
    )
    trainer.initialize()
    with loaders_only():  # nnU-Net's own, in this process
        loader = nnUNetTrainer.get_dataloaders(trainer)[0].data_loader
    batch = next(loader)
    loading = _seconds(lambda: next(loader), contexts)
    trainer.train_step(batch)  # the first allocates
    shape = list(batch["data"].shape[1:])
    return {
        "dataset": dataset,
        "context": shape,
        "loading_seconds": round(loading, 4),
        "loading_nanoseconds_a_number": round(1e9 * loading / prod(shape), 1),
        "step_seconds": round(_seconds(lambda: trainer.train_step(batch), contexts), 4),
        "steps_per_context": trainer.settings.steps_per_context,
    }


def _seconds(work: Any, times: int) -> float:
    """Mean processor time of this process."""
    begun = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begun) / times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", nargs="+", default=["hippocampus"], choices=DATA_SETS)
    parser.add_argument("--contexts", type=int, default=30, help="to load and to train on")
    parser.add_argument("--data", help="folder that holds the data sets' folders")
    parser.add_argument("--work", type=Path, default=Path("recipes_work"), help="as recipes.py's")
    parser.add_argument("--json", action="store_true", help="print JSON, no table")
    given = parser.parse_args()
    os.environ["nnUNet_n_proc_DA"] = "0"
    torch.set_num_threads(1)
    with redirect_stdout(sys.stderr):  # nnU-Net talks
        rows = [measure(name, given.work, given.data, given.contexts) for name in given.datasets]
    if given.json:
        print(json.dumps(rows, indent=4))
        return
    print("| data set | context | loading, s | ns a number | step, s | steps a context |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
