"""The models in the wheel: trained with a fixed seed, scored, stripped, with cards and hashes.

    python benchmarks/zoo.py --models phantoms --processor_minutes 1 --threads 1
    python benchmarks/zoo.py --models hippocampus vessels --processor_minutes 240 --threads 1 \\
        --work FOLDER
    python benchmarks/zoo.py --models vessels --work FOLDER --from_run RUN

Trains fold 0 of the data sets of recipe_data.py by the default recipe of recipes.py and seed 0, and
predicts its held-out cases with the model as it is shipped. Training can be stopped at any moment:
the same command goes on from the last checkpoint, a minute old at most. What is finished in --work
is not trained again; --from_run takes a finished run of recipes.py, by the name of its folder in
FOLDER/runs.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipe_data import DATA_SETS, DataSet, prepare
from recipes import Budget, key_of, rows_of, rows_path, train
from zoo_cards import ENTRIES, Entry, card, row

from nnunet_octreenca import predict
from nnunet_octreenca.comparison.inputs import find_inputs
from nnunet_octreenca.comparison.scores import Scores, score
from nnunet_octreenca.comparison.statistics import Interval, Resamples
from nnunet_octreenca.comparison.summary import ALL
from nnunet_octreenca.files import JsonObject, atomic_write, read_json, write_json
from nnunet_octreenca.hashes import file_hash
from nnunet_octreenca.integration.fold_folder import write_checkpoint
from nnunet_octreenca.integration.register import TRAINER_SHIMS
from nnunet_octreenca.integration.zoo import CARD, FOLDER, INDEX
from nnunet_octreenca.training.checkpoints import VERSIONS, read_checkpoint

RECIPE, SEED = "default", 0
FINAL, LATEST = "checkpoint_final.pth", "checkpoint_latest.pth"


def run_name(finished: JsonObject) -> str:
    """Folder of a finished run of recipes.py."""
    return "_".join(map(str, key_of(finished)))


def finished_run(given: argparse.Namespace, entry: Entry, budget: Budget | None) -> JsonObject:
    """The line of rows.jsonl of the run to take; it is trained first if need be."""
    dataset = entry.dataset
    key = (dataset, RECIPE, SEED, str(budget))
    name = given.from_run or "_".join(map(str, key))
    found = {run_name(each): each for each in rows_of(rows_path(given.work))}
    if name not in found:
        if given.from_run or budget is None:
            sys.exit(f"{given.work} has no finished run {name!r}; finished: {', '.join(found)}")
        train(given, budget, key)
        found = {run_name(each): each for each in rows_of(rows_path(given.work))}
    if found[name]["dataset"] != dataset:
        sys.exit(f"the run {name} is of {found[name]['dataset']}, and the model needs {dataset}")
    return found[name]


def checkpoint_of(run: Path) -> tuple[Path, list[str]]:
    """The last checkpoint of a run, and what the card says about it."""
    if (run / FINAL).exists():
        return run / FINAL, []
    if (run / LATEST).exists():  # of a recipes.py that did not keep the end
        note = "The weights are of that run's last checkpoint, a minute from its end at most."
        return run / LATEST, ["", note]
    sys.exit(f"{run} holds neither {FINAL} nor {LATEST}; train again")


def pack(checkpoint: JsonObject, folder: Path) -> None:
    """A model folder without optimizer, raw weights and logs.

    Args:
        checkpoint: of the training.
        folder: that is made.
    """
    arguments = checkpoint["init_args"]
    plans = {key: value for key, value in arguments["plans"].items() if key != "continue_training"}
    (folder / "fold_0").mkdir(parents=True)
    write_json(folder / "plans.json", plans)
    write_json(folder / "dataset.json", arguments["dataset_json"])
    weights = {
        name: weight.detach().to("cpu", torch.float32).clone()  # a view would bring its storage
        for name, weight in checkpoint["network_weights"].items()
    }
    stripped = {
        "network_weights": weights,
        "trainer_name": "OctreeNCATrainer",
        "init_args": {"configuration": arguments["configuration"], "fold": 0},
        "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
        VERSIONS: checkpoint[VERSIONS],
    }
    write_checkpoint(stripped, folder / "fold_0" / FINAL)


def held_out_scores(model: Path, dataset: DataSet, entry: Entry, work: Path) -> tuple[Scores, Any]:
    """Dice of the held-out cases, and what was compared."""
    raw, prepared = (work / place / dataset.folder for place in ("raw", "preprocessed"))
    split = json.loads((prepared / "splits_final.json").read_text())[0]
    ending = read_json(raw / "dataset.json", "prepare the data set again")["file_ending"]
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        images, truth, found = (Path(scratch, name) for name in ("images", "truth", "found"))
        images.mkdir()
        truth.mkdir()
        for case in split["val"]:
            for path in sorted((raw / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}")):
                shutil.copy(path, images)
            shutil.copy(raw / "labelsTr" / f"{case}{ending}", truth)
        done = predict(images, found, model)
        if done.failed:
            sys.exit(f"{done.failed[0].case}: {done.failed[0].sentence}")
        shutil.rmtree(found / "overlays")
        inputs = find_inputs(
            truth, {"zoo": found}, labels=raw / "dataset.json", group_by=entry.group_by
        )
        return score(inputs, metrics=("dice",)), inputs


def intervals(scores: Scores, groups: tuple[str, ...], entry: Entry) -> list[tuple[str, Interval]]:
    """Of all classes, each class and each subset of the cases; the first is the model's figure."""
    dice = scores.values["dice"][0]
    everything = Resamples(groups)
    single = len(scores.classes) == 1
    found = [] if single else [(ALL, everything.interval(dice))]
    found += [
        (name, everything.interval(values))
        for name, values in zip(scores.classes, dice, strict=True)
    ]
    for name, pattern in entry.subsets.items():
        chosen = [place for place, case in enumerate(scores.cases) if re.match(pattern, case)]
        resamples = Resamples([groups[place] for place in chosen])
        found.append((name, resamples.interval(dice[:, chosen])))
    return found


def training_text(finished: JsonObject, split: JsonObject, checkpoint: JsonObject) -> list[str]:
    """Sentences on how the model came about."""
    amount, _, unit = finished["budget"].partition("-")
    versions = ", ".join(f"{name} {version}" for name, version in checkpoint[VERSIONS].items())
    return [
        f"{len(split['train'])} cases to train on, {len(split['val'])} held out;",
        f"{finished['iterations']:,} iterations, {finished['parameters']:,} parameters. Budget: "
        f"{amount} {unit.replace('_', ' ')}, threads: {finished['threads']},",
        f"recipe: `{finished['recipe']}`, seed: {finished['seed']}. With {versions}.",
        "",
        f"    python benchmarks/recipes.py --recipes {json.dumps(finished['recipe'])} --datasets "
        f"{finished['dataset']} --seeds {finished['seed']} --{unit} {amount} --threads "
        f"{finished['threads']}",
        "",
        "`benchmarks/zoo.py` runs that, keeps the averaged weights, scores them and writes this "
        "card.",
    ]


def make(name: str, given: argparse.Namespace, budget: Budget | None) -> None:
    """Train, score and write one model of the zoo."""
    entry = ENTRIES[name]
    dataset = DATA_SETS[entry.dataset]
    prepared = prepare(entry.dataset, given.work, given.data)
    finished = finished_run(given, entry, budget)
    run = given.work / "runs" / run_name(finished)
    path, notes = checkpoint_of(run)
    checkpoint = read_checkpoint(path)
    split = json.loads((prepared / "splits_final.json").read_text())[0]
    given.into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.into, prefix=f".{name}_") as beside:
        made = Path(beside, "made")
        pack(checkpoint, made)
        scores, inputs = held_out_scores(made, dataset, entry, given.work)
        found = intervals(scores, inputs.groups, entry)
        training = training_text(finished, split, checkpoint) + notes
        cases = list(zip(scores.cases, np.nanmean(scores.values["dice"][0], 0), strict=True))
        with atomic_write(made / CARD) as temporary:
            temporary.write_text(card(name, entry, training, found, cases), encoding="utf-8")
        hashes = {
            file.relative_to(made).as_posix(): file_hash(file)
            for file in made.rglob("*")
            if file.is_file()
        }
        put(name, made, row(entry, found[0][1], hashes), given.into)
    first = found[0][1]
    print(f"zoo:{name}: Dice {first.mean:.4f} ({first.low:.4f} to {first.high:.4f}), {path}")


def put(name: str, made: Path, line: JsonObject, into: Path) -> None:
    """Move a model into the zoo and its line into the index."""
    target = into / name
    if target.exists():
        target.rename(made.with_name("before"))
    made.rename(target)
    path = into / INDEX
    models = read_json(path, "remove it")["models"] if path.exists() else {}
    write_json(path, {"models": dict(sorted({**models, name: line}.items()))})


def main() -> None:
    """Every model asked for, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(ENTRIES), choices=ENTRIES)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float)
    length.add_argument("--processor_minutes", type=float)
    length.add_argument("--iterations", type=int)
    length.add_argument("--from_run", metavar="RUN", help="take this run; of one model")
    parser.add_argument("--threads", type=int, help="all processors if left out")
    parser.add_argument("--data", help="folder that holds the data sets' folders")
    parser.add_argument("--work", type=Path, default=Path("zoo_work"), help="kept; resumed")
    parser.add_argument("--into", type=Path, default=FOLDER, help="the zoo; the package's")
    given = parser.parse_args()
    units = ("minutes", "processor_minutes", "iterations")
    chosen = [Budget(unit, getattr(given, unit)) for unit in units if getattr(given, unit)]
    if not chosen and not given.from_run:
        parser.error("give a budget above 0")
    if given.from_run and len(given.models) != 1:
        parser.error("--from_run is of one model; give it with --models")
    os.environ.setdefault("nnUNet_extTrainer", str(TRAINER_SHIMS))
    given.work.mkdir(parents=True, exist_ok=True)
    if given.threads:
        torch.set_num_threads(given.threads)
    for name in given.models:
        make(name, given, chosen[0] if chosen else None)


if __name__ == "__main__":
    main()
