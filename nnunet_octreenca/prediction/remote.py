"""Cases that are read from, or written to, a store: as on a disk, around `Run`."""

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from nnunet_octreenca.errors import InputError, OctreeNCAError, OutputError
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.prediction.case import CaseResult
from nnunet_octreenca.prediction.earlier import possible_outputs
from nnunet_octreenca.resources import FULL_DISK
from nnunet_octreenca.stores.faults import BusyFault
from nnunet_octreenca.stores.listing import StoredCase, local_case, stored_cases
from nnunet_octreenca.stores.results import CaseResults, StoredResults
from nnunet_octreenca.stores.scratch import Scratch
from nnunet_octreenca.stores.staged import StagedFiles
from nnunet_octreenca.stores.urls import local_path

_FULL = FULL_DISK | {errno.EFBIG}

_Tell = Callable[[str], object]


class Remote:
    """Where a run's images come from and its results go, if either is a URL.

    Args:
        output: folder or URL of the results.
        scratch: what is fetched, and results before they are put, lie there.

    Attributes:
        results: of the run in a store; None where they go to a folder.
        folder: where results are written on this machine.

    Raises:
        OutputError: the store cannot be written to.
        EnvironmentMismatchError: what reaches the store is not installed.
    """

    def __init__(self, output: Path | str, scratch: Scratch) -> None:
        self._scratch = scratch
        self._output = str(output)
        folder = local_path(output)
        self.results: StoredResults | None = None
        if folder is None:
            self.results = StoredResults(self._output, scratch)
            folder = self.results.folder
        self.folder: Path = folder

    def cases(
        self, url: str, channels: int, *, frames: bool, tell: _Tell | None
    ) -> list[StoredCase]:
        """The cases of a URL; see `stores.listing.stored_cases`."""
        return stored_cases(
            url, channels, self._scratch, frames=frames, output=self._output, tell=tell
        )

    @contextmanager
    def case(self, case: Case, tell: _Tell) -> Iterator["RemoteCase"]:
        """Context in which a case has its files, and what there is of its results, on this machine.

        What was fetched is removed at the end, however it comes.

        Args:
            case: of `cases`, or of a disk.
            tell: takes lines about it.

        Raises:
            LockedError: another run is at it.
            OctreeNCAError: the store cannot be read or written; or what fails inside, in words
                that name URLs instead of places on this machine.
        """
        with ExitStack() as stack:
            here, files, results = case, None, None
            if self.results is not None:
                outputs = possible_outputs(self.results.folder, case.name)
                results = stack.enter_context(self.results.case(case.name, outputs))
            if isinstance(case, StoredCase):
                here, files = stack.enter_context(local_case(case, self._scratch))
            remote = RemoteCase(here, files, results, tell)
            try:
                yield remote
            except OctreeNCAError as error:
                remote.require_unchanged(error)
                raise type(error)(remote.shown(str(error))) from error
            except OSError as error:
                said = remote.shown(str(error))
                if error.errno in _FULL:
                    elsewhere = f"another --scratch (now {self._scratch.place})"
                    if self.results is None and str(self._scratch.folder) not in str(error):
                        elsewhere = "another folder with -o"
                    raise OutputError(
                        f"{case.name}: the disk is full ({said}); free disk space, or give "
                        f"{elsewhere}"
                    ) from error
                raise InputError(f"{case.name} cannot be segmented ({said})") from error

    def close(self) -> None:
        """Remove the scratch folder; a second call does nothing."""
        self._scratch.close()


class RemoteCase:
    """A case while it is on this machine.

    Args:
        here: its files' places.
        files: of the store; None where they lie on a disk.
        results: of the store; None where they go to a disk.
        tell: takes lines about it.

    Attributes:
        here: its files' places.
    """

    def __init__(
        self,
        here: Case,
        files: StagedFiles | None,
        results: CaseResults | None,
        tell: _Tell,
    ) -> None:
        self.here, self._files, self._results, self._tell = here, files, results, tell

    def shown(self, text: str) -> str:
        """A text in which places on this machine are called by their URLs."""
        for place in (self._files, self._results):
            text = text if place is None else place.shown(text)
        return text

    def tell(self, line: str) -> None:
        """A line about the case."""
        self._tell(self.shown(line))

    def publish(self, done: CaseResult) -> CaseResult:
        """Put the results where they go; the result with URLs instead of places.

        Raises:
            LockedError: another run has taken the case.
            OutputError: the store does not take them.
        """
        if self._results is not None:
            self._results.publish()
        return replace(
            done,
            files=[self.shown(name) for name in done.files],
            outputs=[self.shown(name) for name in done.outputs],
            input_sha256={self.shown(name): found for name, found in done.input_sha256.items()},
        )

    def require_unchanged(self, error: OctreeNCAError) -> None:
        """Say that a file was changed while it was read, where that is why it failed.

        Raises:
            InputError: it was changed, or vanished.
        """
        if self._files is None or isinstance(error.__cause__, BusyFault):
            return
        changed = self._files.changed()
        if changed is not None:
            raise InputError(
                f"{changed} was changed while it was read, so that its labels may be of neither "
                f"state; run it again"
            ) from error


def remote_of(
    source: Path | str,
    output: Path | str,
    *,
    scratch: Path | str | None = None,
    scratch_limit: int | None = None,
) -> Remote | None:
    """What reaches the images and the results of a run; None where both are on a disk.

    Args:
        source: file, folder or URL of the images.
        output: folder or URL of the results.
        scratch: folder for what is fetched; the system's folder for temporary files if left out.
        scratch_limit: bytes that may be fetched at a time; what is free if left out.

    Raises:
        OctreeNCAError: a URL, or scratch, cannot be used.
    """
    if local_path(source) is not None and local_path(output) is not None:
        return None
    made = Scratch(scratch, scratch_limit)
    try:
        return Remote(output, made)
    except BaseException:
        made.close()
        raise


def results_folder(output: Path | str, remote: Remote | None) -> Path:
    """The folder of this machine that results are written to, in the end or at first."""
    if remote is not None:
        return remote.folder
    folder = local_path(output)
    assert folder is not None
    return folder
