"""nnU-Net's pools of processes, watched: one that is killed or hangs ends the command.

nnU-Net exports, evaluates and preprocesses in `multiprocessing.Pool`s. A pool loses the task of a
process that is killed, and whoever waits for its result waits for ever; ending the pool may wait
for ever too, for a lock that the killed process held. Within `watched_pools`, pools are
`WatchedPool`s.
"""

import inspect
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import pool as pools
from time import monotonic, sleep
from types import ModuleType
from typing import Any

from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from nnunetv2.inference import data_iterators

from nnunet_octreenca.errors import WorkerError
from nnunet_octreenca.files import JsonObject
from nnunet_octreenca.waiting import Patience, advice

_POLL = 0.2  # seconds between looks at the processes
_PATIENCE_AT_THE_END = 5.0  # seconds for killed processes to be gone


class WatchedPool(pools.Pool):
    """A pool whose results are not waited for in vain.

    Args:
        what: the processes do, for messages, such as "export".
        processes: how many.
        options: `multiprocessing.Pool`'s.
    """

    _pool: list[Any]  # the base class's processes

    def __init__(self, what: str, processes: int | None = None, **options: Any) -> None:
        super().__init__(processes, **options)
        self._what = what
        self._first = list(self._pool)  # the base class replaces those that die
        self._patience: Patience | None = None
        self.death: WorkerError | None = None  # why the pool has ended

    def apply_async(self, *arguments: Any, **options: Any) -> Any:
        """The base class's, with a watched result."""
        return _Result(super().apply_async(*arguments, **options), self)

    def starmap_async(self, *arguments: Any, **options: Any) -> Any:
        """The base class's, with a watched result."""
        return _Result(super().starmap_async(*arguments, **options), self)

    def map_async(self, *arguments: Any, **options: Any) -> Any:
        """The base class's, with a watched result."""
        return _Result(super().map_async(*arguments, **options), self)

    def starmap(self, *arguments: Any, **options: Any) -> Any:
        """The base class's, watched."""
        return self.starmap_async(*arguments, **options).get()

    def map(self, *arguments: Any, **options: Any) -> Any:
        """The base class's, watched."""
        return self.map_async(*arguments, **options).get()

    def alive(self) -> None:
        """Count as a sign of life."""
        self._patience = None

    def check(self) -> None:
        """Look at the processes while one of their results is waited for.

        Raises:
            WorkerError: one has died, or none has done anything for too long.
        """
        if not all(process.is_alive() for process in self._first):
            self.terminate()
            assert self.death is not None
            raise self.death
        if self._patience is None:
            self._patience = Patience(process.pid for process in self._first)
        if self._patience.over():
            processes = ", ".join(str(process.pid) for process in self._first)
            self.death = WorkerError(
                f"the {self._what} processes have done nothing for {self._patience.waited:.0f} s "
                f"(process ids {processes}). {advice()}"
            )
            self.end()
            raise self.death

    def _why(self) -> WorkerError | None:
        for process in self._first:
            if not process.is_alive():
                code = process.exitcode
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                return WorkerError(
                    f"{self._what} process {process.pid} ended unexpectedly ({how}), most likely "
                    f"because the memory was full; try fewer processes with nnUNet_def_n_proc or "
                    f"the command's own option"
                )
        return None

    def end(self) -> None:
        """Kill the processes, and wait for no lock that one of them may hold."""
        base: Any = self
        base._terminate.cancel()
        base._state = pools.TERMINATE
        for thread in (base._worker_handler, base._task_handler, base._result_handler):
            thread._state = pools.TERMINATE
        base._change_notifier.put(None)
        base._taskqueue.put(None)
        base._worker_handler.join(_PATIENCE_AT_THE_END)  # it would start others
        processes = [*self._pool, *self._first]
        for process in processes:
            process.kill()
        for process in processes:
            process.join(_PATIENCE_AT_THE_END)

    def terminate(self) -> None:
        """Kill the processes: the base class would wait for one that is stopped, and for locks."""
        self.death = self.death or self._why()
        self.end()


class _Result:
    """A result of a pool, that looks at the pool's processes while it is waited for."""

    def __init__(self, result: Any, pool: WatchedPool) -> None:
        self._result = result
        self._pool = pool
        self._seen = False

    def ready(self) -> bool:
        """Whether the result is there; nnU-Net asks this again and again while it waits."""
        if not self._result.ready():
            self._pool.check()
            return False
        if not self._seen:
            self._seen = True
            self._pool.alive()
        return True

    def get(self, timeout: float | None = None) -> Any:
        """The result, or what the task raised.

        Raises:
            multiprocessing.TimeoutError: it is not there in time.
            WorkerError: it will never be.
        """
        begun = monotonic()
        while not self.ready():
            left = _POLL if timeout is None else timeout - (monotonic() - begun)
            if left <= 0:
                raise multiprocessing.TimeoutError
            self._result.wait(min(left, _POLL))
        return self._result.get()


class _Context:
    """A context of `multiprocessing` with watched pools."""

    def __init__(self, context: Any, what: str, opened: list[WatchedPool]) -> None:
        self._context, self._what, self._opened = context, what, opened

    def Pool(self, processes: int | None = None) -> WatchedPool:
        self._opened.append(WatchedPool(self._what, processes, context=self._context))
        return self._opened[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class _Multiprocessing:
    """The module `multiprocessing`, as far as a module of nnU-Net sees it."""

    def __init__(self, what: str, opened: list[WatchedPool]) -> None:
        self._what, self._opened = what, opened

    def get_context(self, method: str | None = None) -> _Context:
        return _Context(multiprocessing.get_context(method), self._what, self._opened)

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)


@contextmanager
def watched_pools(**modules: ModuleType) -> Iterator[None]:
    """Within, pools that modules of nnU-Net open are watched.

    Args:
        modules: by what their pools do, such as `export=predict_from_raw_data`.

    Raises:
        WorkerError: a process of a pool died or hangs.
    """
    opened: list[WatchedPool] = []
    undo = [_watch(what, module, opened) for what, module in modules.items()]
    try:
        yield
    except RuntimeError as error:  # nnU-Net looks at its processes too, at times
        for pool in opened:
            if pool.death is not None:
                raise pool.death from error
        raise
    finally:
        for restore in undo:
            restore()


def _watch(what: str, module: Any, opened: list[WatchedPool]) -> Callable[[], None]:
    """Replace what a module opens its pools with; the result puts it back."""
    seen: Any = _Multiprocessing(what, opened)
    name = "multiprocessing"
    if not hasattr(module, name):
        seen, name = seen.get_context().Pool, "Pool"
    before = getattr(module, name)
    setattr(module, name, seen)
    return lambda: setattr(module, name, before)


@contextmanager
def patient(cases: Iterable[JsonObject]) -> Iterator[Iterable[JsonObject]]:
    """Cases from nnU-Net's preprocessing processes, not waited for in vain.

    nnU-Net's iterator sleeps a little, again and again, until the next case is there.
    """
    if isinstance(cases, MultiThreadedAugmenter):  # nnU-Net looks for it
        yield cases
        return
    patience = Patience()

    def counted(seconds: float) -> None:
        nonlocal patience
        sleep(seconds)
        processes, number = _preprocessing(cases)
        awaited = [process.pid for process in processes[number : number + 1]]
        if patience.processes != awaited:
            patience = Patience(awaited)
        if patience.over():
            for process in processes:
                process.kill()  # or this one waits for them when it ends
            for process in processes:
                process.join(_PATIENCE_AT_THE_END)
            raise WorkerError(
                f"the process that preprocesses the next case has done nothing for "
                f"{patience.waited:.0f} s. {advice()}"
            )

    def followed() -> Iterator[JsonObject]:
        following = iter(cases)
        while True:
            patience.restart()
            try:
                case = next(following)
            except StopIteration:
                return
            except RuntimeError as error:
                if "Background workers died" not in str(error):
                    raise
                raise WorkerError(
                    "a process that preprocesses images ended unexpectedly; its error is above. If "
                    "there is none the memory was full: try fewer processes with -npp"
                ) from error
            yield case

    before = data_iterators.sleep
    data_iterators.sleep = counted
    try:
        yield followed()
    finally:
        data_iterators.sleep = before


def _preprocessing(cases: Iterable[JsonObject]) -> tuple[list[Any], int]:
    """The processes behind nnU-Net's iterator, and which of them it waits for; none if unknown."""
    known = inspect.getgeneratorlocals(cases) if inspect.isgenerator(cases) else {}
    processes, number = known.get("processes", []), known.get("worker_ctr", 0)
    return (list(processes), number) if number < len(processes) else ([], 0)
