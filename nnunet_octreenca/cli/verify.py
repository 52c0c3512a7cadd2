"""`nnunet_octreenca verify`: repeats a prediction from its report and compares the labels."""

import argparse
from pathlib import Path

HELP = "repeat a prediction from its report, and say whether the labels are the same"
EXAMPLE = """\
examples:
  nnunet_octreenca predict -m MODEL_FOLDER -i IN -o OUT --report run.json
  nnunet_octreenca verify run.json
  nnunet_octreenca verify run.json -i ARCHIVE/IN -m ARCHIVE/MODEL_FOLDER -o ARCHIVE/OUT

Every case of the report is segmented again with the same options, seeds and bands; nothing is
written. SHA-256 hashes tell whether the images, the model and the results are those of the report;
where labels differ, the voxels are counted. Programs of other versions are named; they count as a
difference only if they change the labels.

exit codes: 0 all labels, images, models and results are the same, 1 something differs, 2 wrong
  arguments, 130 interrupted
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("report", metavar="REPORT", help="JSON file of `predict --report`")
    parser.add_argument(
        "-i", metavar="IN", help="image file or folder of cases (default: where they were)"
    )
    parser.add_argument(
        "-m", metavar="MODEL_FOLDER", help="the model, or zoo:NAME (default: where it was)"
    )
    parser.add_argument(
        "-o", metavar="OUT", help="folder of the results (default: where they were)"
    )
    parser.add_argument("-device", help="cuda, cpu or mps (default: as in the report)")


def run(arguments: argparse.Namespace) -> int:
    """Verify; returns the exit code.

    Raises:
        OctreeNCAError: nothing could be begun.
    """
    from nnunet_octreenca.cli.predict import usable_device
    from nnunet_octreenca.prediction.verify import read_report, verify

    report = read_report(arguments.report)
    verdicts = verify(
        report,
        source=_path(arguments.i),
        model_folder=_path(arguments.m),
        results=_path(arguments.o),
        device=usable_device(arguments.device or report["device_type"]),
    )
    differing = sum(bool(verdict.differs) for verdict in verdicts)
    print(f"{len(verdicts) - differing} of {len(verdicts)} cases are the same")
    for what, names in (
        ("failed then", [failure["case"] for failure in report["failed"]]),
        ("were finished before that run", report["left_out"]),
    ):
        if names:
            print(f"not repeated, because they {what}: {', '.join(names)}")
    return 1 if differing else 0


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
