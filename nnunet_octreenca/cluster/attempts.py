"""How often a case ended the process that segmented it: poisoned input must not eat a cluster.

A file beside the records says who is at a case. Whoever comes to an end with it, good or bad,
removes the file; a process that is killed cannot. One that others end, as a batch system does at a
time limit, notes that first: it is no fault of the case.
"""

import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock

from nnunet_octreenca.errors import WorkerError
from nnunet_octreenca.files import load_json, write_json
from nnunet_octreenca.hashes import stamp
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.images.companions import all_files
from nnunet_octreenca.result_record import RECORDS

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


def attempts_path(folder: Path, case_name: str) -> Path:
    """Where a case's attempts are noted."""
    return folder / RECORDS / f"{case_name}.attempts"


def read_attempts(folder: Path, case: Case) -> list[Attempt]:
    """The attempts at a case as its files are now that ended with their process."""
    try:
        content = load_json(attempts_path(folder, case.name).read_text(encoding="utf-8"))
        attempts = [Attempt(**each) for each in content]
    except (OSError, ValueError, TypeError):
        return []
    try:
        now = stamp(all_files(case.files))
    except OSError:
        return []
    return [attempt for attempt in attempts if attempt.stamp == now]


def blaming(attempts: Iterable[Attempt]) -> list[Attempt]:
    """Those that the case may be the reason of."""
    return [each for each in attempts if not each.excused]


@contextmanager
def attempt(folder: Path, case: Case, run: str) -> Iterator[None]:
    """Note that this process is at a case, while it is; who calls holds the case's lock.

    Raises:
        PoisonedError: the case has ended `MOST` processes.
    """
    path, before = attempts_path(folder, case.name), read_attempts(folder, case)
    blamed = blaming(before)
    if len(blamed) >= MOST:
        places = ", ".join(f"process {each.process} on {each.host}" for each in blamed)
        raise PoisonedError(
            f"it ended the process that segmented it {len(blamed)} times ({places}) and is not "
            f"taken again: the file may be damaged, or need more memory than planned; look at it, "
            f"and delete {path} to try once more"
        )
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    this = Attempt(run, platform.node(), os.getpid(), now, stamp(all_files(case.files)))
    with _file:
        write_json(path, [asdict(each) for each in (*before, this)])
    try:
        yield
    finally:
        with _file:
            path.unlink(missing_ok=True)


def excuse(folder: Path, case: Case) -> None:
    """Note that others are about to end this process, which may be at a case.

    Raises:
        OSError: it cannot be noted.
    """
    path, this = attempts_path(folder, case.name), (platform.node(), os.getpid())
    with _file:
        before = read_attempts(folder, case)
        if not before:  # it came to an end with it
            return
        write_json(
            path,
            [
                asdict(replace(each, excused=each.excused or (each.host, each.process) == this))
                for each in before
            ],
        )
