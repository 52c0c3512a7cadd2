"""A very large case whose bands several workers compute.

The worker that has the case computes the coarsest levels once and leaves them in the run's folder;
bands of rows follow as tasks, which leave their labels there. It computes those bands itself that
nobody has begun: a case comes to its end on a single worker too, and waits for nobody for ever.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.bands import Rows
from nnunet_octreenca.cluster.limits import within
from nnunet_octreenca.errors import WorkerError
from nnunet_octreenca.files import atomic_write
from nnunet_octreenca.hashes import stamp
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.images.companions import all_files
from nnunet_octreenca.images.open_image import open_channels
from nnunet_octreenca.inference.ensemble import Progress
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.prediction.segmentation import Segmentation
from nnunet_octreenca.preprocessing.statistics import ImageStatistics
from nnunet_octreenca.waiting import wait_limit

if TYPE_CHECKING:
    from distributed import Client, Future

Submit = Callable[["Client", "BandTask"], "Future[Any]"]
"""Gives a band to the cluster."""

_POLL = 0.2  # seconds
_CLIENT = 30.0  # seconds for a worker to become a client
_BANDS_EACH = 3  # of a worker: the last ones to end are not waited for long


@dataclass(frozen=True)
class BandTask:
    """What another worker needs to compute some rows of a case.

    Attributes:
        case: its files, as any worker finds them.
        stamp: of the files that the worker of the case reads.
        folder: for what is exchanged.
        rows: of what the networks see.
        statistics: of the image.
    """

    case: Case
    stamp: str
    folder: Path
    rows: Rows
    statistics: ImageStatistics

    @property
    def path(self) -> Path:
        """Of the labels."""
        return self.folder / f"{self.rows.first}_{self.rows.end}.npz"

    @property
    def begun(self) -> Path:
        """There while, and after, somebody computes it."""
        return self.path.with_suffix(".begun")

    @property
    def taken(self) -> bool:
        """Whether somebody computes it, or has."""
        return self.path.exists() or self.begun.exists()


def compute_band(
    task: BandTask, case: Case, model: Model, options: Options, progress: Progress
) -> None:
    """Segment a band and leave its labels in the folder.

    Not where somebody has begun it, or where the image has changed.

    Args:
        task: which.
        case: its files on this machine.
        model, options: of the run.
        progress: told of every band that is read.

    Raises:
        OctreeNCAError: the image cannot be read.
        OSError: the folder cannot be written to, or is gone because the case is finished.
    """
    if task.taken or stamp(all_files(case.files)) != task.stamp:
        return
    task.begun.touch()
    source = open_channels(
        case.files, channels=model.channels, mpp=options.mpp, series=options.series
    )
    try:
        segmentation = Segmentation(source, model, options, task.statistics)
        _compute(task, segmentation, _load(task.folder / "coarse.npz"), progress)
    finally:
        source.close()


class Split:
    """Stands for `Segmentation.run`, with the help of other workers.

    Args:
        case: its files, as any worker finds them.
        run_folder: of the run, which all workers see.
        workers: how many may help.
        submit: gives a band to the cluster.
        stamp: of the files.
    """

    def __init__(
        self, case: Case, run_folder: Path, workers: int, submit: Submit, stamp: str
    ) -> None:
        self._case, self._workers, self._submit, self._stamp = case, workers, submit, stamp
        # Another one once the image has changed.
        self._folder = run_folder / f"{case.name}_{stamp[:12]}"

    def __call__(self, segmentation: Segmentation, progress: Progress | None) -> Pixels:
        """The labels in the image's own grid: the bits of `Segmentation.run`."""
        bands = segmentation.bands(_BANDS_EACH * self._workers)
        if len(bands) < 2:
            return segmentation.run(progress)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "coarse.npz"
        if not path.exists():  # a worker that died may have left it
            _save(path, segmentation.coarse(progress))
        statistics = segmentation.prepared.statistics
        tasks = [
            BandTask(self._case, self._stamp, self._folder, band, statistics) for band in bands
        ]
        for task in tasks:
            task.begun.unlink(missing_ok=True)
        client, futures = self._submitted(tasks)
        try:
            parts = self._parts(tasks, futures, segmentation, progress or _silent)
            labels = segmentation.assembled(parts)
        finally:
            if client is not None:
                with suppress(WorkerError):  # they find the folder gone
                    within(_CLIENT, lambda: client.cancel(futures, force=True), "the scheduler")
        shutil.rmtree(self._folder, ignore_errors=True)
        return labels

    def _submitted(self, tasks: Sequence[BandTask]) -> "tuple[Client | None, list[Future[Any]]]":
        from distributed import get_client

        try:
            client = get_client(timeout=_CLIENT)
            return client, [self._submit(client, task) for task in tasks]
        except (OSError, ValueError):  # the scheduler is out of reach: this worker does it alone
            return None, []

    def _parts(
        self,
        tasks: Sequence[BandTask],
        futures: "Sequence[Future[Any]]",
        segmentation: Segmentation,
        progress: Progress,
    ) -> Iterator[Pixels]:
        """The labels of all bands in order."""
        coarse = _load(self._folder / "coarse.npz")
        for number, task in enumerate(tasks):
            since = monotonic()
            while not task.path.exists():
                # The last ones are the last that others come to.
                untaken = [each for each in reversed(tasks) if not each.begun.exists()]
                # Also where another task had it before, and died.
                ended = not futures or futures[number].status != "pending"
                if untaken:
                    untaken[0].begun.touch()
                    _compute(untaken[0], segmentation, coarse, progress)
                elif ended or monotonic() - since > wait_limit():
                    _compute(task, segmentation, coarse, progress)
                else:
                    sleep(_POLL)
                    progress("segment", 0)  # hears whether to stop
            (labels,) = _load(task.path)
            yield labels


def _compute(
    task: BandTask,
    segmentation: Segmentation,
    coarse: Sequence[NDArray[np.uint8]],
    progress: Progress,
) -> None:
    try:
        _save(task.path, [segmentation.rows(task.rows, coarse, progress)])
    except BaseException:
        with suppress(OSError):
            task.begun.unlink(missing_ok=True)
        raise


def _save(path: Path, arrays: Sequence[Pixels]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, *arrays)


def _load(path: Path) -> list[NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return [file[f"arr_{number}"] for number in range(len(file.files))]


def _silent(stage: str, rows: int) -> None:
    pass
