"""`nnunet_octreenca predict`: images of any size, streamed from disk to disk."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from nnunet_octreenca.cli import cluster, drop_folder
from nnunet_octreenca.cli.termination import terminated
from nnunet_octreenca.errors import EnvironmentMismatchError, InputError
from nnunet_octreenca.stores.process_list import hide_secrets
from nnunet_octreenca.stores.urls import is_url

if TYPE_CHECKING:
    from nnunet_octreenca.cluster.journal import Ended
    from nnunet_octreenca.images.cases import Case
    from nnunet_octreenca.prediction.folder import Run

HELP = "segment images of any size, streamed from disk to disk"
EXAMPLE = """\
examples:
  nnunet_octreenca predict -m MODEL_FOLDER -i slide.svs -o OUT --mpp 0.48
  nnunet_octreenca predict -d 4 -tr OctreeNCATrainer -p nnUNetOctreeNCAPlans -c 3d_fullres -f 0 1 \\
      -i FOLDER -o OUT --continue --report run.json
  nnunet_octreenca predict -m MODEL_FOLDER -i operation.mp4 -o OUT --formats frames coco.json mp4
  nnunet_octreenca predict -m MODEL_FOLDER -i slide.svs -o OUT --formats ome.tif geojson --memory 4G
  nnunet_octreenca predict -m MODEL_FOLDER -i FOLDER -o OUT --quality 8
  nnunet_octreenca predict -m MODEL_FOLDER -i DROP_FOLDER -o OUT --watch --log events.jsonl
  nnunet_octreenca predict -m MODEL_FOLDER -i s3://BUCKET/slides -o s3://BUCKET/results --continue
  nnunet_octreenca predict -m MODEL_FOLDER -i ARCHIVE -o OUT --dask tcp://HOST:8786 --continue
  nnunet_octreenca predict -m MODEL_FOLDER -i s3://BUCKET/slides -o s3://BUCKET/results \\
      --dask tcp://HOST:8786

formats: ome.tif ome.zarr geojson dcm png plain.png (slides, pictures), frames coco.json mp4 ome.tif
  (videos), nii.gz nii nrrd mha dcm ome.tif (volumes). Left out: a pyramid for slides, a PNG for
  pictures, frames and an overlay for videos, the image's own format for volumes. A small picture
  overlays/CASE_overlay.png to look at is always written.

exit codes: 0 all cases done, 1 an error or no case done, 2 wrong arguments, 3 some cases failed
  (the summary and the report say which and why), 130 interrupted, 143 terminated; in any case no
  result is half written. --watch: 0 when it was stopped by SIGTERM or Ctrl-C
"""
SOME_FAILED = 3
_NO_ARGUMENTS = ("run", "command")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags, nnU-Net's names where nnU-Net has them."""
    where = parser.add_argument_group("model")
    where.add_argument(
        "-m",
        metavar="MODEL_FOLDER",
        help="TRAINER__PLANS__CONFIGURATION folder, or zoo:NAME (see `nnunet_octreenca zoo`)",
    )
    where.add_argument("-d", metavar="DATASET", help="instead of -m: data set number or name")
    where.add_argument("-tr", default="OctreeNCATrainer", metavar="TRAINER", help="with -d")
    where.add_argument("-p", default="nnUNetOctreeNCAPlans", metavar="PLANS", help="with -d")
    where.add_argument("-c", metavar="CONFIGURATION", help="with -d: 2d, 3d_fullres, ...")
    where.add_argument(
        "-f", nargs="+", metavar="FOLD", help="folds to ensemble (default: all trained)"
    )
    where.add_argument(
        "-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint (default: final)"
    )
    files = parser.add_argument_group("images and results")
    files.add_argument(
        "-i", required=True, metavar="IN", help="image file, or folder of cases; or the URL of one"
    )
    files.add_argument(
        "-o", required=True, metavar="OUT", help="folder for the results, or its URL"
    )
    files.add_argument("--formats", nargs="+", metavar="FORMAT", help="see below")
    files.add_argument(
        "--mpp",
        type=float,
        help="microns per pixel to read slides at: the matching level, or a finer one averaged",
    )
    files.add_argument(
        "--series",
        metavar="UID",
        help="SeriesInstanceUID to read, of folders that hold several DICOM series",
    )
    exists = files.add_mutually_exclusive_group()
    exists.add_argument("--overwrite", action="store_true", help="replace existing results")
    exists.add_argument(
        "--continue",
        dest="resume",
        action="store_true",
        help="leave out cases finished with the same model, options and image; redo the others, "
        "and leave those that another run is at",
    )
    files.add_argument(
        "--report",
        metavar="FILE",
        help="write a JSON report of the run, with which `verify` repeats it; with --dask also a "
        "table of all cases beside it, FILE with the ending .parquet",
    )
    files.add_argument(
        "--scratch",
        metavar="FOLDER",
        help="with URLs: folder for what must be fetched, emptied afterwards (default: the "
        "system's for temporary files; with --dask each worker's, see `dask worker "
        "--local-directory`)",
    )
    files.add_argument(
        "--scratch-limit",
        metavar="SIZE",
        help="bytes fetched into it at a time, e.g. 100G, with --dask by each worker process "
        "(default: what is free)",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--disable_tta",
        action="store_true",
        help="disable mirroring (test-time augmentation): 4 to 8 x faster",
    )
    how.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="seeds of the fire draws; logits are averaged over them (default: the plans'); they "
        "change nothing where all cells of the model fire",
    )
    how.add_argument(
        "--quality",
        type=int,
        metavar="N",
        help="say how sure the model is: compare N seeds (4 or more) of each case; maps and scores "
        "in OUT/quality, the most doubtful cases first in OUT/quality.csv; the labels are those "
        "of the mean of the seeds, or the usual ones where all cells of the model fire",
    )
    how.add_argument(
        "--save_probabilities",
        action="store_true",
        help="with --quality, write probabilities of all classes (.npz as nnU-Net's), with the "
        "temperatures of `calibrate` if the model has them",
    )
    how.add_argument(
        "--tissue",
        action="store_true",
        help="skip bands of a slide without tissue; their label is 0 (changes the result)",
    )
    how.add_argument(
        "--memory",
        metavar="SIZE",
        help="memory limit of the process, e.g. 4G (default: what is free)",
    )
    how.add_argument("--precision", choices=("float32", "float16"), default="float32",
                     help="of the states; float16 halves them and changes some labels")  # fmt: skip
    how.add_argument("--band", type=int, metavar="N", help="rows or planes read at a time")
    how.add_argument("-device", help="cuda, cpu or mps (default: cuda if there is one, else cpu)")
    how.add_argument("--threads", type=int, metavar="N", help="processor threads")
    how.add_argument(
        "--isolate",
        action="store_true",
        help="segment in a child process, so that a library's crash costs one case only",
    )
    how.add_argument("--quiet", action="store_true", help="no progress bar")
    drop_folder.add_arguments(parser)
    cluster.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predict all cases; returns the exit code.

    Raises:
        OctreeNCAError: no case could be started.
    """
    hide_secrets(sys.argv)
    cluster.checked(arguments)
    if arguments.watch:
        return drop_folder.serve(arguments, partial(_prepared, arguments))
    drop_folder.refuse_flags(arguments)
    with terminated():
        began = perf_counter()
        run = _prepared(arguments)
        try:
            return _run(run, arguments, began)
        finally:
            run.close()


def _run(run: "Run", arguments: argparse.Namespace, began: float) -> int:
    from nnunet_octreenca.prediction.options import always_fires
    from nnunet_octreenca.prediction.report import summary, write_report

    model = run.model
    cases = run.cases(arguments.i, print)
    print(
        f"{len(cases)} case{'s' * (len(cases) != 1)}, {model.trainer} {model.configuration}, "
        f"{_counted(len(model.networks), 'fold')}, "
        f"{_counted(len(run.options.seeds_of(model)), 'seed')}, engine "
        f"{model.networks[0].engine().name}"
    )
    if arguments.seeds is not None and run.options.quality is None and always_fires(model):
        print("note: every cell of this model fires in every step; its labels depend on no seed")
    given = {key: value for key, value in vars(arguments).items() if key not in _NO_ARGUMENTS}
    report = Path(arguments.report) if arguments.report else None
    if report is not None:  # now, rather than when all is computed, it shows that it can be written
        write_report(report, run, given)
    records: list[Ended] = []
    try:
        if arguments.dask is not None:
            cluster.predict_on_cluster(run, cases, arguments, records)
        else:
            _predict_all(run, cases, arguments)
    finally:
        table = run.write_quality()
        run.seconds = perf_counter() - began
        if report is not None and arguments.dask is not None:
            cluster.write_reports(report, run, given, records)
        elif report is not None:
            write_report(report, run, given)
    if table is not None:
        print(f"{table}: the most doubtful cases first")
    for line in summary(run):
        print(line, file=sys.stderr if run.failed else sys.stdout)
    if not run.failed:
        return 0
    return SOME_FAILED if run.done or run.left_out else 1


def _predict_all(run: "Run", cases: "list[Case]", arguments: argparse.Namespace) -> None:
    from nnunet_octreenca.cli.isolation import isolated

    if not arguments.isolate:
        for case in run.rounds(cases):
            _predict(run, case, arguments, run.segment)
        return
    with isolated(run, partial(_prepared, arguments)) as segment:
        for case in run.rounds(cases):
            _predict(run, case, arguments, segment)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _prepared(arguments: argparse.Namespace) -> "Run":
    import torch

    from nnunet_octreenca.inference.memory_plan import parse_memory
    from nnunet_octreenca.integration.model import load_model, model_folder
    from nnunet_octreenca.prediction.earlier import Destination
    from nnunet_octreenca.prediction.folder import Run
    from nnunet_octreenca.prediction.options import Options
    from nnunet_octreenca.prediction.remote import remote_of, results_folder
    from nnunet_octreenca.resources import checked_threads, processors

    memory = None if arguments.memory is None else parse_memory(arguments.memory)
    limit = None if arguments.scratch_limit is None else parse_memory(arguments.scratch_limit)
    if is_url(arguments.report):
        raise InputError("--report must be a file on this machine; copy it to the store afterwards")
    if arguments.band is not None and arguments.band < 1:
        raise InputError(f"--band {arguments.band} must be at least 1")
    if arguments.mpp is not None and not arguments.mpp > 0:
        raise InputError(f"--mpp {arguments.mpp} must be above 0")
    if arguments.threads is not None:
        threads = checked_threads(arguments.threads)
        if threads < arguments.threads:
            print(f"{threads} threads: this machine has no more processors")
        torch.set_num_threads(threads)
    elif torch.get_num_threads() > processors():  # PyTorch knows no quota
        torch.set_num_threads(processors())
    if (arguments.m is None) == (arguments.d is None):
        raise InputError("give the model's folder with -m, or its data set with -d and -c")
    if arguments.d is not None and arguments.c is None:
        raise InputError("-d needs the configuration, e.g. -c 3d_fullres")
    folder = arguments.m or model_folder(arguments.d, arguments.tr, arguments.p, arguments.c)
    model = load_model(
        folder,
        folds=arguments.f,
        checkpoint=arguments.chk,
        # On a cluster the client only describes the model.
        device="cpu" if arguments.dask else usable_device(arguments.device),
    )
    formats = tuple(arguments.formats) if arguments.formats else None
    remote = remote_of(arguments.i, arguments.o, scratch=arguments.scratch, scratch_limit=limit)
    folder = results_folder(arguments.o, remote)
    return Run(
        model,
        Destination(folder, formats, arguments.overwrite, arguments.resume),
        Options(
            mirror=not arguments.disable_tta,
            seeds=tuple(arguments.seeds) if arguments.seeds else None,
            mpp=arguments.mpp,
            series=arguments.series,
            tissue=arguments.tissue,
            float16=arguments.precision == "float16",
            memory=memory,
            band_rows=arguments.band,
            quality=arguments.quality,
            probabilities=arguments.save_probabilities,
        ),
        hash_inputs=bool(arguments.report),
        remote=remote,
    )


def usable_device(name: str | None) -> Any:
    """A device by name, the fastest there is if None.

    Raises:
        EnvironmentMismatchError: it cannot be used.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EnvironmentMismatchError(
            f"-device {name} cannot be used ({str(error).splitlines()[0]}); `nnunet_octreenca "
            f"doctor` says what is there"
        ) from error
    return device


def _predict(
    run: "Run",
    case: "Case",
    arguments: argparse.Namespace,
    segment: Callable[..., object],
) -> None:
    """One case, which may fail with anything: the others are not its business."""
    from nnunet_octreenca.cli.progress_bar import progress_bar

    before = len(run.failed)
    try:
        with progress_bar(case.name, arguments.quiet) as (tell, progress):
            segment(case, tell=tell, progress=progress)
    except Exception:
        if len(run.failed) == before:  # the terminal's, not the case's
            raise
        failure = run.failed[-1]
        if arguments.debug:
            print(failure.traceback, file=sys.stderr)
        print(f"ERROR: {case.name}: {failure.sentence}", file=sys.stderr)
