"""How one worker reaches the images and the results of a run, on disks and in stores."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Lock

from nnunet_octreenca.cluster.room import is_full, try_to_write
from nnunet_octreenca.cluster.settings import Settings
from nnunet_octreenca.errors import InputError, OctreeNCAError, OutputError
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.prediction.remote import Remote
from nnunet_octreenca.stores.faults import StoreFault
from nnunet_octreenca.stores.listing import StoredCase, local_case
from nnunet_octreenca.stores.scratch import Scratch
from nnunet_octreenca.stores.urls import local_path

HEADERS = 64 << 20
"""Bytes that may be fetched to read the headers of cases; what takes more is planned nowhere."""


class WorkerFiles:
    """The images and the results of a run, as one worker reaches them.

    Args:
        settings: of the run.
        place: folder for what is fetched.

    Attributes:
        remote: reaches cases and results; None where all lies on disks.
        folder: for results on this machine.
        disks: folders that are written to.

    Raises:
        OctreeNCAError: this worker cannot reach them.
    """

    def __init__(self, settings: Settings, place: Path) -> None:
        self.remote: Remote | None = None
        self._samples = [case for case in settings.samples if isinstance(case, StoredCase)]
        self._users, self._over, self._lock = 0, False, Lock()
        _require_folders(settings)
        self.folder = Path(settings.output)
        self.disks = [self.folder]
        if local_path(settings.source) is not None and local_path(settings.output) is not None:
            return
        self._scratch = Scratch(settings.scratch or place, settings.scratch_limit)
        self._headers = self._scratch.part(HEADERS)
        try:
            self.remote = Remote(settings.output, self._scratch)
            self.folder = self.remote.folder
            self.disks = [self.folder, self._scratch.folder]
            self._require_access()
        except BaseException:
            self._scratch.close()
            raise

    def _require_access(self) -> None:
        """Read a byte of some cases: one that nobody may read is no reason to do without a worker.

        Raises:
            OctreeNCAError: none of them can be read.
        """
        failure: OctreeNCAError | None = None
        for case in self._samples:
            try:
                case.store.require_readable(case.paths[0])
                return
            except OctreeNCAError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def cut_off(self, error: BaseException | None) -> str:
        """Why the next case would fail as one just did; empty where it may not.

        Credentials expire, and a machine may lose its way to a store.

        Args:
            error: that a case failed with.
        """
        if self.remote is None or not _is_of_store(error):
            return ""
        try:
            self._require_access()
            if self.remote.results is not None:
                self.remote.results.require_writable()
        except OctreeNCAError as said:
            return str(said)
        return ""

    def header(self, case: Case) -> AbstractContextManager[Case]:
        """Context in which a case's files are here, as far as its header needs them."""
        return _fetched(case, self._headers) if isinstance(case, StoredCase) else nullcontext(case)

    def image(self, case: Case) -> AbstractContextManager[Case]:
        """Context in which a case's files are here."""
        return _fetched(case, self._scratch) if isinstance(case, StoredCase) else nullcontext(case)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Context in which what was fetched stays, though the run ends."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
            self._remove_unused()

    def close(self) -> None:
        """Remove what was fetched, as soon as no case needs it."""
        self._over = True
        self._remove_unused()

    def _remove_unused(self) -> None:
        with self._lock:
            if self.remote is not None and self._over and not self._users:
                self.remote.close()


@contextmanager
def _fetched(case: StoredCase, scratch: Scratch) -> Iterator[Case]:
    with local_case(case, scratch) as (here, files):
        try:
            yield here
        except OctreeNCAError as error:
            raise type(error)(files.shown(str(error))) from error


def _require_folders(settings: Settings) -> None:
    source, folder = local_path(settings.source), local_path(settings.output)
    if source is not None and not source.exists():
        raise InputError(f"{source} is not there; give -i on a disk that all workers share")
    if folder is None:
        return
    try:
        # The client made it; a folder made here would be another machine's own.
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no {folder}")
        try_to_write(folder)
    except OSError as error:
        advice = "give -o on a disk that all workers share"
        if is_full(error):
            advice = f"free some space there, or {advice}"
        raise OutputError(f"{folder} cannot be written to ({error}); {advice}") from error


def _is_of_store(error: BaseException | None) -> bool:
    """Whether a store, or the way to it, is behind an error."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, StoreFault):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
