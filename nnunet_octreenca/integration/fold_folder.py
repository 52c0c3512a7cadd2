"""The folder of one fold: one training at a time, and files that are whole or not there."""

import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock

from nnunet_octreenca.errors import TrainingError
from nnunet_octreenca.files import JsonObject, atomic_write, remove_leftovers
from nnunet_octreenca.locks import FolderLock

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
# A picture takes half a second, an epoch of a small data set little more.
PICTURE_PATIENCE = 50
_BESIDE = ".progress_"  # begins the name of a folder that progress.png is drawn in


class FoldFolder:
    """The output folder of a fold.

    Args:
        path: the folder.
        fold: its name in messages.
        first: False for all but one of several processes that train together.
    """

    def __init__(self, path: Path | str, fold: int | str, first: bool) -> None:
        self.path = Path(path)
        self._subject = f"fold {fold} ({path})"
        self._first = first
        self._held = False

    @contextmanager
    def held(self, purpose: str) -> Iterator[None]:
        """Within, this process alone writes to the folder; calls may be nested.

        Args:
            purpose: "training" or "validation".

        Raises:
            LockedError: another process trains or validates this fold.
            OutputError: the folder cannot be written to.
            TrainingError: a file could not be written.
        """
        if self._held or not self._first:
            yield
            return
        with FolderLock(self.path, purpose, subject=self._subject):
            self._held = True
            self._remove_leftovers()
            try:
                yield
            except OSError as error:
                if error.errno not in _UNWRITABLE:
                    raise
                again = "--val" if purpose == "validation" else "--c"
                raise TrainingError(
                    f"the {purpose} of {self._subject} cannot be written ({error}). Checkpoints "
                    f"written before are whole: free some space and continue with {again}"
                ) from error
            finally:
                self._held = False

    def _remove_leftovers(self) -> None:
        """Of killed processes: there is no other process that could be writing them."""
        for folder in (self.path, self.path / "validation"):
            remove_leftovers(folder)
        for folder in self.path.glob(f"{_BESIDE}*"):
            shutil.rmtree(folder, ignore_errors=True)


def write_checkpoint(checkpoint: JsonObject, path: Path | str) -> None:
    """Write a checkpoint; whatever happens, the file is the old one or the new one.

    Raises:
        OSError: it cannot be written.
    """
    buffer = io.BytesIO()  # torch.save to a file says RuntimeError for a full disk
    torch.save(checkpoint, buffer)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())  # or a power failure may leave the new name and no content


@contextmanager
def atomic_json() -> Iterator[None]:
    """Within, nnU-Net's trainer writes JSON whole or not at all: all folds share plans.json."""

    def save_json(content: Any, file: Path | str, indent: int = 4, sort_keys: bool = True) -> None:
        text = json.dumps(content, indent=indent, sort_keys=sort_keys)
        with atomic_write(file) as temporary:
            temporary.write_text(text, encoding="utf-8")

    module: Any = stock
    before = module.save_json
    module.save_json = save_json
    try:
        yield
    finally:
        module.save_json = before


class ProgressPicture:
    """Draws progress.png, but spends no more than a fiftieth of the time on it.

    Args:
        draw: nnU-Net's, which takes a folder.
        log: told why there is no picture.
    """

    def __init__(self, draw: Callable[[str], None], log: Callable[[str], object]) -> None:
        self._draw, self._log = draw, log
        self._not_before = -inf
        self._stale: Path | str | None = None

    def __call__(self, folder: Path | str) -> None:
        """Draw, unless it was done a moment ago."""
        begun = monotonic()
        if begun < self._not_before:
            self._stale = folder
            return
        self._stale = None
        draw_progress(self._draw, folder, self._log)
        ended = monotonic()
        self._not_before = ended + PICTURE_PATIENCE * (ended - begun)

    def finish(self) -> None:
        """Draw what was put off."""
        if self._stale is not None:
            draw_progress(self._draw, self._stale, self._log)
            self._stale = None


def draw_progress(
    draw: Callable[[str], None], folder: Path | str, log: Callable[[str], object]
) -> None:
    """Draw progress.png beside and rename it; a picture that fails ends no training.

    Args:
        draw: nnU-Net's, which takes a folder.
        folder: of the fold.
        log: told why there is no picture.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=_BESIDE) as beside:
            draw(beside)
            Path(beside, "progress.png").replace(Path(folder, "progress.png"))
    except Exception as error:  # matplotlib's, or a full disk's
        log(f"WARNING: progress.png was not drawn: {type(error).__name__}: {error}")
