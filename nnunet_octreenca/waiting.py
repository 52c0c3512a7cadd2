"""Waiting for another process or thread, but not forever."""

import os
from collections.abc import Iterable
from math import inf
from threading import Thread
from time import monotonic

from nnunet_octreenca.errors import EnvironmentMismatchError

LIMIT_VARIABLE = "nnUNet_octreenca_wait_limit"
DEFAULT_LIMIT = 1800.0
# Between two looks at the clock no more than this counts: a process that was stopped itself, or
# a machine that slept, must not conclude that others hang.
_LONGEST_STEP = 5.0
_SHORTEST_LOOK = 0.2  # processor times are counted in hundredths of seconds
# Of a processor, and bytes: more than a process takes that only looks at the clock and at others.
_BUSY = 0.05
_READ = 1 << 16
_POLL = 0.5  # seconds between looks at a thread


def wait_limit() -> float:
    """Seconds without a sign of life after which something counts as hung; infinite for 0.

    Raises:
        EnvironmentMismatchError: the environment variable holds no number of seconds.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        seconds = float(text or DEFAULT_LIMIT)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise EnvironmentMismatchError(
            f"{LIMIT_VARIABLE} is {text!r}, but must be a number of seconds, or 0 for no limit"
        )
    return seconds or inf


class Patience:
    """Counts the seconds of a wait by a clock that nobody can set.

    Ask `over` at least every few seconds while waiting.

    Args:
        processes: ids of those that are waited for; while one of them computes or reads, nothing
            is counted.
        limit: seconds; `wait_limit()` if None.

    >>> Patience(limit=3600).over()
    False
    """

    def __init__(self, processes: Iterable[int | None] = (), limit: float | None = None) -> None:
        self.limit = wait_limit() if limit is None else limit
        self.processes = [process for process in processes if process is not None]
        self.restart()

    def restart(self) -> None:
        """Count from 0: there was a sign of life."""
        self.waited = 0.0
        self._last = monotonic()
        self._activity = _activity(self.processes)

    def over(self) -> bool:
        """Whether the limit is reached."""
        now = monotonic()
        step = min(now - self._last, _LONGEST_STEP)
        if step >= _SHORTEST_LOOK:
            computed, read = _activity(self.processes)
            if computed - self._activity[0] > _BUSY * step or read - self._activity[1] > _READ:
                self.waited = -step
            self._activity = (computed, read)
            self.waited += step
            self._last = now
        return self.waited >= self.limit


def _activity(processes: Iterable[int]) -> tuple[float, int]:
    """Seconds that processes have computed, and bytes that they have read, so far."""
    import psutil  # here: the core does without it

    seconds, read = 0.0, 0
    for number in processes:
        try:
            process = psutil.Process(number)
            times = process.cpu_times()
            seconds += times.user + times.system
            read += process.io_counters().read_chars
        except (psutil.Error, AttributeError):  # ended; or a system that does not count bytes
            continue
    return seconds, read


def wait_for(thread: Thread) -> bool:
    """Wait until a thread ends; False if this process does nothing meanwhile for too long.

    A thread that hangs cannot be interrupted. It should be a daemon, which is left behind.
    """
    patience = Patience([os.getpid()])
    while thread.is_alive():
        thread.join(_POLL)
        if patience.over():
            return not thread.is_alive()
    return True


def advice() -> str:
    """What to do when something was waited for in vain; ends an error's sentence."""
    return (
        f"Look at the storage, the memory and the machine's load; where so long a wait is normal, "
        f"set {LIMIT_VARIABLE} to more seconds (0 for no limit)"
    )
