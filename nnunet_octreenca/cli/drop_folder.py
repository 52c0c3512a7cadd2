"""`nnunet_octreenca predict --watch`: its flags, and how signals end it."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.stores.urls import local_paths

if TYPE_CHECKING:
    from nnunet_octreenca.prediction.folder import Run

SETTLE, CLOSE_AFTER = 10.0, 60.0
"""Seconds: defaults of --settle and --close-after."""
_LONGEST_POLL = 5.0  # seconds between two looks at the folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the service."""
    service = parser.add_argument_group("service")
    service.add_argument(
        "--watch",
        action="store_true",
        help="keep running: segment what is dropped into the folder -i as soon as it is complete; "
        "reasons for failures go to OUT/failed, the state to OUT/health.json",
    )
    service.add_argument(
        "--settle",
        type=float,
        metavar="SECONDS",
        help=f"with --watch: a file is complete when it has not changed for so long (default: "
        f"{SETTLE:g})",
    )
    service.add_argument(
        "--close-after",
        type=float,
        metavar="SECONDS",
        help=f"with --watch: a folder, such as a DICOM series, is complete when nothing was added "
        f"for so long; a case waits no longer for its other channels (default: {CLOSE_AFTER:g})",
    )
    service.add_argument(
        "--log",
        metavar="FILE",
        help="with --watch: append a line of JSON for each event (default: standard output)",
    )


def serve(arguments: argparse.Namespace, prepare: "Callable[[], Run]") -> int:
    """Run the service until SIGTERM or Ctrl-C; returns the exit code.

    Args:
        arguments: of the command.
        prepare: makes the run; picklable.

    Raises:
        OctreeNCAError: it cannot begin.
    """
    from nnunet_octreenca.cli.isolation import isolated
    from nnunet_octreenca.prediction.drop_folder import DropFolder
    from nnunet_octreenca.prediction.drop_service import DropService
    from nnunet_octreenca.prediction.service_files import EventLog

    for flag, given in (("--overwrite", arguments.overwrite), ("--report", arguments.report)):
        if given:
            raise InputError(
                f"{flag} is for runs that end; --watch leaves finished cases, and keeps a record "
                f"of each in OUT/.octreenca"
            )
    if arguments.dask is not None:
        raise InputError("--watch segments in this process; give it without --dask")
    places = local_paths(
        (arguments.i, arguments.o),
        "--watch looks at folders",
        "mount the store, or predict its cases with --continue every now and then",
    )
    arguments.i, arguments.o = map(str, places)
    arguments.resume = True
    settle = SETTLE if arguments.settle is None else arguments.settle
    close_after = CLOSE_AFTER if arguments.close_after is None else arguments.close_after
    log = EventLog(None if arguments.log is None else Path(arguments.log))
    with _stopped_by_signals() as stop, ExitStack() as stack:
        with redirect_stdout(sys.stderr):  # the other one is for the log
            run = prepare()
        run.tell_once = lambda line: log("note", text=line)
        model = run.model
        folder = DropFolder(
            arguments.i,
            channels=model.channels,
            volumes=model.preprocessing.dimension == 3,
            output=arguments.o,
            settle=settle,
            close_after=close_after,
        )
        segment = stack.enter_context(isolated(run, prepare)) if arguments.isolate else None
        poll = min(_LONGEST_POLL, settle / 4)
        DropService(run, folder, log, stop=stop, segment=segment, poll=poll).serve()
    return 0


def refuse_flags(arguments: argparse.Namespace) -> None:
    """Refuse the service's flags where there is no service.

    Raises:
        InputError: one was given.
    """
    for flag in ("settle", "close_after", "log"):
        if getattr(arguments, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')} needs --watch")


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or Ctrl-C sets; the second one ends the process at once.

    What is half written is removed in either case.
    """
    stop = threading.Event()

    def end(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        before = [signal.signal(number, end) for number in numbers]
    except ValueError:  # not the main thread
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
