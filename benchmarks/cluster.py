"""Prediction on dask workers: throughput, overhead per case, and the scheduler's memory.

    python benchmarks/cluster.py --json                        all three
    python benchmarks/cluster.py --only memory --json          one, beside the others' figures

Throughput: cases of the same size on 1, 2, ... worker processes of one thread each. Overhead: the
same cases on one worker against a plain loop in one process, as wall time and as processor time of
client, scheduler and worker together, which other programs disturb less; a case is made to take
about `--seconds`. Memory: the scheduler's, while tasks
that do nothing pass through it in windows as the cases of an archive do. All processes share this
machine's processors: what more workers bring ends where those are busy.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from distributed import Client
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.cluster import scheduling
from nnunet_octreenca.cluster.address import connected
from nnunet_octreenca.cluster.client import ClusterRun, Request
from nnunet_octreenca.cluster.journal import Ended
from nnunet_octreenca.cluster.scheduling import WINDOW, Scheduling
from nnunet_octreenca.cluster.session import wanted
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.integration.model import Model, load_model
from nnunet_octreenca.prediction.earlier import Destination
from nnunet_octreenca.prediction.folder import Failure, Outcome, Run
from nnunet_octreenca.prediction.forecast import Forecast
from nnunet_octreenca.prediction.options import Options

PLAIN = Options(mirror=False)
_START = 300.0  # seconds for a scheduler and workers to come up on a busy machine


@contextmanager
def cluster(workers: int):
    """A scheduler and workers of one thread each, as a user starts them; yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        command = [sys.executable, "-m", "dask"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
        options = ["--scheduler-file", str(file), "--no-dashboard"]
        processes = [subprocess.Popen([*command, "scheduler", "--port", "0", *options], **quiet)]
        try:
            _wait(file.exists)
            each = ["--nthreads", "1", "--memory-limit", "4GB", "--no-nanny"]
            processes += [
                subprocess.Popen([*command, "worker", *each, *options], **quiet)
                for _ in range(workers)
            ]
            with Client(scheduler_file=str(file), timeout=60) as client:
                client.wait_for_workers(workers, timeout=_START)
            yield str(file), [process.pid for process in processes]
        finally:
            for process in reversed(processes):
                process.kill()
                process.wait(60)


def _wait(true: Callable[[], bool]) -> None:
    end = time.monotonic() + _START
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("the scheduler did not start")
        time.sleep(0.1)


def pictures(folder: Path, count: int, side: int) -> Path:
    """A folder of noise."""
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"case_{number:03d}.png", compress_level=1)
    return folder


def side_of(model: Model, seconds: float, folder: Path) -> int:
    """Pixels of a square picture that takes about so long on one thread."""
    side = 512
    for number in range(3):
        source = pictures(folder / f"try_{number}", 1, side)
        took = in_one_process(model, source, folder / f"out_{number}")["seconds"]
        side = max(32, int(side * min(max((seconds / took) ** 0.5, 0.3), 3)) // 32 * 32)
    return side


def in_one_process(model: Model, source: Path, out: Path) -> dict[str, float]:
    """A plain loop over the cases."""
    run = Run(model, Destination(out), PLAIN, tell_once=lambda line: None)
    cases, began, used = run.cases(source), time.perf_counter(), time.process_time()
    for case in cases:
        run.segment(case, tell=lambda line: None)
    return {"seconds": time.perf_counter() - began, "processor": time.process_time() - used}


def on_cluster(
    model: Model, source: Path, out: Path, address: str, pids: Sequence[int]
) -> dict[str, Any]:
    """The same cases on a cluster of processes `pids`, a scheduler and workers.

    Time counts from where every worker may have ended a case: they end their first ones at about
    the same moment.
    """
    ends: list[tuple[float, float]] = []
    run = Run(model, Destination(out), PLAIN, tell_once=lambda line: None)

    def show(ended: Ended) -> None:
        ends.append((time.perf_counter(), _processor_time([*pids, os.getpid()])))

    with connected(address, None) as connection:
        on = ClusterRun(run, Request(address, threads=1), source, connection.client)
        on.segment(run.cases(source), show=show)
    assert not run.failed, run.failed
    begun = len(pids) - 1
    (first, used_then), (last, used) = ends[begun - 1], ends[-1]
    counted = len(ends) - begun
    return {
        "cases": len(ends),
        "seconds_a_case": (last - first) / counted,
        "processor_seconds_a_case": (used - used_then) / counted,
        "median_seconds_on_worker": float(np.median([ended.seconds for ended in on.records])),
    }


def _processor_time(pids: Sequence[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def throughput(
    model: Model, work: Path, workers: Sequence[int], count: int, side: int
) -> dict[str, Any]:
    """Cases a second against workers."""
    source, rows = pictures(work / "throughput", count, side), []
    for number in workers:
        with cluster(number) as (address, pids):
            found = on_cluster(model, source, work / f"workers_{number}", address, pids)
        rate = round(1 / found["seconds_a_case"], 3)
        rows.append({"workers": number, "cases_per_second": rate, **rounded(found)})
        print(rows[-1], flush=True)
    return {"side": side, "rows": rows}


def overhead(model: Model, work: Path, count: int, side: int, repeats: int) -> dict[str, Any]:
    """A case on one worker against one of a plain loop, in turn."""
    source = pictures(work / "overhead", count, side)
    loops, tasks = [], []
    with cluster(1) as (address, pids):
        for repeat in range(repeats):
            loop = in_one_process(model, source, work / f"loop_{repeat}")
            loops.append((loop["seconds"] / count, loop["processor"] / count))
            found = on_cluster(model, source, work / f"task_{repeat}", address, pids)
            tasks.append((found["seconds_a_case"], found["processor_seconds_a_case"]))
    plain, task = np.median(loops, axis=0), np.median(tasks, axis=0)
    return rounded(
        {
            "side": side,
            "cases": count,
            "repeats": repeats,
            "plain_seconds_a_case": float(plain[0]),
            "cluster_seconds_a_case": float(task[0]),
            "overhead": float(task[0] / plain[0] - 1),
            "plain_processor_seconds_a_case": float(plain[1]),
            "cluster_processor_seconds_a_case": float(task[1]),
            "overhead_in_processor_time": float(task[1] / plain[1] - 1),
        }
    )


def nothing(
    run: str, case: Case, expected: Forecast | None, alone: bool, helpers: int = 0
) -> Ended:
    """A case that is no work at all, with an answer of the usual kind."""
    return Ended(case.name, Outcome(failed=Failure(case.name, [], "nothing", "nothing")))


def no_plan(run: str, cases: Sequence[Case], shares: list[int]) -> list[None]:
    """What is not read has no plan."""
    return [None] * len(cases)


class _NoWorkers:
    """What `Scheduling` asks of workers that announce nothing."""

    shares, count = (1,), 1

    def keep_fresh(self) -> None:
        """They stay."""

    def at_work(self, keys: object) -> bool:
        """They are."""
        return True


def memory(tasks: int, window: int) -> dict[str, Any]:
    """The scheduler's peak while so many tasks pass through it."""
    stock = scheduling.tasks.segment, scheduling.tasks.plan
    scheduling.tasks.segment, scheduling.tasks.plan = nothing, no_plan
    cases = [Case(f"case_{number:06d}", (Path(f"/archive/{number:06d}.svs"),))
             for number in range(tasks)]  # fmt: skip
    peak, samples = 0, []
    try:
        with cluster(1) as (address, pids), connected(address, None) as connection:
            client = connection.client
            client.run(_announce)
            process = psutil.Process(pids[0])
            before = process.memory_info().rss
            used = [_processor_time([pid]) for pid in (*pids, os.getpid())]
            schedule = Scheduling(client, "memory", _NoWorkers(), window=window)
            began = time.perf_counter()
            done = 0
            for _ in schedule.outcomes(cases):
                done += 1
                if done % 1000 == 0:
                    samples.append(process.memory_info().rss)
                    peak = max(peak, samples[-1])
            seconds = time.perf_counter() - began
            used = [
                (_processor_time([pid]) - then) / done
                for pid, then in zip((*pids, os.getpid()), used, strict=True)
            ]
    finally:
        scheduling.tasks.segment, scheduling.tasks.plan = stock
    return {
        "tasks": done,
        "window": window,
        "scheduler_bytes_before": before,
        "scheduler_bytes_peak": peak,
        "scheduler_bytes_at_half": samples[len(samples) // 2],
        "scheduler_bytes_at_end": samples[-1],
        "tasks_per_second": round(done / seconds, 1),
        "processor_seconds_a_task": {
            name: round(each, 5)
            for name, each in zip(("scheduler", "worker", "client"), used, strict=True)
        },
    }


async def _announce(dask_worker: Any) -> None:
    await dask_worker.set_resources(**wanted("memory", 1))


def rounded(found: dict[str, Any]) -> dict[str, Any]:
    """Numbers as they are shown."""
    return {name: round(n, 4) if isinstance(n, float) else n for name, n in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("throughput", "overhead", "memory"), nargs="+")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a case, about")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--json", action="store_true", help="write docs/results/cluster.json")
    given = parser.parse_args()
    if given.cases <= max(given.workers):
        parser.error(f"--cases {given.cases} must be more than the workers")
    chosen = given.only or ("throughput", "overhead", "memory")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}

    def keep(name: str, measure: Callable[[], dict[str, Any]]) -> None:
        before = _load()
        figures = measure()
        load = {"processors": os.cpu_count(), "load_before": before, "load_after": _load()}
        found[name] = {**load, **figures}
        print(json.dumps({name: found[name]}, indent=4), flush=True)

    if "memory" in chosen:
        keep("memory", lambda: memory(given.tasks, given.window))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if {"throughput", "overhead"} & {*chosen}:
            model = load_model(model_folder(work / "model"))
            side = side_of(model, given.seconds, work)
        if "overhead" in chosen:
            keep("overhead", lambda: overhead(model, work, given.cases, side, given.repeats))
        if "throughput" in chosen:
            keep("throughput", lambda: throughput(model, work, given.workers, given.cases, side))
    if given.json:
        path = Path(__file__).parents[1] / "docs" / "results" / "cluster.json"
        others = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**others, **found}, indent=4) + "\n", encoding="utf-8")


def _load() -> float:
    return round(os.getloadavg()[0], 2)


if __name__ == "__main__":
    main()
