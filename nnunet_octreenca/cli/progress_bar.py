"""The bar that `nnunet_octreenca predict` shows."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_octreenca.inference.ensemble import Progress


@contextmanager
def progress_bar(
    name: str, quiet: bool
) -> Iterator[tuple[Callable[[str], object], "Progress | None"]]:
    """A bar with rate and remaining time on a terminal; printed lines appear above it.

    Yields:
        what prints a line, and what takes progress (None where there is no bar).
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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{name}: looking", total=None, rate="")

        def progress(stage: str, units: int) -> None:
            if stage == "total":
                bar.update(task, total=units)
            elif stage == "read":
                bar.update(task, description=f"{name}: reading")
            else:
                bar.update(task, description=f"{name}: segmenting", advance=units)
                speed = bar.tasks[0].speed
                bar.update(task, rate=f"{speed:.0f} rows/s" if speed else "")

        yield partial(bar.console.print, markup=False, highlight=False), progress
