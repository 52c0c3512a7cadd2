"""`nnunet_octreenca compare`: methods trained by it, or finished predictions, in one report."""

import argparse
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nnunet_octreenca.cli import compare_trained
from nnunet_octreenca.comparison.metrics import METRICS
from nnunet_octreenca.comparison.scores import DEFAULT_METRICS
from nnunet_octreenca.errors import InputError, OutputError

HELP = "train and compare methods, or compare finished predictions: metrics, statistics, one report"
EXAMPLE = """\
examples:
  nnunet_octreenca compare -d 4 -c 3d_fullres -f 0 --methods OctreeNCA nnU-Net M3D-NCA TinyUNet \\
      --budget 60m -o REPORT
  nnunet_octreenca compare -d 4 -c 3d_fullres --methods OctreeNCA -o REPORT \\
      --ablate steps=5,10,20 levels=2,3,5 --seeds 0 1 2 --budget 30m
  nnunet_octreenca compare -d 31 -c 2d --methods OctreeNCA --predictions reader=MASKS -o REPORT
  nnunet_octreenca compare --truth labelsTs --predictions OctreeNCA=OUT1 nnU-Net=OUT2 -o REPORT
  nnunet_octreenca compare --truth labelsTs --predictions A=OUT1 B=OUT2 -o REPORT \\
      --labels dataset.json --images imagesTs --tolerance 2 --viewer
  nnunet_octreenca compare --truth masks --predictions A=OUT1 -o REPORT --metrics dice cldice

Volumes (NIfTI, NRRD, MetaImage), pictures (PNG, BMP, TIFF) and, with --video, clips. A method's
files have the names of the truth's. REPORT holds report.html, which opens without a network, and
the tables as JSON, CSV, Markdown and LaTeX. All files are checked before anything is measured.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--truth", metavar="FOLDER", help="true label maps")
    parser.add_argument(
        "--predictions",
        nargs="+",
        metavar="NAME=FOLDER",
        help="each method's name, for the report, and its folder of label maps; beside --methods "
        "what is not trained, such as a second reader",
    )
    parser.add_argument("-o", required=True, metavar="REPORT_FOLDER", help="folder of the report")
    parser.add_argument(
        "--labels",
        metavar="JSON",
        help="dataset.json: names of classes, regions, label to ignore (default: each label of "
        "the truth is a class)",
    )
    parser.add_argument(
        "--images", metavar="FOLDER", help="images, to show the best, median and worst case"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=list(DEFAULT_METRICS),
        metavar="METRIC",
        help=f"of {', '.join(METRICS)} (default: {' '.join(DEFAULT_METRICS)}; the first orders "
        "the cases)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1.0,
        metavar="MM",
        help="of the normalised surface distance, in mm of volumes and pixels else (default: 1)",
    )
    parser.add_argument(
        "--group-by",
        metavar="REGEX",
        help="its first group, or what it matches, in a case's name is the patient; cases of a "
        "patient are drawn and tested together (default: all cases are independent)",
    )
    parser.add_argument(
        "--video",
        action="store_true",
        help="the first axis of a case is time; folders of frames are cases too",
    )
    parser.add_argument(
        "--viewer",
        action="store_true",
        help="with --images, put the shown volumes (2.3 MB and more) or pictures (0.4 MB and more) "
        "and a viewer into the page",
    )
    parser.add_argument(
        "--records", metavar="JSON", help="seconds, memory, parameters and curves of the methods"
    )
    parser.add_argument("--title", default="Comparison of segmentations", help="of the report")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the bootstrap (default: 0)"
    )
    compare_trained.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare; prints the summary and where the report is.

    Raises:
        OctreeNCAError: something cannot be compared, or the report not be written.
    """
    from nnunet_octreenca.comparison.inputs import checked_pattern, find_inputs
    from nnunet_octreenca.comparison.picture_viewer import picture_viewer
    from nnunet_octreenca.comparison.records import read_records
    from nnunet_octreenca.comparison.report import Provenance, write_report
    from nnunet_octreenca.comparison.scores import checked_metrics, checked_tolerance, score
    from nnunet_octreenca.comparison.summary import summarise
    from nnunet_octreenca.comparison.tables import GIVEN
    from nnunet_octreenca.comparison.volume_viewer import volume_viewer

    folder = Path(arguments.o)
    given = None if _trains(arguments) else _given(arguments)
    _require_folder(folder, [] if given is None else [given.truth, *given.predictions.values()])
    checked_metrics(arguments.metrics, arguments.video)
    if arguments.seed < 0:
        raise InputError(f"--seed is {arguments.seed}, but must be 0 or more")
    checked_tolerance(arguments.tolerance)
    checked_pattern(arguments.group_by)
    material = given or compare_trained.run(
        arguments, parse_predictions(arguments.predictions or [])
    )
    if material is None:
        return 0
    records = read_records(material.records, material.predictions) if material.records else {}
    began, start = datetime.now(timezone.utc), time.monotonic()
    inputs = find_inputs(
        material.truth,
        material.predictions,
        labels=material.labels,
        images=material.images,
        group_by=arguments.group_by,
        video=arguments.video,
        track=_track,
    )
    if arguments.viewer and inputs.video:
        raise InputError("--viewer shows volumes and pictures, and a case is a video; leave it out")
    viewer = volume_viewer if inputs.kind == "3-D volume" else picture_viewer
    scores = score(inputs, metrics=arguments.metrics, tolerance=arguments.tolerance, track=_track)
    summary = summarise(scores, inputs, seed=arguments.seed)
    summary = replace(summary, caveats=(*summary.caveats, *material.caveats))
    provenance = Provenance(
        command=shlex.join(["nnunet_octreenca", *_words()]),
        began=began.isoformat(timespec="seconds"),
        seconds=time.monotonic() - start,
        arguments={k: v for k, v in vars(arguments).items() if k not in ("run", "debug")},
    )
    files = write_report(
        folder,
        inputs,
        scores,
        summary,
        provenance,
        records=records,
        records_note=material.note or GIVEN,
        more_tables=material.tables,
        title=arguments.title,
        viewer=viewer if arguments.viewer else None,
    )
    _print(summary, inputs)
    print(f"{files[0]}: open it in a browser; the tables are beside it")
    return 0


def _trains(arguments: argparse.Namespace) -> bool:
    """Whether methods are trained; refuses flags of both ways at once.

    Raises:
        InputError: something is missing, or contradicts something else.
    """
    given = {
        "--truth": arguments.truth,
        "--labels": arguments.labels,
        "--images": arguments.images,
        "--records": arguments.records,
        "--video": arguments.video,
    }
    trained = {"-d": arguments.d, "-c": arguments.c, "--methods": arguments.methods}
    if not any(value is not None for value in trained.values()):
        both = {"--truth": arguments.truth, "--predictions": arguments.predictions}
        missing = [flag for flag, value in both.items() if value is None]
        if missing:
            raise InputError(
                f"{' and '.join(missing)} must be given to compare predictions; -d, -c and "
                f"--methods to train what is compared"
            )
        return False
    for flag, value in given.items():
        if value:
            raise InputError(
                f"{flag} is for finished predictions, and {_first(trained)} for methods that are "
                f"trained; give one of them"
            )
    missing = [flag for flag, value in trained.items() if value is None]
    if missing:
        raise InputError(f"{' and '.join(missing)} must be given to train what is compared")
    return True


def _given(arguments: argparse.Namespace) -> compare_trained.Material:
    """Finished predictions, as the flags name them."""
    predictions = parse_predictions(arguments.predictions)
    if arguments.viewer and arguments.images is None:
        raise InputError("--viewer shows images; give their folder with --images")
    return compare_trained.Material(
        Path(arguments.truth),
        predictions,
        _path(arguments.labels),
        _path(arguments.images),
        _path(arguments.records),
    )


def _first(flags: Mapping[str, Any]) -> str:
    return next(flag for flag, value in flags.items() if value is not None)


def parse_predictions(words: Sequence[str]) -> dict[str, Path]:
    """Method to folder of NAME=FOLDER words.

    Raises:
        InputError: one has another form, or two have the same name.

    >>> parse_predictions(["A=out/a", "B=x=y"])["B"].name
    'x=y'
    """
    found: dict[str, Path] = {}
    for word in words:
        name, sign, folder = word.partition("=")
        if not sign or not name.strip() or not folder:
            raise InputError(f"--predictions {word} must be NAME=FOLDER")
        if name in found:
            raise InputError(
                f"--predictions names {name} twice ({found[name]} and {folder}); give each method "
                f"a name of its own"
            )
        found[name] = Path(folder)
    return found


def _require_folder(folder: Path, taken: Sequence[Path]) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder for the report")
    if any(folder.resolve() == other.resolve() for other in taken):
        raise OutputError(f"{folder} holds label maps; give another folder for the report")


def _words() -> list[str]:
    return sys.argv[1:]


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _track(items: Iterable[Any], description: str) -> Iterator[Any]:
    """A progress bar on a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(list(items), description, console=Console(stderr=True), transient=True)


def _print(summary: Any, inputs: Any) -> None:
    """The summary table, and the caveat about few cases."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nnunet_octreenca.comparison.tables import summary_table

    content = summary_table(summary, inputs)
    table = Table()
    for place, name in enumerate(content.head):
        table.add_column(Text(name), justify="left" if place < content.texts else "right")
    first = content.rows[0][0].text  # of several classes their mean; the report has all
    for row in content.rows:
        if row[0].text == first:
            table.add_row(*(Text(cell.text) for cell in row))
    console = Console()
    console.print(table)
    console.print(Text(content.note))
    for caveat in summary.caveats:
        if caveat.startswith("Only "):
            console.print(Text(caveat))
