"""`nnunet_octreenca predict --dask`: the cases of a run on many machines."""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.stores.urls import (
    absolute,
    creates_once,
    has_secrets,
    local_path,
    protocols,
    shown,
)

if TYPE_CHECKING:
    from nnunet_octreenca.cluster.journal import Ended
    from nnunet_octreenca.images.cases import Case
    from nnunet_octreenca.prediction.folder import Run

_LINE_EVERY = 30.0  # seconds between two lines where there is no bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a run on a cluster."""
    where = parser.add_argument_group("cluster (docs/how-to/clusters.md)")
    where.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="segment on dask workers, one task a case: tcp://HOST:8786, a scheduler file, "
        "local:4 for four processes here, or slurm:32 for 32 jobs; workers read and write URLs "
        "themselves, with their own credentials",
    )
    where.add_argument(
        "--dask-config",
        metavar="FILE",
        help="with slurm:32: YAML with the arguments of dask_jobqueue.SLURMCluster",
    )
    where.add_argument(
        "--split-above",
        metavar="PIXELS",
        help="with --dask and -o on a shared disk: several workers share an image of more "
        "pixels, e.g. 1G; the labels are the same bits (default: one worker an image)",
    )
    where.add_argument(
        "--attach",
        action="store_true",
        help="with --dask: come back to a run whose client was closed or killed",
    )


def checked(arguments: argparse.Namespace) -> None:
    """Refuse flags that do not go together, before anything is loaded.

    Raises:
        InputError: they do not.
        EnvironmentMismatchError: the extra [cluster] is not installed.
    """
    if arguments.dask is None:
        for flag in ("attach", "dask_config", "split_above"):
            if getattr(arguments, flag):
                raise InputError(f"--{flag.replace('_', '-')} needs --dask ADDRESS")
        return
    from nnunet_octreenca.cluster.address import checked_address, starts_workers

    config = Path(arguments.dask_config) if arguments.dask_config else None
    checked_address(arguments.dask, config)
    if arguments.split_above is not None:
        arguments.split_above = parse_count(arguments.split_above)
    for place in (arguments.i, arguments.o):
        require_shared(place)
    if local_path(arguments.i) is None:
        arguments.i = absolute(arguments.i)
    if local_path(arguments.o) is None:
        if not creates_once(arguments.o):
            raise InputError(
                f"two workers of --dask could write the same case to {shown(arguments.o)}: only "
                f"s3://, gs:// and abfs:// say which of them was first; give one of these, or a "
                f"folder on a disk that all workers share, with -o"
            )
        if arguments.split_above is not None:
            raise InputError(
                f"workers share an image through files beside the results, and "
                f"{shown(arguments.o)} is a URL; leave out --split-above, or give a folder on a "
                f"disk that all workers share with -o"
            )
    if arguments.isolate:
        raise InputError("--isolate is for one process; workers of --dask are isolated already")
    if arguments.attach and starts_workers(arguments.dask):
        raise InputError(
            f"the workers of {arguments.dask} ended with the command that started them; give "
            f"--continue instead of --attach"
        )
    if arguments.device not in (None, "cpu", "cuda"):
        raise InputError(f"-device {arguments.device} cannot be used with --dask; give cpu or cuda")


def require_shared(url: str) -> None:
    """Refuse URLs that workers cannot use, or that would take secrets to them.

    Raises:
        InputError: it is one.
    """
    if local_path(url) is not None:
        return
    if has_secrets(url):
        raise InputError(
            f"--dask sends URLs to workers, and {shown(url)} holds a user, a password or a "
            f"signature; leave that out, and give every worker credentials in its own environment "
            f"or profile"
        )
    if protocols(url)[-1] == "memory":
        raise InputError(f"{shown(url)} lies in this process, where workers of --dask see nothing")


def parse_count(text: str) -> int:
    """A number of pixels, such as 500000, 200M or 1G (powers of 1000).

    Raises:
        InputError: it is none.

    >>> parse_count("1.5G")
    1500000000
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)\s*", text.upper())
    if match is None or float(match[1]) == 0:
        raise InputError(f"--split-above {text} is no number of pixels; write 1G or 200M")
    return int(float(match[1]) * 1000 ** "_KMGT".index(match[2] or "_"))


def predict_on_cluster(
    run: "Run", cases: "Sequence[Case]", arguments: argparse.Namespace, records: "list[Ended]"
) -> None:
    """Segment all cases on the workers of `--dask`.

    Args:
        run: takes what became of the cases.
        cases: of the run.
        arguments: of the command.
        records: filled with a record of each case, in the order in which they end.

    Raises:
        OctreeNCAError: the cluster cannot be used; cases that failed are in `run`.
    """
    from nnunet_octreenca.cluster.address import connected, local_threads, starts_workers
    from nnunet_octreenca.cluster.client import ClusterRun, Request
    from nnunet_octreenca.inference.memory_plan import parse_memory

    config = Path(arguments.dask_config) if arguments.dask_config else None
    threads = arguments.threads or local_threads(arguments.dask)
    request = Request(
        arguments.dask,
        attach=arguments.attach,
        lasting=not starts_workers(arguments.dask),
        device=arguments.device or "cpu",
        threads=threads,
        split_above=arguments.split_above,
        scratch=arguments.scratch and str(Path(arguments.scratch).absolute()),
        scratch_limit=arguments.scratch_limit and parse_memory(arguments.scratch_limit),
    )
    with (
        connected(arguments.dask, config) as connection,
        _shown(len(cases), arguments.quiet) as (tell, show, tick),
    ):
        cluster = ClusterRun(
            run,
            request,
            arguments.i,
            connection.client,
            jobs=connection.jobs,
            tell=tell,
            records=records,
        )
        cluster.segment(cases, show=show, tick=tick)


Shown = tuple[Callable[[str], object], "Callable[[Ended], object]", Callable[[], object]]


@contextmanager
def _shown(total: int, quiet: bool) -> Iterator[Shown]:
    """What prints a line, what shows a case that ended, and what is called now and then."""
    if quiet or not sys.stderr.isatty():
        lines = _Lines(total, quiet)
        yield lines.tell, lines.show, lines.tick
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("cases"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=Console(stderr=True), transient=True, speed_estimate_period=600
    ) as bar:
        task = bar.add_task("cases", total=total, rate="")

        def tell(line: str) -> None:
            bar.console.print(line, markup=False, highlight=False)

        def show(ended: "Ended") -> None:
            for line in _lines_of(ended):
                tell(line)
            bar.advance(task)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{60 * speed:.1f}/min" if speed else "")

        yield tell, show, lambda: None


class _Lines:
    """The same where there is no terminal: lines, and now and then how far it is."""

    def __init__(self, total: int, quiet: bool) -> None:
        self._total, self._quiet = total, quiet
        self._ended = 0
        self._began = self._last = monotonic()

    def tell(self, line: str) -> None:
        print(line, file=sys.stderr)

    def show(self, ended: "Ended") -> None:
        self._ended += 1
        for line in _lines_of(ended):
            print(line, file=sys.stderr if ended.outcome.failed else sys.stdout)

    def tick(self) -> None:
        now = monotonic()
        if self._quiet or now - self._last < _LINE_EVERY or not self._ended:
            return
        self._last = now
        seconds = (now - self._began) / self._ended
        left = seconds * (self._total - self._ended)
        print(
            f"{self._ended} of {self._total} cases, {60 / seconds:.1f}/min, "
            f"{left / 3600:.1f} h left",
            flush=True,
        )


def _lines_of(ended: "Ended") -> list[str]:
    failed = ended.outcome.failed
    failure = [f"ERROR: {ended.case}: {failed.sentence}"] if failed else []
    return [*ended.told, *failure]


def write_reports(
    path: Path, run: "Run", arguments: Mapping[str, object], records: "Sequence[Ended]"
) -> None:
    """Write the JSON report, and beside it the table of all cases as Parquet.

    Raises:
        OutputError: one of them cannot be written.
    """
    from nnunet_octreenca.cluster.records import record, write_parquet
    from nnunet_octreenca.prediction.report import write_report

    more = {
        "device_type": arguments["device"] or "cpu",
        "cluster": {
            "address": arguments["dask"],
            "hosts": sorted({ended.host for ended in records if ended.host}),
            "cases": [record(ended) for ended in records],
        },
    }
    write_report(path, run, arguments, more)
    write_parquet(path.with_suffix(".parquet"), records)
