"""What the demo shows while it runs: one line per stage, and how far a training has come."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# share of the stage that is over (0 to 1, None if unknown), and what to show next to it
Show = Callable[[float | None, str], None]


class Screen:
    """One line per stage; on a terminal with a bar and the seconds, live."""

    def __init__(self, stages: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self.stages, self.number = stages, 0
        console = Console()
        self.live = console.is_terminal
        self.progress = Progress(
            SpinnerColumn("line", finished_text=" "),  # the one spinner that is plain ASCII
            TextColumn("{task.description}"),
            BarColumn(20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            disable=not self.live,
        )

    def __enter__(self) -> "Screen":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    @contextmanager
    def stage(self, title: str) -> Iterator[Show]:
        """The next stage: gives a function that shows how far it is."""
        self.number += 1
        begun = time.monotonic()
        name = f"{self.number}/{self.stages} {title}"
        task = self.progress.add_task(name, total=None, detail="")
        said = ""

        def show(share: float | None, detail: str) -> None:
            nonlocal said
            said = detail
            total = None if share is None else 1.0
            self.progress.update(task, total=total, completed=share or 0.0, detail=detail)

        if not self.live:
            print(name, flush=True)
        yield show
        show(1.0, said)
        if not self.live:
            print(f"    {time.monotonic() - begun:.0f} s  {said}".rstrip(), flush=True)


class TrainingProgress:
    """Follows a trainer with a time budget by what it prints.

    Attributes:
        iterations, seconds: of the training, once it is over.
    """

    def __init__(self, minutes: float) -> None:
        self.budget = 60 * minutes
        self.begun: float | None = None
        self.epoch = self.said = ""
        self.iterations: int | None = None
        self.seconds: int | None = None

    def read(self, line: str) -> None:
        """Take note of a line.

        >>> progress = TrainingProgress(2)
        >>> progress.read("2026-01-01 10:00:00.0: Epoch 3 ")
        >>> progress.read("10:00:01: Pseudo dice [np.float32(0.25), np.float32(0.5)] ")
        >>> progress.read("10:00:02: time budget over: 80 iterations in 121 s ")
        >>> progress.state(), progress.iterations, progress.seconds
        ((1.0, 'validating; epoch 3, pseudo Dice 0.25 0.50'), 80, 121)
        """
        if "Using device" in line:  # the last before the budget begins
            self.begun = time.monotonic()
        elif found := re.search(r"Epoch (\d+) *$", line):
            self.epoch = found[1]
        elif "Pseudo dice" in line:
            values = re.findall(r"nan|\d*\.\d+", line.partition("Pseudo dice")[2])
            dice = " ".join(f"{float(value):.2f}" for value in values)
            self.said = f"epoch {self.epoch}, pseudo Dice {dice}"
        elif found := re.search(r"time budget over: (\d+) iterations in (\d+) s", line):
            self.iterations, self.seconds = int(found[1]), int(found[2])

    def state(self) -> tuple[float | None, str]:
        """Share of the budget that is over (None before it begins), and the last epoch's Dice."""
        if self.iterations is not None:
            return 1.0, f"validating; {self.said}"
        if self.begun is None:
            return None, "starting"
        return min((time.monotonic() - self.begun) / self.budget, 1.0), self.said
