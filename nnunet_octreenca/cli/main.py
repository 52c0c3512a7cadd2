"""`nnunet_octreenca COMMAND ...`: parse, run, and turn our errors into one sentence."""

import argparse
import io
import sys
from collections.abc import Sequence

from nnunet_octreenca import __version__
from nnunet_octreenca.cli import (
    calibrate,
    check,
    compare,
    convert,
    demo,
    doctor,
    explain,
    export,
    extend_plans,
    install,
    predict,
    register,
    verify,
    zoo,
)
from nnunet_octreenca.errors import OctreeNCAError
from nnunet_octreenca.integration.error_reporting import debugging
from nnunet_octreenca.stores.urls import redact

COMMANDS = (
    register,
    convert,
    extend_plans,
    predict,
    explain,
    calibrate,
    verify,
    compare,
    export,
    check,
    install,
    zoo,
    demo,
    doctor,
)

EPILOG = """\
typical use, with nnU-Net's own commands:
  nnunet_octreenca register                 once per environment
  nnUNetv2_plan_and_preprocess -d 4 -c 3d_fullres
  nnunet_octreenca extend_plans -d 4
  nnUNetv2_train 4 3d_fullres 0 -tr OctreeNCATrainer -p nnUNetOctreeNCAPlans
  nnUNetv2_predict -d 4 -c 3d_fullres -f 0 -tr OctreeNCATrainer -p nnUNetOctreeNCAPlans -i IN -o OUT
slides, videos and volumes of any size:
  nnunet_octreenca predict -m MODEL_FOLDER -i slide.svs -o OUT
models that come with the package:
  nnunet_octreenca zoo

exit codes: 0 success, 1 error (explained in one sentence), 2 wrong arguments, 3 some cases failed
(predict), 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="nnunet_octreenca",
        description="OctreeNCA for nnU-Net v2: segment whole images in one pass.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nnunet_octreenca {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        name = command.__name__.rsplit(".", 1)[-1]
        subparser = commands.add_parser(
            name,
            help=command.HELP,
            description=command.HELP,
            epilog=command.EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        subparser.add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    _print_any_name()
    arguments = build_parser().parse_args(argv)
    debug = arguments.debug or debugging()
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `nnunet_octreenca doctor | head`
        sys.stderr.close()
        return 1
    except (OctreeNCAError, OSError) as error:
        if debug:
            raise
        print(f"ERROR: {redact(str(error))}", file=sys.stderr)
        return 1


def _print_any_name() -> None:
    """Show "?" for a character that the console lacks, instead of failing on a file's name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
