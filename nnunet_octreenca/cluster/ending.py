"""What a worker still does when it is asked to end, as by a batch system at a time limit."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Call = Callable[[], object]
_calls: list[Call] = []
_usual: Any = None  # what was done before


def before_the_end(call: Call) -> None:
    """Have something called on SIGTERM, before what is done then anyway.

    It needs the main thread, in which dask's workers run; elsewhere nothing is changed.
    """
    global _usual
    if threading.current_thread() is not threading.main_thread():
        return
    _calls.append(call)
    now = signal.getsignal(signal.SIGTERM)
    if now not in (None, signal.SIG_IGN, _end):
        _usual = now
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> None:
    for call in _calls:
        call()
    if callable(_usual):
        _usual(number, frame)
    else:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def forget(call: Call) -> None:
    """Have it called no more."""
    if call in _calls:
        _calls.remove(call)
