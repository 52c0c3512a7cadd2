"""What the client asks of workers; each finds its run's session on the worker it comes to."""

import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import cloudpickle
from distributed import get_worker

from nnunet_octreenca.cluster.journal import Ended
from nnunet_octreenca.cluster.session import About, Session, plugin_name
from nnunet_octreenca.cluster.split import BandTask
from nnunet_octreenca.errors import WorkerError
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.prediction.folder import Failure
from nnunet_octreenca.prediction.forecast import Forecast

if TYPE_CHECKING:
    from distributed import Client, Future, Worker


class _Call:
    """Pickled, a call that is made where it is unpickled; what comes out is its result."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def submitted(
    client: "Client", function: Callable[..., Any], *arguments: Any, **options: Any
) -> "Future[Any]":
    """`client.submit` for tasks that the scheduler passes on as bytes.

    Tasks of other kinds are unpickled by the scheduler, on its event loop; with ours it would
    import PyTorch there, be silent for seconds and keep a gigabyte.
    """
    task = cloudpickle.dumps(_Call(function, arguments))
    return client.submit(pickle.loads, task, pure=False, **options)


def plan(run: str, cases: Sequence[Case], shares: list[int]) -> list[Forecast | Failure | None]:
    """The memory that each case takes, as `Session.plan`."""
    session = _session(get_worker(), run)
    return [session.plan(case, shares) for case in cases]


def segment(
    run: str, case: Case, expected: Forecast | None, alone: bool, helpers: int = 0
) -> Ended:
    """One case, as `Session.segment`; with helpers, they are given bands of it."""

    def submit(client: "Client", task: BandTask) -> "Future[None]":
        return submitted(
            client,
            band,
            run,
            task,
            expected,
            key=f"octreenca-band-{run}-{case.name}-{task.rows.first}-{uuid4().hex[:8]}",
            priority=5,
            resources=wanted,
        )

    session = _session(get_worker(), run)
    wanted = session.wanted(expected)
    return session.segment(case, expected, alone, helpers, submit)


def band(run: str, task: BandTask, expected: Forecast | None) -> None:
    """Some rows of a case that another worker has, as `Session.band`."""
    _session(get_worker(), run).band(task, expected)


def about(run: str, dask_worker: "Worker") -> About:
    """What a worker is and does."""
    return _session(dask_worker, run).about()


def stop(run: str, dask_worker: "Worker") -> None:
    """End the cases at hand at the end of a band."""
    _session(dask_worker, run).stop()


def _session(worker: "Worker", run: str) -> Session:
    session = worker.plugins.get(plugin_name(run))
    if not isinstance(session, Session):
        raise WorkerError(f"worker {worker.address} knows nothing of run {run}")
    return session
