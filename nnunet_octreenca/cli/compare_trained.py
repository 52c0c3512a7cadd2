"""`nnunet_octreenca compare -d D -c CONF -f 0 --methods ...`: trains, measures, compares."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonMapping, read_json, write_json

if TYPE_CHECKING:
    from nnunet_octreenca.comparison.tables import Table
    from nnunet_octreenca.comparison.trained.jobs import Job, Request

TIMED_CASES = 5
MEMORY = "2G"

STATES = {
    "missing": "not trained",
    "half": "half trained",
    "trained": "not validated",
    "finished": "finished",
}
"""In words, by `Job.state`."""

NOTE = (
    "Measured by this program on this machine. Seconds, steps and parameters are of one training, "
    "memory is of the main process of a training or prediction. Predictions are timed with "
    "nnU-Net's defaults (mirroring, half-overlapping windows), each case by one method after "
    "another: medians of {cases} held-out case(s); the first case with the start of the program "
    "is apart."
)


@dataclass(frozen=True)
class _Comparison:
    """What is compared, checked before anything is trained.

    Attributes:
        request: data set, configuration, folds, seeds, budget.
        jobs: the trainings.
        description: dataset.json of the preprocessed data set.
        images: image files of each training case.
        report: folder of the report.
        device: "cpu", "cuda" or "mps".
        cases: how many predictions are timed on.
        memory: bytes up to which the memory of one pass is measured; 0 leaves it out.
        checkpoints: prompted method to its weights.
        finished: predictions that were there before, name to folder.
    """

    request: "Request"
    jobs: "list[Job]"
    description: JsonMapping
    images: dict[str, list[str]]
    report: Path
    device: str
    cases: int
    memory: int
    checkpoints: dict[str, Path]
    finished: Mapping[str, Path]


@dataclass(frozen=True)
class Material:
    """What a report is made of.

    Attributes:
        truth: folder of label maps.
        predictions: method to its folder.
        labels: dataset.json; None for every label a class.
        images: folder of images; None where they lie elsewhere or are not shown.
        records: JSON file of method records; None for none.
        note: of the records; empty where somebody else gave them.
        tables: more of them.
        caveats: sentences.
    """

    truth: Path
    predictions: dict[str, Path]
    labels: Path | None
    images: Path | None
    records: Path | None
    note: str = ""
    tables: "tuple[Table, ...]" = ()
    caveats: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a comparison that trains."""
    group = parser.add_argument_group("to train what is compared (instead of --truth)")
    group.add_argument("-d", metavar="DATASET", help="number or name of nnU-Net's data set")
    group.add_argument("-c", metavar="CONFIGURATION", help="2d, 3d_fullres, ...")
    group.add_argument("-f", nargs="+", default=["0"], metavar="FOLD", help="folds (default: 0)")
    group.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="such as OctreeNCA nnU-Net M3D-NCA TinyUNet; an unknown name lists all",
    )
    group.add_argument(
        "--ablate",
        nargs="+",
        default=[],
        metavar="KEY=VALUES",
        help="OctreeNCA varied, one key at a time, such as steps=5,10,20 levels=2,3,5",
    )
    group.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[],
        metavar="SEED",
        help="train each method once per seed (default: one training)",
    )
    group.add_argument(
        "--budget",
        metavar="TIME",
        help="train each for this long, such as 60m, its schedule fitted to it (default: each "
        "method's own schedule)",
    )
    group.add_argument("--collect", action="store_true", help="train nothing; all must be finished")
    group.add_argument(
        "--dry-run", action="store_true", help="print what would be trained, and for how long"
    )
    group.add_argument(
        "--cases",
        type=int,
        default=TIMED_CASES,
        metavar="N",
        help=f"held-out cases to time predictions on (default: {TIMED_CASES})",
    )
    group.add_argument(
        "--sam-checkpoint",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="weights of SAM or SAM2, a transformers checkpoint each; nothing is downloaded",
    )
    group.add_argument(
        "--memory",
        default=MEMORY,
        metavar="SIZE",
        help="measure the memory of one pass on larger and larger images until it takes this much "
        f"(default: {MEMORY}; 0: leave it out)",
    )
    group.add_argument(
        "-device",
        choices=("cpu", "cuda", "mps"),
        help="where to train and predict (default: cuda if there is one, else cpu)",
    )


def run(arguments: argparse.Namespace, finished: Mapping[str, Path]) -> Material | None:
    """Train, validate and time; None after a dry run.

    Args:
        arguments: of the command.
        finished: predictions that were there before, name to folder.

    Raises:
        OctreeNCAError: something cannot be trained or compared; what can be told beforehand is.
    """
    from nnunet_octreenca.cli.demo import find_device
    from nnunet_octreenca.comparison.trained import running
    from nnunet_octreenca.comparison.trained.finished import check_finished
    from nnunet_octreenca.comparison.trained.jobs import make_request, parse_budget, plan_jobs
    from nnunet_octreenca.comparison.trained.methods import find_methods
    from nnunet_octreenca.comparison.trained.prompted import find_checkpoints
    from nnunet_octreenca.comparison.trained.variants import parse_ablations
    from nnunet_octreenca.inference.memory_plan import parse_memory

    if arguments.cases < 1:
        raise InputError(f"--cases is {arguments.cases}, but must be 1 or more")
    memory = 0 if arguments.memory == "0" else parse_memory(arguments.memory)
    methods = find_methods(arguments.methods)
    trained = [method for method in methods if not method.prompted]
    if not trained:
        raise InputError(f"{methods[0].name} is compared with what is trained; add a method")
    request = make_request(
        arguments.d,
        arguments.c,
        arguments.f,
        trained,
        parse_ablations(arguments.ablate),
        arguments.seeds,
        None if arguments.budget is None else parse_budget(arguments.budget),
    )
    jobs = plan_jobs(request)
    description = read_json(request.preprocessed / "dataset.json", "preprocess it again")
    checkpoints = find_checkpoints(
        [method for method in methods if method.prompted],
        arguments.sam_checkpoint,
        _patch(jobs, request),
        description,
    )
    if finished:
        names = [*(job.name for job in jobs), *checkpoints]
        check_finished(finished, names, request, str(description["file_ending"]), Path(arguments.o))
    images = _raw_images(request)
    device = find_device(arguments.device)
    if arguments.collect:
        running.require_finished(jobs)
    if arguments.dry_run:
        _print_plan(jobs, running.estimate(jobs, request, device))
        return None
    report = Path(arguments.o)
    running.run_jobs(jobs, request, report, device, _say)
    return _collect(
        _Comparison(
            request=request,
            jobs=jobs,
            description=description,
            images=images,
            report=report,
            device=device,
            cases=arguments.cases,
            memory=memory,
            checkpoints=checkpoints,
            finished=finished,
        )
    )


def _say(line: str) -> None:
    print(line, flush=True)


def _raw_images(request: "Request") -> dict[str, list[str]]:
    """Image files of each training case.

    Raises:
        InputError: the raw data set is missing; predictions are timed from disk to disk.
    """
    from nnunet_octreenca.integration.raw_cases import training_cases

    if not (request.raw / "dataset.json").is_file():
        raise InputError(
            f"{request.raw} holds no dataset.json; put the raw data set back: predictions are "
            f"timed on its images"
        )
    found = training_cases(request.raw)
    there = [name for name, files in found.items() if all(map(Path.is_file, files.images))]
    if not there:
        raise InputError(
            f"{request.raw} holds no training images, on which predictions are timed; put imagesTr "
            f"back"
        )
    return {name: [str(path) for path in found[name].images] for name in there}


def _print_plan(jobs: "Sequence[Job]", hours: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in ("Method", "Fold", "Seed", "State", "Folder"):
        table.add_column(name, overflow="fold")
    for job in jobs:
        seed = "" if job.seed is None else str(job.seed)
        words = (job.name, str(job.fold), seed, STATES[job.state], job.model.name)
        table.add_row(*map(Text, words))
    console = Console()
    console.print(table)
    for name, value in hours.items():
        console.print(Text(f"{name}: {_time(value)}"))
    total = _time(sum(hours.values()))
    console.print(Text(f"In all some {total} of training; validation and timing come on top."))


def _time(hours: float) -> str:
    """Hours for people.

    >>> _time(0.01), _time(0.5), _time(1.5), _time(30)
    ('36 s', '30 min', '1.50 h', '30 h')
    """
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.0f} h" if hours >= 10 else f"{hours:.2f} h"


def _collect(comparison: _Comparison) -> Material:
    """Time the predictions, measure memory; gather what the report takes."""
    from nnunet_octreenca.comparison.trained import collecting, measuring
    from nnunet_octreenca.comparison.trained.finished import link_finished
    from nnunet_octreenca.comparison.trained.memory import measure_all, sizes_table
    from nnunet_octreenca.comparison.trained.paper import paper_table
    from nnunet_octreenca.comparison.trained.prompted import note, segment_cases

    jobs, request, report = comparison.jobs, comparison.request, comparison.report
    device, description = comparison.device, comparison.description
    ending = str(description["file_ending"])
    compared = collecting.first_seed(jobs)
    tables = [collecting.trainings_table(jobs)]  # finds damaged files before anything is timed
    truth, predictions = collecting.gather(compared, request, report, ending)
    files = [path.name for path in truth.iterdir()]
    beside = link_finished(comparison.finished, files, report / "predictions")
    fold, cases = next(iter(collecting.held_out_cases(compared, ending).items()))
    timed = {
        case: comparison.images[case]
        for case in cases[: comparison.cases]
        if case in comparison.images
    }
    if not timed:
        raise InputError(
            f"{request.raw} lacks the images of fold {fold}, such as {cases[0]}, on which "
            f"predictions are timed; put them back"
        )
    models = [job for job in compared if job.fold == fold]
    measured = measuring.measure(models, timed, report / "timing", device, _say)
    sizes = (
        measure_all(models, request, report / "timing" / "logs", device, comparison.memory, _say)
        if comparison.memory
        else {}
    )
    shown, prompted_records = segment_cases(
        comparison.checkpoints,
        comparison.images,
        truth,
        request,
        report / "predictions",
        device,
        _say,
        patch=_patch(jobs, request),
        dataset=description,
    )
    predictions |= shown | beside
    found = collecting.records(jobs, measured, device, sizes)
    found["methods"] |= prompted_records
    records = report / "records.json"
    write_json(records, found)
    write_json(report / "timing" / "answers.json", _answers(measured))
    if sizes:
        tables.append(sizes_table(sizes, comparison.memory))
    paper = paper_table(description)
    folder = request.raw / "imagesTr"
    return Material(
        truth,
        predictions,
        request.preprocessed / "dataset.json",
        folder if folder.is_dir() and "dataset" not in description else None,
        records,
        NOTE.format(cases=len(timed)),
        tuple([*tables, paper] if paper is not None else tables),
        (
            *_caveats(jobs, request),
            *(f"{name}: {note(name)}" for name in comparison.checkpoints),
            *(
                f"{name}: not trained here; label maps of {path}."
                for name, path in comparison.finished.items()
            ),
        ),
    )


def _patch(jobs: "Sequence[Job]", request: "Request") -> Sequence[int]:
    """Cells an axis of a method's patch."""
    from nnunet_octreenca.planning.plans_faults import inherited

    configurations = jobs[0].plans["configurations"]
    patch: Sequence[int] = inherited(configurations, request.configuration)["patch_size"]
    return patch


def _answers(measured: JsonMapping) -> dict[str, Any]:
    return {
        name: {"cold_seconds": found.cold_seconds, "warm": found.warm, "memory": found.memory}
        for name, found in measured.items()
    }


def _caveats(jobs: "Sequence[Job]", request: "Request") -> list[str]:
    found = []
    if request.budget is not None:
        found.append(
            f"Every training had {request.budget:g} s, its learning rates fitted to them; with "
            f"longer trainings the order of the methods may be another."
        )
    if len(request.seeds) == 1:
        found.append(
            "One training of each method: differences of a few points may be between trainings, "
            "not methods. Repeat with --seeds 0 1 2."
        )
    else:
        found.append(
            f"Cases, pictures and tests are of the trainings from seed {request.seeds[0]}; the "
            f"table of trainings has the others."
        )
    found += [f"{job.name}: {job.method.note}" for job in jobs if job.method.note]
    return list(dict.fromkeys(found))
