"""What one run at a time writes to a store: the counterpart of `locks` without a disk."""

import json
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict

from nnunet_octreenca.errors import LockedError, OctreeNCAError
from nnunet_octreenca.files import JsonObject, load_json
from nnunet_octreenca.locks import LIMIT, Holder, has_gone, this_process
from nnunet_octreenca.stores.store import Store

HEARTBEAT = 60.0
"""Seconds between two times that a holder says it is there."""


class StoreLock:
    """An object that says who is at something; it is made only where there is none.

    A holder writes the time into it every minute. One that was silent for `locks.LIMIT` seconds, or
    whose process was one of this machine and has ended, is gone, and the lock is taken from it.
    Clocks may differ by less than that.

    Args:
        store: of the results.
        path: of the object.
        subject: what is locked, for people.
        purpose: what this process does, for people.

    Raises:
        LockedError: (`with`) another run holds it.
        OutputError: (`with`) the store cannot be written to.
    """

    def __init__(
        self, store: Store, path: str, subject: str, purpose: str = "a prediction"
    ) -> None:
        self._store, self._path, self._subject = store, path, subject
        self._us = this_process(purpose, uuid.uuid4().hex)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="store lock", daemon=True)

    def __enter__(self) -> "StoreLock":
        if not self._store.create(self._path, self._content()):
            holder = self._holder()
            if holder is not None and not _is_over(holder):
                raise LockedError(
                    f"{self._subject} is in use by {holder.get('purpose', 'a prediction')} "
                    f"(process {holder.get('pid')} on {holder.get('host')}); wait until it has "
                    f"ended, or delete {self._store.named(self._path)} if it is gone"
                )
            if self._holder() == holder:  # nobody else has just taken it
                self._store.remove(self._path)
            if not self._store.create(self._path, self._content()):
                raise LockedError(f"{self._subject} is used by several runs; try again later")
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join(1)
        with suppress(OctreeNCAError):
            if self._is_ours():
                self._store.remove(self._path)

    def require_held(self) -> None:
        """Raise if another run has taken the lock.

        Raises:
            LockedError: it has, or the lock was removed.
        """
        if not self._is_ours():
            raise LockedError(
                f"{self._subject} is no longer locked by this process: another one took the lock "
                f"while this one gave no sign of life; run it again"
            )

    def _content(self) -> bytes:
        return json.dumps({**asdict(self._us), "alive": time.time()}).encode()

    def _holder(self) -> JsonObject | None:
        data = self._store.read_small(self._path)
        try:
            content = None if data is None else load_json(data.decode())
        except ValueError:
            return None
        return content if isinstance(content, dict) else None

    def _is_ours(self) -> bool:
        holder = self._holder()
        return holder is not None and holder.get("token") == self._us.token

    def _beat(self) -> None:
        while not self._end.wait(HEARTBEAT):
            with suppress(OctreeNCAError):  # a store that does not answer is told later
                if self._is_ours():
                    self._store.write(self._path, self._content())


def _is_over(content: JsonObject) -> bool:
    """Whether a holder has ended, or said nothing for too long."""
    about = {name: value for name, value in content.items() if name != "alive"}
    try:
        if time.time() - float(content.get("alive", 0)) > LIMIT:
            return True
        return has_gone(Holder(**about))
    except (TypeError, ValueError):  # another release's
        return False
