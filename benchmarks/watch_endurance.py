"""A day of a drop folder's traffic in minutes: does `predict --watch` grow, or lose a case?

    python benchmarks/watch_endurance.py --json > endurance.json
    python benchmarks/watch_endurance.py --cases 200

The service runs with a clock of its own, which its pauses put forward. Files arrive at random
times, a tenth of them in two halves; one in fifty is damaged and sent again later. Images and
results are fetched six hours after they came, as a department would. In the middle the service
ends and a new one begins. Memory, open handles and threads are noted every hour of the day.
"""

import argparse
import io
import json
import random
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.prediction.drop_folder import DropFolder
from nnunet_octreenca.prediction.drop_service import DropService
from nnunet_octreenca.prediction.earlier import Destination
from nnunet_octreenca.prediction.folder import Run
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.prediction.service_files import EventLog, open_handles
from nnunet_octreenca.resources import resident_memory

HOUR = 3600.0
_KEPT = 6 * HOUR
_POLL, _SETTLE = 5.0, 20.0


@dataclass(frozen=True)
class Sample:
    """What the process held at one hour of the day."""

    hour: float
    cases: int
    memory_bytes: int
    handles: int
    threads: int


class Day:
    """The traffic, and the clock that it runs on.

    Args:
        inputs, results: the folders.
        cases: that arrive.
        hours: in which they do.
    """

    def __init__(self, inputs: Path, results: Path, cases: int, hours: float) -> None:
        self.inputs, self.results, self.hours = inputs, results, hours
        self.now, self.samples = 0.0, list[Sample]()
        self.stop, self._draw = threading.Event(), random.Random(0)
        self._stop_at, self._next_sample = hours * HOUR / 2, HOUR
        self.sent, self.damaged = 0, 0
        self._order = 0
        self._due: list[tuple[float, int, str, Path, bytes]] = []
        for number in range(cases):
            self._plan(number, self._draw.uniform(0, hours * HOUR))
        heapify(self._due)

    def _plan(self, number: int, when: float) -> None:
        path, whole = self.inputs / f"case_{number}.png", _picture(number)
        if number % 50 == 7:
            self.damaged += 1
            self._add(when, "write", path, whole[:40])
            when += 0.5 * HOUR
        if number % 10 == 3:
            self._add(when, "write", path, whole[: len(whole) // 2])
            self._add(when + 0.7 * _SETTLE, "append", path, whole[len(whole) // 2 :])
        else:
            self._add(when, "write", path, whole)
        self._add(when + _KEPT, "fetch", path, b"")

    def _add(self, when: float, what: str, path: Path, content: bytes) -> None:
        self._order += 1
        self._due.append((when, self._order, what, path, content))

    def clock(self) -> float:
        """Seconds since midnight."""
        return self.now

    def pause(self, seconds: float) -> None:
        """Put the clock forward; what is due meanwhile happens."""
        self.now += seconds
        while self._due and self._due[0][0] <= self.now:
            when, order, what, path, content = heappop(self._due)
            if what == "fetch" and path.exists() and not self._is_done(path):
                heappush(self._due, (when + HOUR, order, what, path, content))
            elif what == "fetch":
                self._fetch(path)
            else:
                with path.open("ab" if what == "append" else "wb") as file:
                    file.write(content)
                self.sent += what == "write"
        if self.now >= self._next_sample:
            self._sample()
            self._next_sample += HOUR
        if self.now >= self._stop_at:
            self._stop_at = self.hours * HOUR + _KEPT + 2 * HOUR
            self.stop.set()

    def _is_done(self, path: Path) -> bool:
        return (self.results / ".octreenca" / f"{path.stem}.json").exists()

    def _fetch(self, path: Path) -> None:
        for file in (
            path,
            self.results / path.name,
            self.results / "overlays" / f"{path.stem}_overlay.png",
        ):
            file.unlink(missing_ok=True)

    def _sample(self) -> None:
        done = len(list((self.results / ".octreenca").glob("[!.]*.json")))
        self.samples.append(
            Sample(
                round(self.now / HOUR, 2), done, resident_memory(), open_handles(),
                threading.active_count(),
            )
        )  # fmt: skip


def _picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(1, 255, (24, 28, 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


@contextmanager
def endured(cases: int, hours: float, folder: Path) -> Iterator[tuple[Day, list[dict]]]:
    """Run the day in an empty folder; the traffic and the log's events."""
    inputs, results, log = folder / "in", folder / "out", folder / "events.jsonl"
    inputs.mkdir()
    model = load_model(model_folder(folder / "model", steps=1))
    day = Day(inputs, results, cases, hours)
    for _ in range(2):  # the second one goes on after the restart
        day.stop.clear()
        run = Run(model, Destination(results, resume=True), Options(mirror=False))
        drops = DropFolder(
            inputs, channels=model.channels, output=results, settle=_SETTLE,
            close_after=2 * _SETTLE, clock=day.clock,
        )  # fmt: skip
        DropService(
            run, drops, EventLog(log), stop=day.stop, poll=_POLL, clock=day.clock, pause=day.pause
        ).serve()
    yield day, [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def result(day: Day, events: list[dict], cases: int) -> dict:
    """Figures of a day, and `faults`: sentences about what should not be."""
    done = [event["case"] for event in events if event["event"] == "done"]
    failed = [event["case"] for event in events if event["event"] == "failed"]
    faults = []
    if sorted(done) != sorted(f"case_{number}" for number in range(cases)):
        faults.append(f"{cases} cases were sent, {len(done)} done, {len(set(done))} of them once")
    if len(failed) != day.damaged:
        faults.append(f"{day.damaged} damaged files were sent and {len(failed)} noted")
    # The first hours fill caches; what is held later must not grow.
    steady = [sample for sample in day.samples if sample.hour >= _KEPT / HOUR]
    steady = steady or day.samples
    growth = steady[-1].memory_bytes - steady[0].memory_bytes
    handles = max(sample.handles for sample in steady) - steady[0].handles
    return {
        "cases": cases,
        "damaged": day.damaged,
        "done": len(done),
        "failed": len(failed),
        "memory_growth_bytes": growth,
        "handles_growth": handles,
        "faults": faults,
        "samples": [asdict(sample) for sample in day.samples],
    }


def main() -> int:
    """Run the day and print what was measured; 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    began = perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        endured(arguments.cases, arguments.hours, Path(folder)) as (day, events),
    ):
        found = result(day, events, arguments.cases)
    found["seconds"] = round(perf_counter() - began, 1)
    found["hours"] = arguments.hours
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        for sample in found["samples"]:
            print(
                f"{sample['hour']:5.1f} h  {sample['cases']:6} cases  "
                f"{sample['memory_bytes'] / 1e6:8.1f} MB  {sample['handles']} handles"
            )
        print({key: value for key, value in found.items() if key != "samples"})
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
