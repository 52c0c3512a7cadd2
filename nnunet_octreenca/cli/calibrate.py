"""`nnunet_octreenca calibrate`: which score predicts a bad result, and temperatures."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_octreenca.errors import InputError

if TYPE_CHECKING:
    from nnunet_octreenca.cli.calibrate_run import Measurements
    from nnunet_octreenca.integration.model import Model
    from nnunet_octreenca.integration.validation_cases import ValidationCase

HELP = "learn from validation cases which score predicts a bad result, and temperatures"
EXAMPLE = """\
examples:
  nnunet_octreenca calibrate -d 4 -c 3d_fullres -f 0 1 2 3 4
  nnunet_octreenca calibrate -m MODEL_FOLDER --limit 0.7 --quality 16

The networks of the folds segment their own validation cases (nnUNet_raw, splits_final.json) with
`--quality`. Writes calibration.json into the model's folder, which `predict --quality` reads: it
then warns of cases to look at, and --save_probabilities divides logits by the temperatures.
calibration.html is the report, calibration.csv holds the cases.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags, nnU-Net's names where nnU-Net has them."""
    parser.add_argument("-m", metavar="MODEL_FOLDER", help="TRAINER__PLANS__CONFIGURATION folder")
    parser.add_argument("-d", metavar="DATASET", help="instead of -m: data set number or name")
    parser.add_argument("-tr", default="OctreeNCATrainer", metavar="TRAINER", help="with -d")
    parser.add_argument("-p", default="nnUNetOctreeNCAPlans", metavar="PLANS", help="with -d")
    parser.add_argument("-c", metavar="CONFIGURATION", help="with -d: 2d, 3d_fullres, ...")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds (default: all trained)")
    parser.add_argument(
        "-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint (default: final)"
    )
    parser.add_argument("-o", metavar="FOLDER", help="of the report (default: the model's folder)")
    parser.add_argument(
        "--limit", type=float, default=0.8, help="a Dice below it is a bad result (default: 0.8)"
    )
    parser.add_argument(
        "--quality", type=int, default=8, metavar="N", help="seeds to compare (default: 8)"
    )
    parser.add_argument("--disable_tta", action="store_true", help="disable mirroring")
    parser.add_argument("-device", help="cuda, cpu or mps (default: the fastest there is)")
    parser.add_argument(
        "--memory", metavar="SIZE", help="memory limit of the process (default: what is free)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a calibration")


def run(arguments: argparse.Namespace) -> int:
    """Calibrate; prints what was found and where the report is.

    Raises:
        OctreeNCAError: a case is missing, there are too few, or nothing can be written.
    """
    from nnunet_octreenca.calibration_record import FILE, write_calibration
    from nnunet_octreenca.cli.calibrate_run import Measurements, calibration_of, require_new
    from nnunet_octreenca.comparison.calibration_report import (
        sentences_of,
        warnings_of,
        write_calibration_report,
    )
    from nnunet_octreenca.inference.memory_plan import parse_memory
    from nnunet_octreenca.prediction.calibrated import model_files
    from nnunet_octreenca.prediction.case import head_names
    from nnunet_octreenca.prediction.options import Options

    if not 0 < arguments.limit < 1:
        raise InputError(f"--limit {arguments.limit:g} must be between 0 and 1")
    options = Options(
        mirror=not arguments.disable_tta,
        memory=None if arguments.memory is None else parse_memory(arguments.memory),
        quality=arguments.quality,
        probabilities=True,
    )
    models = _models(arguments)
    folder = models[0][0].folder
    require_new(folder / FILE, arguments.overwrite)
    total = sum(len(cases) for _, cases in models)
    measurements = Measurements.of(models[0][0], total)
    done = 0
    for model, cases in models:
        for case in cases:
            done += 1
            measurements.measure(model, case, options)
            print(f"[{done}/{total}] fold {model.folds[0]}, {case.name}{_last(measurements, case)}")
    ranking = measurements.rank(arguments.limit)
    files: dict[str, str] = {}
    for model, _ in models:
        files |= model_files(model)
    calibration, voxels = calibration_of(
        measurements,
        ranking,
        files=files,
        folds=[model.folds[0] for model, _ in models],
        options=options,
        mirror=bool(options.mirror_axes_of(models[0][0])),
    )
    written = write_calibration_report(
        folder if arguments.o is None else Path(arguments.o),
        measurements.cases,
        ranking,
        voxels,
        calibration.temperatures,
        head_names(models[0][0]),
        title=f"Calibration of {folder.name}",
        command=shlex.join(["nnunet_octreenca", *sys.argv[1:]]),
    )
    write_calibration(folder, calibration)  # last: a run that ends before it changes nothing
    for sentence in (*warnings_of(ranking), *sentences_of(ranking)):
        print(sentence)
    print(f"{folder / FILE} is what `predict --quality` reads; the report is {written[0]}")
    return 0


def _models(arguments: argparse.Namespace) -> "list[tuple[Model, list[ValidationCase]]]":
    """The model of every fold with its validation cases, all of whose files are there."""
    from nnunet_octreenca.cli.predict import usable_device
    from nnunet_octreenca.integration.model import load_model, model_folder
    from nnunet_octreenca.integration.validation_cases import validation_cases
    from nnunet_octreenca.integration.zoo import PREFIX, model_place

    if (arguments.m is None) == (arguments.d is None):
        raise InputError("give the model's folder with -m, or its data set with -d and -c")
    if arguments.d is not None and arguments.c is None:
        raise InputError("-d needs the configuration, e.g. -c 3d_fullres")
    folder = arguments.m or model_folder(arguments.d, arguments.tr, arguments.p, arguments.c)
    if str(folder).startswith(PREFIX):  # what is learned is written into the folder
        raise InputError(
            f"{folder} belongs to the package and stays as it is; copy {model_place(folder)} and "
            f"calibrate the copy"
        )
    device = usable_device(arguments.device)
    given = {"checkpoint": arguments.chk, "device": device}
    folds = load_model(folder, folds=arguments.f, **given).folds
    models = [load_model(folder, folds=[fold], **given) for fold in folds]
    return [(model, validation_cases(model)) for model in models]


def _last(measurements: "Measurements", case: "ValidationCase") -> str:
    """What was measured of the case just done."""
    last = measurements.cases[-1] if measurements.cases else None
    if last is None or last.name != case.name:
        return ": no class in truth and result, left out"
    shown = "not measured" if last.resilience is None else f"{last.resilience:.3f}"
    return f": Dice {last.dice:.3f}, nqm {last.nqm:.4f}, resilience {shown}"
