"""A folder that one process at a time works in, also across machines that share a disk.

The lock is a file that says who holds it. Its holder touches it every few seconds; a lock whose
holder is gone is stale, and the next process breaks it.
"""

import atexit
import json
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import psutil

from nnunet_octreenca.errors import LockedError, OutputError
from nnunet_octreenca.files import load_json, temporary_name

LOCK_NAME = ".octreenca.lock"
HEARTBEAT = 15.0
"""Seconds between two touches of a lock by its holder."""
LIMIT = 300.0
"""Seconds without a touch after which a holder on another machine may be gone."""
_WATCHED = 2.5  # heartbeats for which such a lock is watched before it is broken
_EMPTY_LIMIT = 10.0  # seconds in which a lock that was created gets its content
_ATTEMPTS = 50  # at a lock that others create, break and remove at the same moment
_GUARD_POLL, _GUARD_LIMIT = 0.02, 60.0  # seconds; a stale lock is removed in a fraction of one

_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

_held: dict[str, "FolderLock"] = {}  # locks of this process by their token
_breaking = threading.Lock()  # of a stale lock, by one thread at a time


@dataclass(frozen=True)
class Holder:
    """What a lock file says; its fields are the JSON's.

    Attributes:
        purpose: what the holder does, for people.
        host: name of its machine, for people.
        machine: what tells apart machines, boots and containers, whose process ids mean nothing
            to one another.
        pid, started: the process, and when it began on the machine's own scale.
        created: when the lock was, in UTC, for people.
        token: a random word of this lock alone.
    """

    purpose: str
    host: str
    machine: str
    pid: int
    started: float
    created: str
    token: str


class FolderLock:
    """Holds a folder while this process works in it.

    A lock is broken if its holder's process is gone, or if its holder is on another machine and
    has not touched the lock for `limit` seconds. Clocks may jump or differ: a lock that looks old
    is watched for some heartbeats first, on a clock that does not jump.

    Args:
        folder: made if it is not there.
        purpose: what this process does in it, such as "predict"; for the sentence others read.
        name: of the lock file, for several locks in one folder.
        subject: what is locked, for that sentence; the folder if left out.
        heartbeat, limit: seconds, see `HEARTBEAT` and `LIMIT`; the same for all that share a
            folder.

    Raises:
        LockedError: (`acquire`, `with`) another process holds it.
        OutputError: (`acquire`, `with`) the folder cannot be written to.

    >>> with FolderLock("fold_0", "training"):
    ...     Path("fold_0", LOCK_NAME).exists()
    True
    >>> Path("fold_0", LOCK_NAME).exists()
    False
    """

    def __init__(
        self,
        folder: Path | str,
        purpose: str,
        *,
        name: str = LOCK_NAME,
        subject: str | None = None,
        heartbeat: float = HEARTBEAT,
        limit: float = LIMIT,
    ) -> None:
        # Absolute: the process may change its folder before the lock is released.
        self.path = Path(folder).absolute() / name
        self.purpose, self.subject = purpose, subject or str(folder)
        self.heartbeat, self.limit = heartbeat, limit
        self._token = ""
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0

    def __enter__(self) -> "FolderLock":
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def acquire(self) -> "FolderLock":
        """Take the lock, or raise; stale locks are broken."""
        try:
            for _ in range(_ATTEMPTS):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self._create():
                    self._begin()
                    return self
                self._break_if_stale()
        except OSError as error:
            raise OutputError(
                f"{self.subject} cannot be locked ({error}); check that {self.path.parent} is a "
                f"folder that can be written to"
            ) from error
        raise LockedError(f"{self.subject} is used by several other processes; try again later")

    def release(self) -> None:
        """Give the lock back; a second call, or one in a forked process, does nothing."""
        if _held.pop(self._token, None) is None or self._pid != os.getpid():
            return
        self._end.set()
        if self._thread is not None:
            self._thread.join(1)  # no touch after the removal
        with suppress(OSError):
            if self.held():
                self.path.unlink()
        self._token = ""

    def held(self) -> bool:
        """Whether the file is there and is this lock's; a process that slept may have lost it."""
        holder = _read(self.path)
        return bool(self._token) and holder is not None and holder.token == self._token

    def require_held(self) -> None:
        """Raise if another process has broken this lock.

        Raises:
            LockedError: it has.
        """
        if not self.held():
            raise LockedError(
                f"{self.subject} is no longer locked by this process: {self.path} was removed or "
                f"taken by another one while this one gave no sign of life; run it again"
            )

    def _create(self) -> bool:
        """Make the file with its content, unless there is one."""
        holder = this_process(self.purpose, uuid.uuid4().hex)
        _held[holder.token] = self  # first: another thread takes an unknown one for stale
        created = False
        try:
            created = self._write(json.dumps(asdict(holder), indent=4), holder.token)
        except FileNotFoundError:  # its folder went
            pass
        finally:
            if not created:
                del _held[holder.token]
        if created:
            self._token, self._pid = holder.token, holder.pid
        return created

    def _write(self, text: str, token: str) -> bool:
        """Create the file unless there is one: with its content at once, for a kill may come."""
        # Another for every thread.
        temporary = temporary_name(self.path, writer=f"{os.getpid()}{threading.get_ident()}")
        try:
            temporary.write_text(text, encoding="utf-8")
            os.link(temporary, self.path)
            return True
        except FileExistsError:
            holder = _read(self.path)  # network disks may report a success as a failure
            return holder is not None and holder.token == token
        except FileNotFoundError:
            raise
        except OSError:  # a disk without links
            return self._write_exclusively(text)
        finally:
            temporary.unlink(missing_ok=True)

    def _write_exclusively(self, text: str) -> bool:
        try:
            file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(file, "w", encoding="utf-8") as written:
                written.write(text)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _begin(self) -> None:
        self._end.clear()
        _watch_signals()
        self._thread = threading.Thread(target=self._beat, name="lock heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._end.wait(self.heartbeat):
            # A disk that cannot be reached for a while is touched later.
            with suppress(OSError):
                if self.held():
                    os.utime(self.path)

    def _break_if_stale(self) -> None:
        """Remove the lock if its holder is gone, else raise."""
        before = _state(self.path)
        if before is None:
            return
        holder = _read(self.path)
        if not self._is_stale(holder):
            if _state(self.path) is None:
                return
            raise LockedError(self._sentence(holder))
        with _alone_with(self.path) as alone:
            if not alone:
                time.sleep(_GUARD_POLL)
            elif _state(self.path) == before and _read(self.path) == holder:
                self.path.unlink(missing_ok=True)

    def _is_stale(self, holder: Holder | None) -> bool:
        if holder is not None and holder.machine == _machine():
            if holder.pid == os.getpid():
                return holder.token not in _held
            return not _is_running(holder)
        age = _age(self.path)
        if age is None or 0 <= age <= (self.limit if holder else min(self.limit, _EMPTY_LIMIT)):
            return False
        return not self._seen_alive()

    def _seen_alive(self) -> bool:
        """Whether the lock is touched, or changes hands, within some heartbeats."""
        before, end = _state(self.path), time.monotonic() + _WATCHED * self.heartbeat
        while time.monotonic() < end:
            if _state(self.path) != before:
                return True
            time.sleep(min(1.0, self.heartbeat / 4))
        return _state(self.path) != before

    def _sentence(self, holder: Holder | None) -> str:
        if holder is None:
            who = "another process, which has just begun"
        else:
            who = (
                f"{holder.purpose} (process {holder.pid} on {holder.host}, since {holder.created})"
            )
        return (
            f"{self.subject} is in use by {who}; wait until it has ended or choose another folder. "
            f"If that process is gone, delete {self.path}"
        )


@contextmanager
def _alone_with(path: Path) -> Iterator[bool]:
    """Whether this thread alone may remove a stale lock, while this lasts.

    Otherwise one process could remove what another has just put in its place. The system's own
    lock goes with its process, however that ends; it says nothing of holders on some disks of
    other machines, and so guards this moment only.
    """
    with _breaking:
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            yield False
            return
        try:
            mine = _system_lock(file)
            if mine is None:
                with _guard(path) as alone:
                    yield alone
            else:
                yield mine
        finally:
            os.close(file)


def _system_lock(file: int) -> bool | None:
    """Whether this process now has the system's lock of a file; None where there are none."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def _guard(path: Path) -> Iterator[bool]:
    """The same by a folder, which outlives a process that is killed at this moment."""
    guard = path.with_name(f"{path.name}.breaking")
    try:
        guard.mkdir()
    except FileExistsError:
        if (_age(guard) or 0) > _GUARD_LIMIT:
            with suppress(OSError):
                guard.rmdir()
        yield False
        return
    try:
        yield True
    finally:
        guard.rmdir()


def is_locked(folder: Path | str, name: str = LOCK_NAME) -> bool:
    """Whether somebody, this process included, holds a lock there; stale ones do not count.

    Of holders on other machines only the age of the lock counts; nothing is watched.
    """
    path = Path(folder).absolute() / name
    holder = _read(path)
    if holder is not None and holder.machine == _machine():
        if holder.pid == os.getpid():
            return holder.token in _held
        return _is_running(holder)
    age = _age(path)
    return age is not None and age <= (LIMIT if holder else _EMPTY_LIMIT)


def this_process(purpose: str, token: str) -> Holder:
    """This process as the holder of a lock.

    Args:
        purpose: what it does, for people.
        token: of the lock.
    """
    pid = os.getpid()
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Holder(purpose, platform.node(), _machine(), pid, _started(pid), now, token)


def has_gone(holder: Holder) -> bool:
    """Whether a holder was a process of this machine and runs no more; others are not known of."""
    return holder.machine == _machine() and not _is_running(holder)


def _read(path: Path) -> Holder | None:
    """What a lock says; None where it is missing, or still being written, or damaged."""
    try:
        return Holder(**load_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes with every touch and every new file; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _age(path: Path) -> float | None:
    """Seconds since the last touch, on the clock of the disk; negative if that was set back.

    None where the file is gone.
    """
    probe = path.with_name(f".{uuid.uuid4().hex[:12]}.now")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return None
    finally:
        probe.unlink(missing_ok=True)


def _machine() -> str:
    """The same for two processes exactly if they see one another's process ids."""
    parts = [platform.node()]
    readers: tuple[Callable[[], str], ...] = (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: str(Path("/proc/self/ns/pid").readlink()),
    )
    for read in readers:
        with suppress(OSError):
            parts.append(read())
    return " ".join(parts)


def _started(pid: int) -> float:
    """When a process began.

    On Linux in clock ticks since the machine's start, which no change of the clock moves;
    elsewhere in seconds since 1970, as the system noted them then.

    Raises:
        psutil.Error: there is no such process, or it is hidden.
    """
    with suppress(OSError, IndexError, ValueError):
        return float(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    return float(psutil.Process(pid).create_time())


def _is_running(holder: Holder) -> bool:
    """Whether a holder on this machine is: its number may have passed to another process."""
    try:
        if psutil.Process(holder.pid).status() == psutil.STATUS_ZOMBIE:
            return False
        return _started(holder.pid) == holder.started
    except psutil.NoSuchProcess:
        return bool(psutil.pid_exists(holder.pid))  # another user's, hidden
    except psutil.AccessDenied:
        return True


def _release_all() -> None:
    for lock in list(_held.values()):
        lock.release()


atexit.register(_release_all)


def _watch_signals() -> None:
    """Release on SIGTERM and SIGHUP where they would end the process at once.

    Whoever handles them otherwise, or ignores them (nohup), is left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _release_and_end)


def _unwatch_signals() -> None:
    """Let a forked process end as if there were no lock.

    A handler in Python misses a signal that arrives just before the process begins to wait, and
    a pool that ends its processes by SIGTERM then waits for one of them for ever.
    """
    for number in _ENDING:
        if signal.getsignal(number) is _release_and_end:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unwatch_signals)


def _release_and_end(number: int, frame: object) -> None:
    _release_all()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
