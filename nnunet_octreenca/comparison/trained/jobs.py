"""What is to be trained: worked out and checked before anything is."""

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from nnunet_octreenca import baselines
from nnunet_octreenca.comparison.trained.methods import Method
from nnunet_octreenca.comparison.trained.variants import Change, change
from nnunet_octreenca.errors import InputError, PlansError
from nnunet_octreenca.files import JsonMapping, JsonObject, load_json, read_json
from nnunet_octreenca.integration.planner import dataset_name, nnunet_folders
from nnunet_octreenca.integration.training_job import FACTS, FINAL, LATEST
from nnunet_octreenca.planning.plans_faults import inherited
from nnunet_octreenca.planning.plans_model import check_model
from nnunet_octreenca.planning.settings import BLOCK

USUAL_FOLDS = 5  # nnU-Net's, where there is no file of splits yet
_SAME = {"labels": "classes", "regions_class_order": "regions", "channel_names": "channels"}
"""What a training and its data set must agree on: keys of dataset.json."""

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Request:
    """What is compared.

    Attributes:
        dataset: nnU-Net's name of the data set.
        configuration: 2d, 3d_fullres, ...
        folds: of the cross-validation.
        methods: that are compared.
        changes: of OctreeNCA, each a method of its own.
        seeds: of trainings; (None,) for one that nnU-Net seeds as it likes.
        budget: seconds of each training; None for each method's own schedule.
        raw, preprocessed, results: nnU-Net's folders of the data set.
    """

    dataset: str
    configuration: str
    folds: tuple[int, ...]
    methods: tuple[Method, ...]
    changes: tuple[Change, ...]
    seeds: tuple[int | None, ...]
    budget: float | None
    raw: Path
    preprocessed: Path
    results: Path


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        name: of the method in the report.
        method: which it is of.
        fold, seed, budget: as in `Request`.
        plans: content of its plans file, the name changed if they or the training are special.
        folder: of the fold, in nnU-Net's results.
    """

    name: str
    method: Method
    fold: int
    seed: int | None
    budget: float | None
    plans: JsonMapping
    folder: Path

    @property
    def model(self) -> Path:
        """The folder of all folds."""
        return self.folder.parent

    @property
    def summary(self) -> Path:
        """nnU-Net's file, the last that a validation writes."""
        return self.folder / "validation" / "summary.json"

    @property
    def state(self) -> str:
        """ "finished", "trained" (validation is missing), "half" or "missing"."""
        if (self.folder / FINAL).is_file():
            facts = (self.folder / FACTS).is_file()
            return "finished" if facts and self.summary.is_file() else "trained"
        return "half" if (self.folder / LATEST).is_file() else "missing"


def parse_budget(text: str) -> float:
    """Seconds of "90s", "60m" or "1.5h".

    Raises:
        InputError: another form, or not above 0.

    >>> parse_budget("1.5h")
    5400.0
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)([smh])", text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds < 1e8:
        raise InputError(f"--budget {text!r} must be a time such as 90s, 60m or 1.5h")
    return seconds


def make_request(
    dataset: str,
    configuration: str,
    folds: Sequence[str],
    methods: Sequence[Method],
    changes: Sequence[Change] = (),
    seeds: Sequence[int] = (),
    budget: float | None = None,
) -> Request:
    """Check what can be checked without plans.

    Raises:
        InputError: a fold or seed is none, or something is given twice.
        EnvironmentMismatchError: nnU-Net's folders are not set.
    """
    wrong = [fold for fold in folds if not (fold.isascii() and fold.isdigit())]
    if wrong:
        raise InputError(
            f"-f {wrong[0]} has no held-out cases to compare on; give folds such as 0 1 2 3 4"
        )
    if any(seed < 0 or seed >= 1 << 31 for seed in seeds):
        raise InputError(f"--seeds {' '.join(map(str, seeds))}: seeds are 0 to 2147483647")
    for flag, values in (("-f", folds), ("--seeds", seeds)):
        if len(set(values)) != len(values):
            raise InputError(f"{flag} {' '.join(map(str, values))} names one twice")
    if changes and not any(method.is_octreenca for method in methods):
        raise InputError("--ablate varies OctreeNCA; add it to --methods")
    name = dataset_name(dataset)
    raw, preprocessed, results = (folder / name for folder in nnunet_folders())
    return Request(
        name,
        configuration,
        tuple(map(int, folds)),
        tuple(methods),
        tuple(changes),
        tuple(seeds) or (None,),
        budget,
        raw,
        preprocessed,
        results,
    )


def plan_jobs(request: Request) -> list[Job]:
    """All trainings, method by method.

    Raises:
        InputError, PlansError: plans or preprocessed data are missing, or do not suit a method.
    """
    number = request.dataset[len("Dataset") :][:3].lstrip("0") or request.dataset
    hint = f"run `nnUNetv2_plan_and_preprocess -d {number}` first"
    description = read_json(request.preprocessed / "dataset.json", hint)
    _require_folds(request)
    jobs: list[Job] = []
    for method in request.methods:
        make = method.make_plans.replace("-d D", f"-d {number}")
        path = request.preprocessed / f"{method.plans}.json"
        plans = read_json(path, f"run `{make}` for {method.name} first")
        _require_configuration(plans, request, path, number, method)
        changes: list[Change | None] = [None]
        if method.is_octreenca:
            changes += request.changes
        for one in changes:
            _check(method, _changed(plans, request, one, None), request, description, path)
            own = [
                _job(method, plans, request, one, seed, fold)
                for seed, fold in product(request.seeds, request.folds)
            ]
            for job in own:
                _require_same_plans(job, request, description)
                _require_same_classes(job, request, description)
            jobs += own
    return jobs


def _require_same_plans(job: Job, request: Request, description: JsonMapping) -> None:
    """A training of other plans is neither taken for this one nor continued as it."""
    path = job.model / "plans.json"
    if job.state == "missing" or not path.is_file():
        return
    wanted = inherited(
        _planned(job.method, job.plans, request, description)["configurations"],
        request.configuration,
    )
    again = f"remove {job.model} to train {job.name} again"
    configurations = read_json(path, again).get("configurations", {})
    try:
        found = inherited(configurations, request.configuration)
    except (ValueError, TypeError) as error:
        raise PlansError(f"{path}: {error}; {again}") from error
    ours, theirs = (
        {k: v for k, v in one.items() if k != "inherits_from"} for one in (wanted, found)
    )
    differing = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    if differing:
        raise PlansError(
            f"{job.name} was trained with other plans than the data set has now: they differ in "
            f"{', '.join(differing)} ({path}); put the old plans back, or {again}"
        )


def _require_same_classes(job: Job, request: Request, description: JsonMapping) -> None:
    """Class 1 of a training must be class 1 of the data set; so must its channels."""
    path = job.model / "dataset.json"
    if job.state == "missing" or not path.is_file():
        return
    again = f"remove {job.model} to train {job.name} again"
    trained_on = read_json(path, again)
    for key, what in _SAME.items():
        ours, theirs = description.get(key), trained_on.get(key)
        if ours != theirs:
            raise InputError(
                f"{job.name} was trained with other {what} than the data set has now: {key} is "
                f"{_json(theirs)} in {path} and {_json(ours)} in "
                f"{request.preprocessed / 'dataset.json'}; put the old ones back, or {again}"
            )


def _json(value: object) -> str:
    return "missing" if value is None else json.dumps(value, ensure_ascii=False)


def _planned(
    method: Method, plans: JsonMapping, request: Request, description: JsonMapping
) -> JsonMapping:
    """Plans as the method's trainer makes them of what it is given."""
    if method.trainer not in baselines.MODULES:
        return plans
    trainer: Any = baselines.trainer_class(method.trainer)
    planned: JsonMapping = trainer.planned(plans, request.configuration, description)
    return planned


def _require_folds(request: Request) -> None:
    """nnU-Net draws cases at random for a fold beyond the splits."""
    path, there = request.preprocessed / "splits_final.json", USUAL_FOLDS
    if path.is_file():
        try:
            there = len(load_json(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error}); remove or mend it") from error
    if max(request.folds) >= there:
        raise InputError(f"-f {max(request.folds)} is none of the {there} folds, 0 to {there - 1}")


def _require_configuration(
    plans: JsonMapping, request: Request, path: Path, number: str, method: Method
) -> None:
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or request.configuration not in configurations:
        names = ", ".join(configurations) if isinstance(configurations, dict) else "none"
        raise PlansError(f"{path} has no configuration {request.configuration!r}; it has {names}")
    try:
        found = inherited(configurations, request.configuration)
    except ValueError as error:
        raise PlansError(f"{path}: {error}") from error
    if found.get("previous_stage") is not None:
        raise InputError(
            f"-c {request.configuration} is the second stage of a cascade, whose first stage would "
            f"have to be trained for each method; compare another configuration"
        )
    data = request.preprocessed / str(found.get("data_identifier"))
    if not data.is_dir() or not any(data.iterdir()):
        raise InputError(
            f"{data} holds no preprocessed cases for {method.name}; run `nnUNetv2_preprocess -d "
            f"{number} -plans_name {method.plans} -c {request.configuration}`"
        )


def _changed(
    plans: JsonMapping, request: Request, one: Change | None, seed: int | None
) -> JsonObject:
    """Plans of a training: with a change and a seed, of those that have a block of ours."""
    own: JsonObject = deepcopy(dict(plans))
    found = inherited(own["configurations"], request.configuration)
    if BLOCK in found:
        found = deepcopy(found)
        found.pop("inherits_from", None)
        own["configurations"][request.configuration] = found
        if one is not None:
            change(found, *one)
        if seed is not None:
            found[BLOCK]["seed"] = seed
    suffix = _suffix(one, request.budget, seed)
    own["plans_name"] = f"{own['plans_name']}{suffix}"
    return own


def _suffix(one: Change | None, budget: float | None, seed: int | None) -> str:
    """Of the plans' name, so that each training has a folder that nnU-Net predicts with too.

    >>> _suffix(("lambda", 0.5), 90.0, 1)
    '_lambda0.5_90s_seed1'
    """
    parts = []
    if one is not None:
        parts.append(f"{one[0]}{one[1]:g}")
    if budget is not None:
        parts.append(f"{budget:g}s")
    if seed is not None:
        parts.append(f"seed{seed}")
    return "".join(f"_{part}" for part in parts)


def _job(
    method: Method,
    plans: JsonMapping,
    request: Request,
    one: Change | None,
    seed: int | None,
    fold: int,
) -> Job:
    own = _changed(plans, request, one, seed)
    model = f"{method.trainer}__{own['plans_name']}__{request.configuration}"
    name = method.name if one is None else f"{method.name} {one[0]}={one[1]:g}"
    folder = request.results / model / f"fold_{fold}"
    return Job(name, method, fold, seed, request.budget, own, folder)


def _check(
    method: Method, plans: JsonMapping, request: Request, description: JsonMapping, path: Path
) -> None:
    """Whether a method can be trained on its plans."""
    plans = _planned(method, plans, request, description)
    if method.is_octreenca:
        check_model(
            plans,
            description,
            path,
            request.preprocessed / "dataset.json",
            configuration=request.configuration,
            custom_names=True,
        )
