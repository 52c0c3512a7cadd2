"""Inference of several models side by side: same cases, methods in turn, cold apart from warm."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType

from nnunet_octreenca.comparison.trained.jobs import Job
from nnunet_octreenca.comparison.trained.running import Say, environment
from nnunet_octreenca.errors import OctreeNCAError
from nnunet_octreenca.files import JsonMapping, JsonObject

PREDICTION = "nnunet_octreenca.integration.prediction_job"


class MeasuringError(OctreeNCAError):
    """A process that was measured has ended."""


@dataclass
class Measured:
    """What a method's predictions took.

    Attributes:
        cold_seconds: from the start of the process to the first segmentation on the disk.
        warm: the answers to all cases after that.
        memory: the answer to the largest case, whose memory was measured.
    """

    cold_seconds: float = 0.0
    warm: list[JsonObject] = field(default_factory=list)
    memory: JsonObject = field(default_factory=dict)

    def record(self) -> JsonObject:
        """Keys of a method record."""
        grown = self.memory.get("network_bytes")
        found = {
            "cold_seconds": self.cold_seconds,
            "case_seconds": median(answer["seconds"] for answer in self.warm),
            "network_seconds": median(answer["network_seconds"] for answer in self.warm),
            "prediction_peak_bytes": max(answer["peak_bytes"] for answer in self.warm) or None,
            "device_peak_bytes": _most(self.warm, "device_peak_bytes"),
            "bytes_per_voxel": None if grown is None else grown / self.memory["voxels"],
        }
        return {key: value for key, value in found.items() if value is not None}


def _most(answers: Sequence[JsonMapping], key: str) -> float | None:
    return max((answer[key] for answer in answers if answer[key] is not None), default=None)


class Model:
    """A process with a trained model, which segments a case when it is asked to."""

    def __init__(self, job: Job, device: str, log: Path) -> None:
        self.job, self.log = job, log
        self._output = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", PREDICTION, str(job.model), str(job.fold), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            env=environment(),
        )

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._output):
            if stream is not None:
                stream.close()

    def segment(self, files: Sequence[str], out: Path, *, memory: bool = False) -> JsonObject:
        """The process' answer.

        Args:
            files: one a channel.
            out: without its ending.
            memory: measure the network's memory, at the cost of time.

        Raises:
            MeasuringError: it has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        question = json.dumps({"files": list(files), "out": str(out), "memory": memory}) + "\n"
        try:
            self._process.stdin.write(question.encode())
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = b""
        if not line:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise MeasuringError(
                f"{self.job.name} could not segment {out.name}: "
                f"{lines[-1] if lines else 'it printed nothing'} (all is in {self.log})"
            )
        answer: JsonObject = json.loads(line)
        return answer


def measure(
    jobs: Sequence[Job], cases: Mapping[str, Sequence[str]], folder: Path, device: str, say: Say
) -> dict[str, Measured]:
    """Segment cases with one model of each method, in turn.

    Every method starts once and segments the first case, one method after another. Then all
    cases are segmented, each by all methods before the next, in an order that rotates. The
    largest is segmented once more, to measure memory.

    Args:
        jobs: one of each method, finished.
        cases: held-out cases to their image files.
        folder: for segmentations and logs.
        device: to predict on.
        say: told what is done.

    Raises:
        MeasuringError: a model cannot segment a case.
    """
    found = {job.name: Measured() for job in jobs}
    first = next(iter(cases))
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with ExitStack() as running:
        models = []
        for number, job in enumerate(jobs):
            out = folder / "segmentations" / str(number)
            out.mkdir(parents=True, exist_ok=True)
            begun = time.monotonic()
            log = folder / "logs" / f"{job.model.name}_prediction.log"
            model = running.enter_context(Model(job, device, log))
            model.segment(cases[first], out / first)
            found[job.name].cold_seconds = time.monotonic() - begun
            models.append((model, out))
        for turn, (case, files) in enumerate(cases.items()):
            say(f"timing {case}")
            start = turn % len(models)
            for model, out in models[start:] + models[:start]:
                found[model.job.name].warm.append(model.segment(files, out / case))
        voxels = [answer["voxels"] for answer in found[jobs[0].name].warm]
        largest = list(cases)[voxels.index(max(voxels))]
        for model, out in models:
            answer = model.segment(cases[largest], out / largest, memory=True)
            found[model.job.name].memory = answer
    return found
