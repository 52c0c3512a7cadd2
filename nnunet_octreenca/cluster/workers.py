"""What the workers of a run have, asked of the scheduler now and then."""

from collections.abc import Set as AbstractSet
from time import monotonic
from typing import TYPE_CHECKING, Any

from nnunet_octreenca.cluster.limits import within
from nnunet_octreenca.cluster.session import MEMORY, plugin_name
from nnunet_octreenca.errors import WorkerError

if TYPE_CHECKING:
    from distributed import Client

_ANSWER = 60.0  # seconds for a scheduler that is busy
_INTERVAL = 3.0  # seconds between two questions, and some more on large clusters
_PER_WORKER = 0.01


class Workers:
    """The workers that take tasks of a run, refreshed every few seconds.

    Args:
        client: of their scheduler.
        run: its name.

    Attributes:
        shares: bytes that a case may take, of every worker a thread's share and the whole.
        count: how many they are.
    """

    def __init__(self, client: "Client", run: str) -> None:
        self._client, self._name = client, plugin_name(run)
        self._asked = 0.0
        self._scheduler: str | None = None
        self._processing: set[str] = set()
        self.shares: list[int] = []
        self.count = 0

    def refresh(self) -> None:
        """Ask now.

        Raises:
            WorkerError: the scheduler does not answer, or is another one than before.
        """
        found = within(_ANSWER, self._ask, "the scheduler")
        budgets = [
            (int(about["resources"][MEMORY]), int(about["nthreads"]))
            for about in found.values()
            if about["resources"].get(self._name)
        ]
        self.count = len(budgets)
        parts = {memory // threads for memory, threads in budgets}
        self.shares = sorted(parts | {memory for memory, _ in budgets})
        self._asked = monotonic()

    def keep_fresh(self) -> None:
        """Ask, unless that was done a moment ago."""
        if monotonic() - self._asked > _INTERVAL + _PER_WORKER * self.count:
            self.refresh()

    def at_work(self, keys: AbstractSet[str]) -> bool:
        """Whether some worker had one of the tasks when last asked."""
        return not self._processing.isdisjoint(keys)

    def _ask(self) -> dict[str, Any]:
        # Not `scheduler_info`: it returns what the client keeps, which the client's own regular
        # question, for five workers or none, may just have replaced.
        identity = self._client.scheduler.identity
        try:
            found = self._client.sync(identity, n_workers=-1)
        except TypeError:  # releases before 2025.4 tell of all, and take no number
            found = self._client.sync(identity)
        if self._scheduler not in (None, found["id"]):
            raise WorkerError(
                "the scheduler was started again and knows nothing of this run; cases that are "
                "finished stay so: run this again with --attach"
            )
        self._scheduler = found["id"]
        workers: dict[str, Any] = found["workers"]
        processing = self._client.processing()
        self._processing = {str(key) for keys in processing.values() for key in keys}
        return workers
