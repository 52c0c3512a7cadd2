"""Small clusters of real processes for tests."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from distributed import Client

from nnunet_octreenca.cluster.shared_files import DiskFiles

LIMIT = 300.0  # seconds after which something hangs, however busy the machine
MEMORY = 4 << 30


class Forker:
    """Processes forked from one that has imported everything."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("w")
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._pids: list[int] = []
        assert self._line() == "ready"

    def fork(self, kind: str, **arguments: object) -> int:
        """Begin a process; returns its id."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({"kind": kind, **arguments}) + "\n")
        self._server.stdin.flush()
        self._pids.append(int(self._line()))
        return self._pids[-1]

    def _line(self) -> str:
        timer = threading.Timer(2 * LIMIT, self._server.kill)
        timer.start()
        try:
            assert self._server.stdout is not None
            return self._server.stdout.readline().strip()
        finally:
            timer.cancel()

    def close(self) -> None:
        for pid in self._pids:
            kill(pid)
        self._server.kill()
        self._server.communicate()
        self._log.close()


class Cluster:
    """A scheduler with workers, of which some come and go."""

    def __init__(self, forker: Forker, *, host: str = "127.0.0.1", worker_ttl: str = "60s") -> None:
        self._forker, self._host, self._ttl = forker, host, worker_ttl
        self.port = free_port(host)
        self.address = f"tcp://{host}:{self.port}"
        self.workers: list[int] = []
        self.start_scheduler()

    def start_scheduler(self) -> None:
        self.scheduler = self._forker.fork(
            "scheduler", port=self.port, host=self._host, worker_ttl=self._ttl
        )
        wait_until(lambda: listens(self._host, self.port))

    def add(self, *, memory: int = MEMORY, **arguments: object) -> int:
        """A worker more; returns its process."""
        name = f"w{len(self.workers)}"
        pid = self._forker.fork(
            "worker", address=self.address, name=name, memory=memory, **arguments
        )
        self.workers.append(pid)
        return pid

    def wait(self) -> None:
        """Until all workers have come."""
        with Client(self.address) as client:
            client.wait_for_workers(len(self.workers), timeout=LIMIT)

    def client(
        self, *arguments: object, output: Path, environ: dict[str, str] | None = None
    ) -> int:
        """`nnunet_octreenca predict` in a process of its own."""
        return self._forker.fork(
            "client",
            arguments=["predict", *map(str, arguments)],
            output=str(output),
            environ=environ,
        )

    def close(self) -> None:
        for pid in (*self.workers, self.scheduler):
            kill(pid)


def kill(pid: int) -> None:
    """SIGKILL, and wait until the process is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not running(pid))


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it may go between two looks
        return False


def wait_until(true: Callable[[], object], limit: float = LIMIT) -> None:
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def shared(out: Path, name: str) -> Path:
    """Where a run keeps one of its files beside results on a disk."""
    return DiskFiles(out).path(name)


def interrupt(found: Any, client: Client) -> None:
    """A tick that is Ctrl-C, once a case has ended."""
    if found.records:
        raise KeyboardInterrupt


class SharerDies:
    """A tick that kills a worker when several have left bands of a split case.

    Args:
        output: folder of the results.
        case: that is split.
        worker: process to kill.

    Attributes:
        seen: names of the parts that workers have exchanged.
    """

    def __init__(self, output: Path, case: str, worker: int) -> None:
        self._output, self._case, self._worker = output, case, worker
        self.seen: set[str] = set()

    def __call__(self, found: Any, client: Client) -> None:
        exchanged = self._output.glob(f".octreenca/cluster/*/{self._case}_*/*.npz")
        self.seen.update(path.name for path in exchanged)
        if len(self.seen) > 2 and running(self._worker):
            kill(self._worker)


def states(found: Any) -> dict[str, str]:
    """What became of each case of a run."""
    return {ended.case: ended.state for ended in found.records}


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def listens(host: str, port: int) -> bool:
    with socket.socket() as tried:
        tried.settimeout(1)
        return tried.connect_ex((host, port)) == 0


HOST = "10.213.97.1"
_BRIDGE = "octbr0"


@contextmanager
def namespaces(count: int) -> Iterator[list[dict[str, str]]]:
    """Network namespaces on one bridge, whose own address is `HOST`.

    Yields:
        `namespace` and `host` of each, as `Cluster.add` takes them.
    """
    places = []
    try:
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{HOST}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        for number in range(count):
            name, address = f"oct{number}", f"10.213.97.{10 + number}"
            _ip("netns", "add", name)
            places.append({"namespace": name, "host": address})
            _ip("link", "add", f"{name}h", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"{name}h", "master", _BRIDGE, "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield places
    finally:
        for place in places:
            _ip("netns", "delete", place["namespace"], check=False)
        _ip("link", "delete", _BRIDGE, check=False)


def cut(place: dict[str, str], off: bool = True) -> None:
    """Take a namespace off the network, or give it back."""
    _ip("link", "set", f"{place['namespace']}h", "down" if off else "up")


def no_namespaces() -> str:
    """Why there are none; empty where there are."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    name = f"octtry{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not allowed here ({made.stderr.strip()})"
    subprocess.run(["ip", "netns", "delete", name], check=False)
    return ""


def no_mounts() -> str:
    """Why a process cannot have mounts of its own; empty where it can."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return "unshare and mount are not installed"
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(
            ["unshare", "-m", "mount", "--bind", folder, folder], capture_output=True, text=True
        )
    return f"mounts are not allowed here ({tried.stderr.strip()})" if tried.returncode else ""


@contextmanager
def tiny_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of this size in the place of a folder, for all processes."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tiny", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=not check)
