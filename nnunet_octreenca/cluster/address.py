"""From what `--dask` was given to a client of a scheduler."""

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_octreenca.cluster.jobs import Jobs
from nnunet_octreenca.cluster.slurm import import_jobqueue, slurm_workers
from nnunet_octreenca.errors import InputError, first_line
from nnunet_octreenca.libraries import import_optional
from nnunet_octreenca.resources import processors, total_memory

if TYPE_CHECKING:
    from distributed import Client

CONNECT = 20.0
"""Seconds in which a scheduler must answer."""
_FORMS = "give tcp://HOST:8786, a scheduler file, local:4 or slurm:32"


@dataclass(frozen=True)
class Connection:
    """A way to workers.

    Attributes:
        client: of their scheduler.
        jobs: that they run in, where the command has submitted them.
    """

    client: "Client"
    jobs: Jobs | None = None


def starts_workers(address: str) -> bool:
    """Whether scheduler and workers begin, and end, with the command.

    >>> starts_workers("local:4"), starts_workers("tcp://head:8786")
    (True, False)
    """
    return address.startswith(("local:", "slurm:"))


def checked_address(address: str, config: Path | None) -> str:
    """An address that `connected` can try.

    Args:
        address: of `--dask`.
        config: of `--dask-config`.

    Raises:
        InputError: it is of no known form, or its file is not there.
        EnvironmentMismatchError: a library of the extra [cluster] is not installed.
    """
    import_optional("distributed", "cluster")
    kind, _, rest = address.partition(":")
    if kind in ("local", "slurm"):
        if not re.fullmatch(r"[1-9][0-9]{0,4}", rest):
            raise InputError(f"--dask {address} needs a number of workers, such as {kind}:4")
        if kind == "slurm":
            import_jobqueue()
        if (kind == "slurm") != (config is not None):
            raise InputError(
                "--dask slurm:32 and --dask-config FILE belong together: the file says what a job "
                "asks of SLURM (queue, cores, memory, walltime, ...)"
            )
        return address
    if config is not None:
        raise InputError(f"--dask-config is for slurm:32, not for {address}")
    if re.fullmatch(r"(tcp|tls|ws|wss|ucx|ucxx)://\S+:[0-9]+", address):
        return address
    if Path(address).is_file():
        return address
    raise InputError(f"--dask {address} is no address and no scheduler file; {_FORMS}")


@contextmanager
def connected(address: str, config: Path | None) -> Iterator[Connection]:
    """A client of the scheduler, which ends with it if the command has started it.

    Args:
        address: that `checked_address` returned.
        config: of `--dask-config`.

    Raises:
        InputError: nobody answers there, or the scheduler file or the configuration is damaged.
        EnvironmentMismatchError: SLURM's commands are not there, or refuse a job.
    """
    from distributed import Client

    kind, _, rest = address.partition(":")
    jobs = None
    with ExitStack() as stack:
        if kind == "local":
            target: Any = stack.enter_context(_local(int(rest)))
        elif kind == "slurm":
            assert config is not None
            target, jobs = stack.enter_context(slurm_workers(int(rest), config))
        else:
            target = None
        arguments = {"scheduler_file": address} if Path(address).is_file() else {}
        try:
            client = Client(
                target or (None if arguments else address), timeout=CONNECT, **arguments
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"no dask scheduler answers at {address} ({first_line(error)}); start one with "
                f"`dask scheduler`, or {_FORMS}"
            ) from error
        try:
            yield Connection(client, jobs)
        finally:
            client.close(timeout=CONNECT)


@contextmanager
def _local(workers: int) -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        memory_limit=total_memory() // workers,
        dashboard_address=None,
        silence_logs=logging.ERROR,  # at the end it warns of workers that it waits for
    ) as cluster:
        yield cluster


def local_threads(address: str) -> int | None:
    """Threads of a task that share a machine fairly; None where workers have their own machines.

    >>> local_threads("tcp://head:8786") is None
    True
    """
    if not address.startswith("local:"):
        return None
    return max(1, processors() // int(address.partition(":")[2]))
