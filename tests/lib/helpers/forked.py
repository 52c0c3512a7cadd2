"""A scheduler, workers and clients as processes of their own, forked from one that has imported
everything: `python forked.py` reads one JSON object a line, and answers with the process' id.

Workers hold on to a case whose name has "slow" in it for a while, and a case whose name begins with
"poison" ends them as a crash or the kernel would. Workers that are to take long never end a band of
a case whose name begins with "long".
"""

import asyncio
import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SLOW = 0.3  # seconds for each time that a slow case tells of its progress

_NEW_MOUNTS, _NEW_NET = 0x00020000, 0x40000000


def scheduler(port: int, host: str = "127.0.0.1", worker_ttl: str = "60s") -> None:
    import dask
    from distributed import Scheduler

    dask.config.set({"distributed.scheduler.worker-ttl": worker_ttl})

    async def run() -> None:
        async with Scheduler(host=host, port=port, dashboard=False) as running:
            await running.finished()

    asyncio.run(run())


def worker(
    address: str,
    name: str,
    memory: int,
    threads: int = 1,
    namespace: str | None = None,
    host: str | None = None,
    version: str | None = None,
    read_only: str | None = None,
    tiny: dict[str, str] | None = None,
    full: str | None = None,
    long: bool = False,
    gpu: bool = False,
    resources: dict[str, float] | None = None,
    environ: dict[str, str] | None = None,
    missing: str | None = None,
) -> None:
    from distributed import Worker

    from nnunet_octreenca.prediction import identity

    os.environ.update(environ or {})
    if missing is not None:
        sys.modules[missing] = None  # type: ignore[assignment]
    if namespace is not None:
        _enter(namespace)
    if version is not None:
        identity.__version__ = version
    if read_only is not None:
        _own_mounts(
            ("mount", "--bind", read_only, read_only),
            ("mount", "-o", "remount,ro,bind", read_only),
        )
    if tiny is not None:
        options = f"size={tiny['size']}"
        _own_mounts(("mount", "-t", "tmpfs", "-o", options, "tiny", tiny["folder"]))
    if full is not None:
        _fill(full)
    if gpu:
        _find_a_gpu()
    _behave(long)

    async def run() -> None:
        async with Worker(
            address,
            name=name,
            nthreads=threads,
            memory_limit=memory,
            resources=resources,
            host=host,
            dashboard=False,
            death_timeout=300,
        ) as running:
            await running.finished()

    asyncio.run(run())


def client(arguments: list[str], output: str, environ: dict[str, str] | None = None) -> None:
    from nnunet_octreenca.cli.main import main

    os.environ.update(environ or {})
    with Path(output).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        os._exit(main(arguments))


def _behave(long: bool) -> None:
    from nnunet_octreenca.prediction import folder

    stock = folder.segment_case

    def segment_case(case, *arguments, progress=None, **options):
        if case.name.startswith("poison"):
            os.kill(os.getpid(), signal.SIGKILL)
        if long and case.name.startswith("long"):
            time.sleep(3600)

        def slowly(stage: str, rows: int) -> None:
            if "slow" in case.name:
                time.sleep(SLOW)
            if progress is not None:
                progress(stage, rows)

        return stock(case, *arguments, progress=slowly, **options)

    folder.segment_case = segment_case


def _enter(namespace: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as file:
        if libc.setns(file.fileno(), _NEW_NET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def _find_a_gpu() -> None:
    """PyTorch says that there is one; the CPU computes what is sent to it."""
    import torch

    from nnunet_octreenca.cluster.settings import SentModel

    torch.cuda.is_available = lambda: True
    stock = SentModel.load
    SentModel.load = lambda self, folder, device: stock(self, folder, "cpu")


def _fill(what: str) -> None:
    """From now on the disk says so when the last file of a result is written."""
    from nnunet_octreenca.prediction import case

    def write_overlay(*arguments: object, **options: object) -> None:
        number = getattr(errno, what)
        raise OSError(number, os.strerror(number))

    case.write_overlay = write_overlay


def _own_mounts(*commands: tuple[str, ...]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "no mounts of its own")
    for command in (("mount", "--make-rprivate", "/"), *commands):
        subprocess.run(command, check=True)


def _serve() -> None:
    import s3fs  # noqa: F401
    import torch

    import nnunet_octreenca.cli.main
    import nnunet_octreenca.cluster.client
    import nnunet_octreenca.cluster.tasks
    import nnunet_octreenca.stores.faults

    torch.set_num_threads(1)
    nnunet_octreenca.stores.faults.FIRST_PAUSE = 0.01
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        kind = {"scheduler": scheduler, "worker": worker, "client": client}[wanted.pop("kind")]
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                kind(**wanted)
            finally:
                os._exit(1)
        print(pid, flush=True)


if __name__ == "__main__":
    _serve()
