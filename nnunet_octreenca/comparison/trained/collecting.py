"""Finished trainings as what a report takes: folders of label maps, records, tables."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from nnunet_octreenca.comparison.records import FORM
from nnunet_octreenca.comparison.tables import MISSING, Cell, Table
from nnunet_octreenca.comparison.trained.jobs import Job, Request
from nnunet_octreenca.comparison.trained.measuring import Measured
from nnunet_octreenca.comparison.trained.memory import Sizes
from nnunet_octreenca.errors import InputError, OutputError
from nnunet_octreenca.files import JsonObject, read_json
from nnunet_octreenca.integration.training_job import FACTS

AGAIN = "run the same command again"
Jobs = Sequence[Job]


def first_seed(jobs: Jobs) -> list[Job]:
    """The trainings of each method's first seed, whose predictions are compared."""
    return [job for job in jobs if job.seed == jobs[0].seed]


def by_method(jobs: Jobs) -> dict[str, list[Job]]:
    """Trainings of each method, in their order."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.name, []).append(job)
    return found


def held_out_cases(jobs: Jobs, ending: str) -> dict[int, list[str]]:
    """The cases that each fold was validated on; the same of all methods.

    Raises:
        InputError: lists differ, or a case is of two folds.
    """
    found: dict[int, tuple[str, list[str]]] = {}
    for job in jobs:
        cases = sorted(file.name[: -len(ending)] for file in job.summary.parent.glob(f"*{ending}"))
        name, expected = found.setdefault(job.fold, (job.name, cases))
        if cases != expected:
            other = sorted(set(cases) ^ set(expected))[0]
            raise InputError(
                f"fold {job.fold} of {job.name} and of {name} were validated on other cases "
                f"(such as {other}); remove {job.summary} to validate again, or {job.folder} to "
                f"train again if the splits have changed"
            )
    all_cases = [case for _, cases in found.values() for case in cases]
    twice = sorted({case for case in all_cases if all_cases.count(case) > 1})
    if twice:
        raise InputError(
            f"case {twice[0]} is held out in two of the folds {', '.join(map(str, found))}; "
            f"compare them one at a time"
        )
    return {fold: cases for fold, (_, cases) in found.items()}


def gather(jobs: Jobs, request: Request, report: Path, ending: str) -> tuple[Path, dict[str, Path]]:
    """Folders of the truth and of each method's predictions, inside the report.

    Args:
        jobs: of one seed each method.

    Raises:
        InputError: the cases of methods differ, or a truth is missing.
        OutputError: the report's folder cannot be written.
    """
    cases = held_out_cases(jobs, ending)
    truth = report / "truth"
    source = request.preprocessed / "gt_segmentations"
    names = [case for fold in cases for case in cases[fold]]
    fill_folder(truth, {f"{case}{ending}": source / f"{case}{ending}" for case in names})
    predictions: dict[str, Path] = {}
    for number, (name, own) in enumerate(by_method(jobs).items()):
        folder = (
            report / "predictions" / f"{number}_{''.join(c if c.isalnum() else '_' for c in name)}"
        )
        files = {
            f"{case}{ending}": job.summary.parent / f"{case}{ending}"
            for job in own
            for case in cases[job.fold]
        }
        fill_folder(folder, files)
        predictions[name] = folder
    return truth, predictions


def fill_folder(folder: Path, files: Mapping[str, Path]) -> None:
    """A folder of just these files; links where the file system has them.

    Args:
        folder: made anew.
        files: name to the file that it is.

    Raises:
        InputError: a file is missing.
        OutputError: the folder cannot be written.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, source in files.items():
            if not source.is_file():
                raise InputError(f"{source} is missing; preprocess the data set again")
            try:
                os.link(source, folder / name)
            except OSError:
                shutil.copyfile(source, folder / name)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error})") from error


def records(
    jobs: Jobs, measured: Mapping[str, Measured], device: str, sizes: Mapping[str, Sizes]
) -> JsonObject:
    """Method records (`records.read_records`) of trainings, timings and memory."""
    found: JsonObject = {}
    for name, own in by_method(jobs).items():
        facts = [_facts(job) for job in own]
        record: JsonObject = {
            "parameters": facts[0]["parameters"],
            "training_seconds": mean(one["seconds"] for one in facts),
            "iterations": mean(one["iterations"] for one in facts),
            "seeds": len({job.seed for job in own}),
            "device": device,
            "curves": [{"x": "Training (s)", "y": "Dice of patches", "points": facts[0]["curve"]}],
        }
        for key, source in (
            ("training_peak_bytes", "peak_bytes"),
            ("training_device_peak_bytes", "device_peak_bytes"),
        ):
            known = [one[source] for one in facts if one[source]]
            if known:
                record[key] = max(known)
        if own[0].method.note:
            record["notes"] = own[0].method.note
        if name in measured:
            record.update(measured[name].record())
        if name in sizes:
            record["curves"].append(sizes[name].curve())
        found[name] = record
    return {"form": FORM, "methods": found}


def trainings_table(jobs: Jobs) -> Table:
    """A row of each method and seed: nnU-Net's mean Dice over folds, and the spread of seeds."""
    rows: list[tuple[Cell, ...]] = []
    for name, own in by_method(jobs).items():
        seeds = list(dict.fromkeys(job.seed for job in own))
        means = []
        for seed in seeds:
            of_seed = [job for job in own if job.seed == seed]
            dice = mean(_dice(job) for job in of_seed)
            facts = [_facts(job) for job in of_seed]
            seconds = mean(one["seconds"] for one in facts)
            iterations = mean(one["iterations"] for one in facts)
            means.append(dice)
            rows.append(
                (
                    Cell(name),
                    Cell(MISSING if seed is None else str(seed)),
                    Cell(f"{dice:.4f}", dice),
                    Cell(f"{seconds:,.0f}", seconds),
                    Cell(f"{iterations:,.0f}", iterations),
                )
            )
        if len(seeds) > 1:
            text = f"{mean(means):.4f} ± {stdev(means):.4f}"
            blank = Cell(MISSING)
            rows.append((Cell(name), Cell("mean ± SD"), Cell(text, mean(means)), blank, blank))
    return Table(
        "Trainings",
        "nnU-Net's foreground mean Dice of the held-out cases, mean over the folds. SD: standard "
        "deviation between trainings from different seeds. Seconds and iterations of one training.",
        ("Method", "Seed", "Mean Dice", "Seconds", "Iterations"),
        tuple(rows),
        2,
    )


def _facts(job: Job) -> JsonObject:
    """What a training took; a damaged file is written anew by a run that does not find it."""
    path = job.folder / FACTS
    facts = read_json(path, f"remove it and {AGAIN}")
    for key in ("parameters", "seconds", "iterations", "peak_bytes", "device_peak_bytes", "curve"):
        if key not in facts:
            raise InputError(f"{path} lacks {key}; remove it and {AGAIN}")
    return facts


def _dice(job: Job) -> float:
    summary = read_json(job.summary, f"remove it and {AGAIN}")
    try:
        return float(summary["foreground_mean"]["Dice"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{job.summary} lacks nnU-Net's mean Dice; remove it and {AGAIN}"
        ) from error
