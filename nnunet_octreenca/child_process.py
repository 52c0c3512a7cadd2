"""A command run as a child process: its output in a log, its memory measured, ended with ours."""

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

# The kernel counts what a process held before it became another program. A small one in between
# keeps our own memory out of the command's; it ends as the command ends. (psutil can only sample
# a running process and would miss peaks.)
_LAUNCHER = """
import os, signal, sys
report, *command = sys.argv[1:]
child = os.posix_spawn(command[0], command, os.environ)
_, status, usage = os.wait4(child, 0)
os.write(int(report), str(usage.ru_maxrss).encode())
code = os.waitstatus_to_exitcode(status)
if code < 0:
    if code != -signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0  # between asking processes to end and ending them


class CommandError(OctreeNCAError):
    """A command that we ran has failed; `last_lines` is the end of its output."""

    def __init__(self, message: str, last_lines: str) -> None:
        super().__init__(message)
        self.last_lines = last_lines


class Finished(NamedTuple):
    """Seconds that a command took, and the peak memory of its largest process in bytes.

    None where the system does not report it (Windows).
    """

    seconds: float
    peak_bytes: int | None


def find_script(name: str) -> str:
    """An installed command: next to this Python, where its scripts are installed, or on the PATH.

    Raises:
        EnvironmentMismatchError: it is not found.
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
    process, report = _start(command, log, environment)
    try:
        # The log is read back rather than a pipe: a worker that survives cannot hold us up.
        with log.open("rb") as written:
            rest = b""
            while True:
                ended = process.poll() is not None
                *lines, rest = (rest + written.read()).split(b"\n")
                for line in lines:
                    on_line(line.decode("utf-8", errors="replace").rstrip("\r"))
                on_tick()
                if ended:
                    break
                time.sleep(POLL_SECONDS)
        peak_bytes = _peak_bytes(report)
    finally:
        _end(process)
        if report is not None:
            os.close(report)
    if process.returncode:
        _raise(process.returncode, command, log)
    return Finished(time.monotonic() - begun, peak_bytes)


def _start(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], int | None]:
    """The process, and where its peak memory can be read when it has ended (not on Windows)."""
    report = written = None
    if os.name == "posix":
        report, written = os.pipe()
        command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(written), *command]
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                pass_fds=() if written is None else (written,),
                start_new_session=os.name == "posix",  # a process group, nnU-Net's workers in it
            )
    except BaseException:
        if report is not None:
            os.close(report)
        raise
    finally:
        if written is not None:
            os.close(written)
    return process, report


def _peak_bytes(report: int | None) -> int | None:
    """What the launcher wrote: peak memory of the largest process that was waited for."""
    if report is None:
        return None
    os.set_blocking(report, False)  # a worker that survives cannot hold us up here either
    with suppress(BlockingIOError):
        if written := os.read(report, 64):
            return int(written) * (1 if sys.platform == "darwin" else 1024)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
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
    """Context in which SIGTERM raises KeyboardInterrupt too, so that children are ended.

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
