"""Cases segmented in a child process, whose crash ends one case and not the run."""

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nnunet_octreenca.errors import OctreeNCAError

if TYPE_CHECKING:
    from nnunet_octreenca.images.cases import Case
    from nnunet_octreenca.inference.ensemble import Progress
    from nnunet_octreenca.prediction.folder import Outcome, Run

_PATIENCE = 10.0  # seconds for a child to remove what is half written


class CrashError(OctreeNCAError):
    """The process that segmented a case has died."""


@contextmanager
def isolated(run: "Run", prepare: "Callable[[], Run]") -> "Iterator[Callable[..., object]]":
    """What stands in for `run.segment`: the same, in a child process that is replaced if it dies.

    Args:
        run: gets what became of every case.
        prepare: makes an equal run in the child; it must be picklable.
    """
    with tempfile.TemporaryDirectory(prefix="octreenca_") as folder:
        worker = _Worker(run, prepare, Path(folder) / "crash.txt")
        try:
            yield worker.segment
        finally:
            worker.end()


class _Worker:
    def __init__(self, run: "Run", prepare: "Callable[[], Run]", crash: Path) -> None:
        self._run, self._prepare, self._crash = run, prepare, crash
        self._process: Any = None
        self._connection: Connection | None = None

    def segment(
        self, case: "Case", *, tell: Callable[[str], object], progress: "Progress | None" = None
    ) -> None:
        """As `Run.segment`.

        Raises:
            OctreeNCAError: the case failed, whatever with; `failed` has it.
        """
        self._begin()
        self._send(case, (case, self._run.last_round, progress is not None))
        while True:
            what, content = self._receive(case)
            if what == "ended":
                break
            if what == "tell":
                tell(content)
            elif progress is not None:
                progress(*content)
        self._run.take(case, content, tell)
        if content.failed is not None:
            raise OctreeNCAError(content.failed.sentence)

    def _begin(self) -> None:
        if self._process is not None and self._process.is_alive():
            return
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._prepare, str(self._crash)), name="octreenca case"
        )
        self._process.start()
        theirs.close()

    def _send(self, case: "Case", content: object) -> None:
        assert self._connection is not None
        try:
            self._connection.send(content)
        except OSError as error:
            self._crashed(case, error)

    def _receive(self, case: "Case") -> Any:
        assert self._connection is not None
        try:
            return self._connection.recv()
        except (EOFError, OSError) as error:
            self._crashed(case, error)

    def _crashed(self, case: "Case", error: BaseException) -> NoReturn:
        from nnunet_octreenca.prediction.folder import Failure

        self._process.join(_PATIENCE)
        how = _how_it_ended(self._process.exitcode)
        where = self._crash.read_text(errors="replace") if self._crash.exists() else ""
        self._drop()
        self._run.failed.append(Failure(case.name, case.file_names(), "CrashError", how, where))
        with suppress(OctreeNCAError):
            self._run.clean(case)
        raise CrashError(how) from error

    def end(self) -> None:
        """Let the child remove what is half written, then end it."""
        if self._process is None:
            return
        if self._connection is not None:
            self._connection.close()  # which it takes for the end
        self._process.join(0 if sys.exc_info()[0] else _PATIENCE)
        for stop in (self._process.terminate, self._process.kill):
            if self._process.is_alive():
                stop()
                self._process.join(_PATIENCE)
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._process.close()
        self._process = self._connection = None


def _how_it_ended(code: int | None) -> str:
    """An exit code as a sentence."""
    if code is not None and code < 0:
        with suppress(ValueError):
            name = signal.Signals(-code).name
            how = f"the process that segmented it was ended by {name}"
            if name == "SIGKILL":
                return f"{how}, most likely because memory ran out; give less with --memory"
            return f"{how}: a library crashed on this image, which is probably damaged"
    return f"the process that segmented it ended with exit code {code}"


def _serve(connection: Connection, prepare: "Callable[[], Run]", crash: str) -> None:
    """The child: cases come in; what is told, progress and what became of them go out."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    _end_with_parent()
    with Path(crash).open("w") as written:
        faulthandler.enable(written)
        try:
            run = prepare()
            while True:
                case, run.last_round, watched = connection.recv()
                connection.send(("ended", _one(run, case, connection, watched)))
        except (EOFError, BrokenPipeError, KeyboardInterrupt):
            pass  # the parent has ended, or ends and says why
        finally:
            faulthandler.disable()


def _one(run: "Run", case: "Case", connection: Connection, watched: bool) -> "Outcome":
    def tell(line: str) -> None:
        connection.send(("tell", line))

    def progress(stage: str, rows: int) -> None:
        connection.send(("progress", (stage, rows)))

    return run.attempt(case, tell=tell, progress=progress if watched else None)[0]


def _end_with_parent() -> None:
    """End, cleanly, when the parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
