"""Dask's sampler of call stacks, on workers whose time is known to go into segmenting."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Worker

_CALLBACKS = ("profile", "profile-cycle")


class Sampler:
    """What a worker looks at all its threads with, a hundred times a second.

    That takes 2 % of a processor, and of the interpreter that cases run in.

    Args:
        worker: whose it is.
    """

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self._paused: dict[str, Any] = {}

    def pause(self) -> None:
        """Stop it, unless the worker has none or another run has stopped it."""
        callbacks = self._worker.periodic_callbacks
        for name in _CALLBACKS:
            if name in callbacks:
                # Taken out: a worker that is just starting starts those that it finds there.
                self._paused[name] = callbacks.pop(name)
                self._paused[name].stop()

    def resume(self) -> None:
        """Start what `pause` has stopped."""
        while self._paused:
            name, callback = self._paused.popitem()
            self._worker.periodic_callbacks[name] = callback
            callback.start()
