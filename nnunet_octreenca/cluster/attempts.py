"""How often a case ended the process that segmented it: poisoned input must not eat a cluster.

A file beside the records says who is at a case. Whoever comes to an end with it, good or bad,
removes the file; a process that is killed cannot. One that others end, as a batch system does at a
time limit, notes that first: it is no fault of the case.
"""

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from threading import Lock

from nnunet_octreenca.cluster.shared_files import NO_SHARE, SharedFiles
from nnunet_octreenca.errors import OctreeNCAError, WorkerError

MOST = 2
"""Processes that a case may end."""

_file = Lock()  # of threads that end a case, and one that ends the process


class PoisonedError(WorkerError):
    """A case has ended as many processes as it may."""


@dataclass(frozen=True)
class Attempt:
    """A process that began a case and did not come to an end with it.

    Attributes:
        run: of the cluster that it belonged to.
        host, process: who it was.
        began: when, in UTC.
        stamp: of the case's files (`hashes.stamp`): a file that was mended is another one.
        excused: others ended the process.
    """

    run: str
    host: str
    process: int
    began: str
    stamp: str
    excused: bool = False


def attempts_name(case_name: str) -> str:
    """Of the file, among the shared ones, that notes the attempts at a case."""
    return f"{case_name}.attempts"


def read_attempts(
    shared: SharedFiles, case_name: str, stamp_now: Callable[[], str]
) -> list[Attempt]:
    """The attempts at a case as its files are now that ended with their process.

    Args:
        shared: where they are noted.
        case_name: of the case.
        stamp_now: of its files; asked where there are attempts.
    """
    attempts = _noted(shared, case_name)
    if not attempts:
        return []
    try:
        now = stamp_now()
    except NO_SHARE:  # its files cannot be read: they will say so themselves
        return []
    return [attempt for attempt in attempts if attempt.stamp == now]


def _noted(shared: SharedFiles, case_name: str) -> list[Attempt]:
    try:
        return [Attempt(**each) for each in shared.read(attempts_name(case_name)) or ()]
    except TypeError:
        return []


def blaming(attempts: Iterable[Attempt]) -> list[Attempt]:
    """Those that the case may be the reason of."""
    return [each for each in attempts if not each.excused]


@contextmanager
def attempt(
    shared: SharedFiles, case_name: str, stamp_now: str, run: str
) -> Iterator[Callable[[], None]]:
    """Note that this process is at a case, while it is; who calls holds the case's lock.

    Args:
        shared: where that is noted.
        case_name: of the case.
        stamp_now: of its files.
        run: of the cluster.

    Yields:
        A call before results are put into a store: if the case fails from then on, the note stays,
        without blame. It says that what is half there is this run's.

    Raises:
        PoisonedError: the case has ended `MOST` processes.
    """
    name = attempts_name(case_name)
    before = read_attempts(shared, case_name, lambda: stamp_now)
    blamed = blaming(before)
    if len(blamed) >= MOST:
        places = ", ".join(f"process {each.process} on {each.host}" for each in blamed)
        raise PoisonedError(
            f"it ended the process that segmented it {len(blamed)} times ({places}) and is not "
            f"taken again: the file may be damaged, or need more memory than planned; look at it, "
            f"and delete {shared.named(name)} to try once more"
        )
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    this = Attempt(run, platform.node(), os.getpid(), now, stamp_now)
    with _file:
        shared.write(name, [asdict(each) for each in (*before, this)])
    kept: list[Attempt] = []
    try:
        yield lambda: kept.extend((*before, replace(this, excused=True)))
        kept.clear()
    finally:
        # What a store that has gone keeps is taken for an attempt that ended with its process.
        with _file, suppress(OctreeNCAError):
            if kept:
                shared.write(name, [asdict(each) for each in kept])
            else:
                shared.remove(name)


def excuse(shared: SharedFiles, case_name: str) -> None:
    """Note that others are about to end this process, which may be at a case.

    Raises:
        OSError, OctreeNCAError: it cannot be noted.
    """
    this = (platform.node(), os.getpid())
    with _file:
        before = _noted(shared, case_name)
        if not before:  # it came to an end with it
            return
        shared.write(
            attempts_name(case_name),
            [
                asdict(replace(each, excused=each.excused or (each.host, each.process) == this))
                for each in before
            ],
        )
