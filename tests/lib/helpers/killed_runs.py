"""Runs that are killed at given moments, in processes forked from one that has imported it all.

A start would take longer than all runs. Nothing has computed in that process before a fork, whose
threads would be lost.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_FORK = """
import os, signal, sys, time
{imports}
def work():
    {work}
for line in sys.stdin:
    child = os.fork()
    if not child:
        os._exit(work())
    end = time.monotonic() + float(line)
    ended = 0
    while not ended:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.0005)
    print("exit code", os.waitstatus_to_exitcode(status), flush=True)
"""


class KilledRuns:
    """The process that forks."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process

    def run(self, seconds: float) -> int:
        """Let a run work for some seconds at most; its exit code, -9 if it was killed."""
        print(seconds, file=self._process.stdin, flush=True)
        while not (line := self._process.stdout.readline()).startswith("exit code"):
            assert line, "the process that forks has ended"
        return int(line.split()[-1])


@contextmanager
def killed_runs(imports: str, work: str, arguments: Sequence[object]) -> Iterator[KilledRuns]:
    """Give a `KilledRuns`.

    Args:
        imports: statements, run once.
        work: statements of a run that return its exit code; lines after the first are indented
            by four spaces.
        arguments: `sys.argv[1:]` of the runs.
    """
    program = _FORK.format(imports=imports, work=work)
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        yield KilledRuns(process)
        process.stdin.close()
