"""What every writer shares: nothing half-written, errors that say what to do, label checks."""

import errno
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from nnunet_octreenca.arrays import Labels, Pixels
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.files import atomic_write, temporary_name
from nnunet_octreenca.resources import FULL_DISK, processors

Item = TypeVar("Item")
Result = TypeVar("Result")

_FULL = FULL_DISK | {errno.EFBIG}


def check_absent(path: Path | str) -> None:
    """Refuse to write over something.

    Raises:
        OutputError: a file or a folder of that name exists.
    """
    if os.path.lexists(path):
        raise OutputError(
            f"{path} already exists; use --overwrite to replace it, or choose another output folder"
        )


@contextmanager
def atomic_output(path: Path | str) -> Iterator[Path]:
    """`files.atomic_write` for results: what goes wrong with the disk becomes an OutputError."""
    with _disk_errors(Path(path)), atomic_write(path) as temporary:
        yield temporary


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Give an empty folder to write to; rename it to `path` when all went well, else remove it.

    What was at `path` before stays until then, and comes back if the rename fails.
    """
    path = Path(path)
    temporary, replaced = temporary_name(path), temporary_name(path, "old")
    try:
        with _disk_errors(path):
            temporary.mkdir()
            yield temporary
            if os.path.lexists(path):
                path.rename(replaced)
            try:
                temporary.rename(path)
            except BaseException:
                if os.path.lexists(replaced):
                    replaced.rename(path)
                raise
    finally:
        for leftover in (temporary, replaced):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if _number(error) in _FULL:
            raise OutputError(
                f"{path} cannot be written: the disk is full ({reason}); free some "
                f"space, or choose an output folder on another disk"
            ) from error
        raise OutputError(
            f"{path} cannot be written ({reason}); check that its folder exists and is writable"
        ) from error


def _number(error: BaseException | None) -> int | None:
    # Libraries wrap the system's error in their own, which loses its number.
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def check_axes(labels: Pixels, path: Path | str, axes: Sequence[int], kinds: str = "iu") -> None:
    """Refuse a label map that a format cannot hold.

    Args:
        labels: to be written.
        path: for the error.
        axes: numbers of axes that the format has.
        kinds: of numpy's types; "f" for maps of values.

    Raises:
        OutputError: the number of axes is none of `axes`, there is no pixel, or the labels are
            no integers.
    """
    if labels.dtype.kind not in kinds:
        raise OutputError(f"{path} cannot hold labels of type {labels.dtype}; give integers")
    if labels.ndim not in axes or labels.size == 0:
        raise OutputError(
            f"{path} cannot hold labels of shape {labels.shape}: it takes "
            f"{' or '.join(map(str, axes))} axes, none of length 0"
        )


def greatest_label(labels: Labels, path: Path | str) -> int:
    """The largest label.

    Raises:
        OutputError: a label is negative, or above 65535.
    """
    least, greatest = (0 if labels.dtype == np.uint8 else int(labels.min())), int(labels.max())
    if least < 0 or greatest > 65535:
        raise OutputError(
            f"{path} cannot hold labels from {least} to {greatest}; 0 to 65535 can be written"
        )
    return greatest


def class_name(names: dict[int, str], label: int) -> str:
    """What a label is called, "label 7" where the data set has no name for it."""
    return names.get(label, f"label {label}")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> Iterator[Result]:
    """`function` of every item, in their order, computed by threads a few items ahead.

    Args:
        function: what is computed; most of it must run without Python's lock.
        items: taken one by one, never more than two for each thread ahead of the results.
        workers: threads; by default one for each core.
    """
    workers = workers or processors()
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def halvings(shape: Sequence[int], longest: int) -> list[int]:
    """Steps 1, 2, 4, ... until the longest side of every `step`-th pixel is at most `longest`.

    >>> halvings((3, 700), 256)
    [1, 2, 4]
    """
    steps = [1]
    while -(-max(shape) // steps[-1]) > longest:
        steps.append(2 * steps[-1])
    return steps
