"""What `nnunet_octreenca predict` says while it runs and afterwards."""

import argparse
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from nnunet_octreenca import __version__
from nnunet_octreenca.files import write_json
from nnunet_octreenca.inference.ensemble import Progress
from nnunet_octreenca.integration.nnunet_version import nnunet_version
from nnunet_octreenca.prediction.case import Job
from nnunet_octreenca.resources import peak_memory


class Report:
    """One run.

    Attributes:
        done: what `segment_case` said, a case each.
        failed: case, files, kind of error and sentence.
        left_out: cases that were finished before.
        seconds: of the whole run.
    """

    def __init__(self, job: Job, arguments: argparse.Namespace) -> None:
        self._job = job
        self._arguments = {
            key: value for key, value in vars(arguments).items() if key not in ("run", "command")
        }
        self._began = datetime.now(timezone.utc)
        self.done: list[dict[str, Any]] = []
        self.failed: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self.seconds = 0.0

    def content(self) -> dict[str, Any]:
        """What goes into the JSON file: enough to repeat the run and to trust it."""
        job, model = self._job, self._job.model
        return {
            "versions": {
                "nnunet_octreenca": __version__,
                "nnunetv2": nnunet_version(),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
            },
            "began": self._began.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "arguments": self._arguments,
            "model": {
                "folder": str(model.folder),
                "folds": list(model.folds),
                "trainer": model.trainer,
                "plans": model.plans,
                "configuration": model.configuration,
            },
            "device": _device_name(job.device),
            "engine": model.networks[0].engine().name,
            "threads": torch.get_num_threads(),
            "precision": "float16" if job.half else "float32",
            "seeds": list(job.seeds),
            "mirror_axes": list(job.mirror_axes),
            "peak_bytes": peak_memory(),
            "peak_device_bytes": (
                torch.cuda.max_memory_allocated(job.device) if job.device.type == "cuda" else 0
            ),
            "cases": self.done,
            "failed": self.failed,
            "left_out": self.left_out,
        }

    def write(self, path: Path) -> None:
        """The JSON file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.content())

    def summary(self) -> list[str]:
        """The last lines: how many cases, how long, and what failed."""
        parts = [f"{len(self.done)} done"]
        if self.left_out:
            parts.append(f"{len(self.left_out)} finished before")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        head = f"{', '.join(parts)}, {self.seconds:.1f} s, peak {peak_memory() / 1e9:.2f} GB"
        return [head, *(f"  {entry['case']}: {entry['sentence']}" for entry in self.failed)]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()})"


@contextmanager
def progress_bar(
    name: str, quiet: bool
) -> Iterator[tuple[Callable[[str], object], Progress | None]]:
    """A bar with rate and remaining time on a terminal; lines that are told go above it.

    Yields:
        what prints a line, and what is told of progress (None where there is no bar).
    """
    if quiet or not sys.stderr.isatty():
        yield print, None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as Bar,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{name}: looking", total=None, rate="")

        def progress(stage: str, rows: int) -> None:
            if stage == "total":
                bar.update(task, total=rows)
            elif stage == "read":
                bar.update(task, description=f"{name}: reading")
            else:
                bar.update(task, description=f"{name}: segmenting", advance=rows)
                speed = bar.tasks[0].speed
                bar.update(task, rate=f"{speed:.0f} rows/s" if speed else "")

        yield bar.console.print, progress
