"""A command run as a child process: its output in a log, its memory measured, ended with us."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from nnunet_octreenca.errors import EnvironmentMismatchError, OctreeNCAError

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0  # between asking processes to end and ending them


class CommandError(OctreeNCAError):
    """A command that we ran has failed; `last_lines` is the end of its output."""

    def __init__(self, message: str, last_lines: str) -> None:
        super().__init__(message)
        self.last_lines = last_lines


class Finished(NamedTuple):
    """Seconds that a command took, and the peak memory of its largest process in bytes.

    None where the system does not tell (Windows).
    """

    seconds: float
    peak_bytes: int | None


def find_script(name: str) -> str:
    """An installed command: beside this Python, where its scripts go, or on the PATH.

    Raises:
        EnvironmentMismatchError: it is nowhere.
    """
    folders = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    for path in (*folders, None):
        found = shutil.which(name, path=path)
        if found:
            return found
    raise EnvironmentMismatchError(
        f"the command {name} is neither in {' nor in '.join(dict.fromkeys(folders))} nor on the "
        f"PATH; install it into this environment with `pip install nnunet-octreenca`"
    )


def run_child(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], object] = lambda line: None,
    on_tick: Callable[[], object] = lambda: None,
) -> Finished:
    """Run a command to its end. Whatever happens here, none of its processes is left behind.

    Args:
        command: program and arguments.
        log: file for all that it prints.
        environment: of the command.
        on_line: called with every line that it has printed.
        on_tick: called a few times a second.

    Raises:
        CommandError: its exit code is not 0.
    """
    begun = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=os.name == "posix",  # a process group, nnU-Net's workers in it
        )
    try:
        # The log is read back rather than a pipe: a worker that survives cannot hold us up.
        with log.open("rb") as written:
            rest = b""
            while True:
                ended, peak_bytes = _poll(process)
                *lines, rest = (rest + written.read()).split(b"\n")
                for line in lines:
                    on_line(line.decode("utf-8", errors="replace").rstrip("\r"))
                on_tick()
                if ended:
                    break
                time.sleep(POLL_SECONDS)
    finally:
        _end(process)
    if process.returncode:
        _raise(process.returncode, command, log)
    return Finished(time.monotonic() - begun, peak_bytes)


def _poll(process: subprocess.Popen) -> tuple[bool, int | None]:
    """Whether it has ended, and then its peak memory in bytes.

    That of the largest process: itself or one of those that it waited for.
    """
    if not hasattr(os, "wait4"):  # Windows
        return process.poll() is not None, None
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if pid == 0:
        return False, None
    process.returncode = os.waitstatus_to_exitcode(status)
    return True, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _end(process: subprocess.Popen) -> None:
    """End the process and, where there are process groups, all that it has started."""
    if os.name != "posix":
        if process.poll() is None:
            process.terminate()
            process.wait()
        return
    # Not there: all have ended. Not permitted: only zombies are left (macOS).
    with suppress(ProcessLookupError, PermissionError):
        try:
            os.killpg(process.pid, signal.SIGTERM)
            patience = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < patience:
                process.poll()  # reaps the leader; the group is gone with its last process
                os.killpg(process.pid, 0)
                time.sleep(POLL_SECONDS / 4)
        finally:  # also on a second Ctrl-C
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _raise(code: int, command: Sequence[str], log: Path) -> NoReturn:
    how = f"failed with exit code {code}"
    if code < 0:
        how = f"was ended by signal {-code}"
        if code == -9:
            how += ", most likely because the memory was full"
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    raise CommandError(
        f"{Path(command[0]).stem} {how}; all that it printed is in {log}", "\n".join(lines[-15:])
    )


@contextmanager
def ends_like_ctrl_c() -> Iterator[None]:
    """Within, being terminated raises KeyboardInterrupt too, so that children are ended.

    What is ignored already (nohup) stays ignored.
    """

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []  # only the main thread may handle signals
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
