"""Which way of training is worth it? Named recipes on several data sets and seeds, one budget.

    python benchmarks/recipes.py --recipes default paper --datasets hippocampus --minutes 15
    python benchmarks/recipes.py --recipes default paper --seeds 0 1 2 --iterations 3000
    python benchmarks/recipes.py --table --work FOLDER        # of what is finished there
    python benchmarks/recipes.py --table docs/results/recipes.jsonl --recipes default wide
    python benchmarks/recipes.py --list

Every run trains fold 0 of a data set (recipe_data.py) with nnU-Net's loader and augmentation,
then validates its held-out cases whole. A recipe is a change of the plans that `extend_plans`
writes, or one of the trials in recipe_trials.py, or stock nnU-Net; several are joined with " + ",
as in `--recipes "2 crops + softmax"`. `--minutes` are on the clock of this machine with all its
processors, `--processor_minutes` of processor time of the training process (which other programs
disturb less; one thread), `--iterations` are training steps.

Runs are resumed: what is finished in --work is not repeated, and a training that was killed goes
on from its last checkpoint. Each finished run is a line of rows.jsonl. The table shows the mean
over the seeds, their range, and the difference to the first recipe, seed by seed; `--recipes` and
`--datasets` choose what stands in it, and which recipe is the first.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from minutes_of_training import run
from recipe_data import DATA_SETS, prepare

from nnunet_octreenca.planning.context import MOST_CROP_CELLS

HERE = Path(__file__).parent


class Budget(NamedTuple):
    """How long a training takes."""

    unit: str  # "minutes", "processor_minutes" or "iterations"
    amount: float

    def __str__(self) -> str:
        return f"{self.amount:g}-{self.unit}"


ADAM: dict[str, Any] = {"optimizer": "adam"}
"""What was the default before SOAP."""

# `extend`: flags of `extend_plans`. `batch_size`, `octreenca`, `arch_kwargs`: keys of the plans.
# `crop_cells`: the most that a crop for speed has. `halve_by_spacing`: axes of long cells wait.
# `steps`: of every level but the coarsest.
# `trial`: fields of recipe_trials.Trial. `stock`: nnU-Net's own trainer and plans.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"extend": ["--preset", "paper"]},
    "wide": {"extend": ["--preset", "wide"]},
    # As `--preset stochastic`, by its keys, so that it can be joined with another preset.
    "stochastic": {
        "arch_kwargs": {"fire_rate": 0.5},
        "steps": 10,
        "crop_cells": MOST_CROP_CELLS,
        "octreenca": ADAM,
    },
    "Adam": {"octreenca": ADAM},
    "nnunet": {"stock": True},
    "batch 3": {"batch_size": 3},
    "whole contexts": {"extend": ["--set", "crop_shape=null"]},
    "crops of 30,000 cells": {"crop_cells": 30_000},
    "crops of 10,000 cells": {"crop_cells": 10_000},
    "halved by spacing": {"halve_by_spacing": True},
    "3 steps": {"steps": 3},
    "7 steps": {"steps": 7},
    "10 steps": {"steps": 10},
    "foreground 0.8": {"octreenca": {"oversample_foreground_percent": 0.8}},
    "image as it is": {"arch_kwargs": {"input_mean": None, "input_std": None}},
    "one step a context": {"octreenca": {"steps_per_context": 1}},
    "context 1024": {"patch_size": [1024, 1024]},
    "fire rate 0.5": {"arch_kwargs": {"fire_rate": 0.5}},
    "fire rate 0.9": {"arch_kwargs": {"fire_rate": 0.9}},
    "not shifted": {"octreenca": {"shift": 0.0}},
    "shifted": {"octreenca": {"shift": 0.2}},
    "shifted by 0.1": {"octreenca": {"shift": 0.1}},
    "shifted by 0.4": {"octreenca": {"shift": 0.4}},
    "weight decay 0.01": {"octreenca": {"weight_decay": 0.01}},
    "turned more": {"trial": {"turned": 0.7}},
    "average 0.998": {"octreenca": {"ema_decay": 0.998}},
    "rate 1.6e-3": {"octreenca": {"initial_lr": 1.6e-3, "warm_up": 0.0}},
    "rate 4e-3": {"octreenca": {"initial_lr": 4e-3}},
    "rate 1e-2": {"octreenca": {"initial_lr": 1e-2}},
    "rate 2e-2": {"octreenca": {"initial_lr": 2e-2}},
    "no warm-up": {"octreenca": {"warm_up": 0.0}},
    "not clipped": {"octreenca": {"gradient_clip": None}},
    "exponential decay": {"octreenca": {"lr_schedule": "exponential"}},
    "AdamW": {"octreenca": {**ADAM, "weight_decay": 0.01}, "trial": {"optimizer": "adamw"}},
    "cosine": {"trial": {"schedule": "cosine"}},
    "2 crops": {"trial": {"crops": 2}},
    "softmax": {"trial": {"softmax": True}},
    "loss on the finest level": {"octreenca": {"loss_on_levels": 0.0}},
    "equal loss on all levels": {"octreenca": {"loss_on_levels": 1.0}},
    # The plans' hidden units are of 16 channels; without them a level has four to a channel.
    **{
        "channels " + ", ".join(map(str, channels)): {
            "arch_kwargs": {"channels": channels, "hidden": None}
        }
        for channels in (
            [16, 16, 32, 48],
            [16, 24, 32, 48],
            [16, 32, 48, 64],
            [16, 16, 16, 32, 48, 48],
        )
    },
    "random steps": {"trial": {"random_steps": 3}},
    "predict at rate 1": {"trial": {"predict_fire_rate": 1.0}},
    "random start": {"trial": {"start_std": 0.01}},
    "skeleton recall": {"trial": {"skeleton": 1.0}},
    "mirrored only": {"trial": {"augmentation": "mirror"}},
    "mirrored, turned, scaled": {"trial": {"augmentation": "spatial"}},
}


def recipe_named(name: str) -> dict[str, Any]:
    """One of RECIPES, or several joined: "2 crops + softmax"; what comes later wins.

    Raises:
        KeyError: one of them does not exist.
    """
    joined: dict[str, Any] = {}
    for part in name.split(" + "):
        for key, value in RECIPES[part].items():
            before = joined.get(key)
            joined[key] = {**before, **value} if isinstance(before, dict) else value
    return joined


def rows_path(work: Path) -> Path:
    """Where recipe_run.py adds the finished runs of a folder."""
    return work / "rows.jsonl"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The finished runs of a file with one JSON object a line."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # half a line of a killed run
            continue
    return rows


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells runs apart."""
    return row["dataset"], row["recipe"], row["seed"], row["budget"]


def run_name(key: tuple[Any, ...]) -> str:
    """Of a run's folder and of its log, from `key_of`."""
    return "_".join(map(str, key))


def chosen_rows(
    rows: list[dict[str, Any]], recipes: list[str] | None, datasets: list[str] | None
) -> list[dict[str, Any]]:
    """Rows of these recipes, in their order, and of these data sets; all where None.

    Raises:
        ValueError: no row is of one of the recipes.
    """
    rows = [row for row in rows if not datasets or row["dataset"] in datasets]
    if not recipes:
        return rows
    missing = [recipe for recipe in recipes if recipe not in {row["recipe"] for row in rows}]
    if missing:
        raise ValueError(f"no run of the recipe {missing[0]!r} is finished")
    kept = [row for row in rows if row["recipe"] in recipes]
    return sorted(kept, key=lambda row: recipes.index(row["recipe"]))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one row for each data set, budget and recipe."""
    lines = [
        "| data set | budget | recipe | seeds | iterations | mean Dice | range | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        group = groups.setdefault((row["dataset"], row["budget"]), {})
        group.setdefault(row["recipe"], []).append(row)
    for (dataset, budget), recipes in groups.items():
        length = re.sub("[-_]", " ", budget)
        first = {row["seed"]: row["mean_dice"] for row in next(iter(recipes.values()))}
        for recipe, runs in recipes.items():
            dice = [row["mean_dice"] for row in runs]
            paired = [row["mean_dice"] - first[row["seed"]] for row in runs if row["seed"] in first]
            difference = (
                f"{statistics.mean(paired):+.4f} ({min(paired):+.4f} to {max(paired):+.4f})"
                if paired and runs is not next(iter(recipes.values()))
                else ""
            )
            iterations = round(statistics.mean(row["iterations"] for row in runs))
            lines.append(
                f"| {dataset} | {length} | {recipe} | {len(runs)} | {iterations} | "
                f"{statistics.mean(dice):.4f} | {min(dice):.4f} to {max(dice):.4f} | {difference} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, one run after the other, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", metavar="RECIPE", help="default if left out")
    parser.add_argument("--datasets", nargs="+", choices=DATA_SETS, help="hippocampus if left out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float)
    length.add_argument("--processor_minutes", type=float)
    length.add_argument("--iterations", type=int)
    parser.add_argument("--threads", type=int, help="of the training; all processors if left out")
    parser.add_argument("--data", help="folder that holds the data sets' folders")
    parser.add_argument("--work", type=Path, default=Path("recipes_work"), help="kept; resumed")
    parser.add_argument(
        "--table",
        nargs="?",
        type=Path,
        const=True,
        metavar="FILE",
        help="only print what is finished in --work, or the runs of FILE",
    )
    parser.add_argument("--list", action="store_true", help="only print the recipes")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, no table")
    given = parser.parse_args()
    if given.list:
        for name, recipe in RECIPES.items():
            print(f"{name:20} {json.dumps(recipe)}")
        return
    finished = rows_path(given.work)
    if given.table:
        path = finished if given.table is True else given.table
        if not path.is_file():
            parser.error(f"there is no file {path}")
        try:
            rows = chosen_rows(rows_of(path), given.recipes, given.datasets)
        except ValueError as error:
            parser.error(str(error))
    else:
        given.recipes = given.recipes or ["default"]
        given.datasets = given.datasets or ["hippocampus"]
        named = [part for name in given.recipes for part in name.split(" + ")]
        unknown = [part for part in named if part not in RECIPES]
        if unknown:
            parser.error(f"there is no recipe {unknown[0]!r}; choose from {', '.join(RECIPES)}")
        units = ("minutes", "processor_minutes", "iterations")
        budgets = [Budget(unit, getattr(given, unit)) for unit in units if getattr(given, unit)]
        if not budgets:
            parser.error("give --minutes, --processor_minutes or --iterations, above 0")
        run_all(given, budgets[0])
        rows = rows_of(finished)
    print(json.dumps(rows, indent=4) if given.json else table(rows))


def run_all(given: argparse.Namespace, budget: Budget) -> None:
    """Every run that is not finished."""
    for dataset in given.datasets:
        prepare(dataset, given.work, given.data)
        for seed in given.seeds:
            for recipe in given.recipes:
                key = (dataset, recipe, seed, str(budget))
                if key in {key_of(row) for row in rows_of(rows_path(given.work))}:
                    continue
                train(given, budget, key)


def train(given: argparse.Namespace, budget: Budget, key: tuple[Any, ...]) -> None:
    """One run in a process of its own; its line is added to rows.jsonl."""
    dataset, recipe, seed, _ = key
    name = run_name(key)
    change = recipe_named(recipe)
    plans = "nnUNetPlans"
    if not change.get("stock"):
        plans = f"OctreeNCA{re.sub('[^a-z0-9]', '', recipe)}Plans"
        extend = ["nnunet_octreenca", "extend_plans", "-d", str(DATA_SETS[dataset].number)]
        extend += ["-overwrite_plans_name", plans, *change.get("extend", ())]
        run(extend, given.work / "extend.log")
    spec = {
        "dataset": dataset,
        "plans": plans,
        "recipe": recipe,
        "change": change,
        "seed": seed,
        "budget": [budget.unit, budget.amount],
        "threads": given.threads,
        "folder": str((given.work / "runs" / name).resolve()),
        "work": str(given.work.resolve()),
    }
    log = given.work / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{dataset}, {recipe}, seed {seed}: {log}", file=sys.stderr, flush=True)
    with log.open("a") as output:
        ended = subprocess.run(
            [sys.executable, str(HERE / "recipe_run.py"), json.dumps(spec)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
            check=False,
        )
    if ended.returncode:
        sys.exit(f"{name} ended with {ended.returncode}; see {log}. Run again to resume")


if __name__ == "__main__":
    main()
