"""Calls to other machines that must end within a time."""

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

from nnunet_octreenca.errors import WorkerError

Result = TypeVar("Result")
CALL = 120.0
"""Seconds for a call to all workers: some import PyTorch first."""


def within(seconds: float, call: Callable[[], Result], what: str) -> Result:
    """What a call returns, if it does so in time.

    A thread that hangs cannot be ended: it is a daemon, and left behind.

    Args:
        seconds: that the call may take.
        call: to be made.
        what: did not answer, for the error.

    Raises:
        WorkerError: it took longer.
        BaseException: what the call raises.

    >>> within(5, lambda: 3, "nobody")
    3
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised where the result is wanted
            errors.append(error)

    thread = Thread(target=run, name="call", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise WorkerError(
            f"{what} did not answer for {seconds:.0f} s; look at the network and at the logs of "
            f"the scheduler and the workers, then run this again with --continue"
        )
    return results[0]
