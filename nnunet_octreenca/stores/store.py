"""A store behind a URL: what it holds, ranges of it, and objects written whole."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote

from nnunet_octreenca.errors import (
    EnvironmentMismatchError,
    InputError,
    OctreeNCAError,
    OutputError,
)
from nnunet_octreenca.libraries import import_optional
from nnunet_octreenca.stores.faults import requested
from nnunet_octreenca.stores.urls import keep_secret, last_name, protocols, shown

# An object is seen by others when it is whole, and not before.
_WHOLE_OBJECTS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "memory"}
_READ_ONLY = {"http", "https", "zip", "tar", "libarchive", "github", "data", "git"}
_ARCHIVES = {"zip", "tar", "libarchive"}
# What a store calls an object's version or its last change, the surest first.
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "content_md5", "CRC", "Last-Modified"),
    *("LastModified", "last_modified", "updated", "mtime", "created"),
)
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "sftp": "paramiko"}
_CHUNK = 16 << 20  # bytes of a request for a whole object
# Seconds without a byte; how long a whole object takes nobody knows.
_CONNECT, _SILENCE = 20, 60

_T = TypeVar("_T")


@dataclass(frozen=True)
class Entry:
    """A file or folder of a store.

    Attributes:
        path: as the store's library has it.
        name: its last part, or its place below the folder that was listed.
        size: bytes; None where the store does not say.
        version: changes with the content.
        is_folder: it is one.
        ranged: ranges of it can be read.
    """

    path: str
    name: str
    size: int | None
    version: str
    is_folder: bool
    ranged: bool


class Store:
    """What a URL leads to.

    Args:
        url: of a file or folder; also chained, as "zip://a.tif::s3://bucket/b.zip".
        kind: of the errors: `InputError` for what is read, `OutputError` for what is written.

    Attributes:
        shown: the URL without its secrets.

    Raises:
        EnvironmentMismatchError: fsspec, or what it needs for this URL, is not installed.
        OctreeNCAError: of `kind`: the URL is none that can be used.
    """

    def __init__(self, url: str, kind: type[OctreeNCAError] = InputError) -> None:
        keep_secret(url)
        self._url, self._kind = url, kind
        self.shown = shown(url)
        self._protocols = protocols(url)

    def __repr__(self) -> str:
        return f"Store({self.shown!r})"

    def __reduce__(self) -> Any:  # connections stay where they are
        return store_of, (self._url, self._kind)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return _filesystem(self._url, self._kind)

    @property
    def root(self) -> str:
        """Of the URL, as the store's library has it."""
        return self._opened[1]

    def below(self, name: str) -> str:
        """The path of what has a name below the URL."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def named(self, path: str) -> str:
        """What people call a path of this store."""
        root = self.root.rstrip("/")
        if path.rstrip("/") == root:
            return self.shown
        base = f"{root}/" if root else ""
        if not path.startswith(base):
            return f"{self.shown} ({shown(path)})"
        head, chain, rest = self.shown.partition("::")
        if not head.endswith("/"):
            head += "/"
        return f"{head}{shown(path.removeprefix(base))}{chain}{rest}"

    def beside(self, path: str, name: str) -> str | None:
        """The path of another file in a file's folder; None where a query belongs to the path."""
        if self._is_http:
            if "?" in path:
                return None
            name = quote(name)
        folder, slash, _ = path.rpartition("/")
        return f"{folder}{slash}{name}"

    def _do(self, path: str, request: Callable[[Any], _T], *, optional: bool = False) -> _T:
        filesystem = self._opened[0]
        send = partial(request, filesystem)
        return requested(send, self.named(path), self._kind, optional=optional)

    def info(self, path: str, *, optional: bool = False) -> Entry | None:
        """What lies at a path; None where nothing does.

        Args:
            path: as the store's library has it.
            optional: what may not be seen counts as missing.
        """

        def ask(filesystem: Any) -> Entry:
            found = self._entry(filesystem, filesystem.info(path), last_name(path))
            if found.ranged and self._is_http and found.size:
                found = self._probed(filesystem, found)
            return found

        try:
            return self._do(path, ask, optional=optional)
        except FileNotFoundError:
            return None

    def inside(self, path: str) -> list[Entry]:
        """What a folder holds, without what is in its folders; empty where there is none."""

        def ask(filesystem: Any) -> list[Entry]:
            filesystem.invalidate_cache()
            found = filesystem.ls(path, detail=True)
            return [self._entry(filesystem, one, last_name(str(one["name"]))) for one in found]

        try:
            entries = self._do(path, ask)
        except FileNotFoundError:
            return []
        base = path.rstrip("/")  # S3 shows a folder's own marker, HTTP what its page links to
        inside = f"{base}/" if base else ""
        return [
            entry
            for entry in entries
            if entry.name and entry.path.startswith(inside) and entry.path.rstrip("/") != base
        ]

    def walk(self, path: str) -> list[Entry]:
        """All files below a folder, `name` with the folders in between."""

        def ask(filesystem: Any) -> list[Entry]:
            filesystem.invalidate_cache()
            found = filesystem.find(path, detail=True)
            base = path.rstrip("/") + "/" if path.rstrip("/") else ""
            return [
                self._entry(filesystem, one, str(name).removeprefix(base))
                for name, one in found.items()
            ]

        try:
            return [entry for entry in self._do(path, ask) if not entry.is_folder]
        except FileNotFoundError:
            return []

    def read(self, entry: Entry, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end - 1`, fewer where the object is shorter by now.

        Raises:
            FileNotFoundError: it is no longer there.
            OctreeNCAError: the store does not give them.
        """

        def ask(filesystem: Any) -> bytes:
            if self._is_http:  # `cat_file` takes the whole of a server that ignores ranges
                with filesystem.open(entry.path, "rb", cache_type="none", size=entry.size) as file:
                    file.seek(begin)
                    return bytes(file.read(end - begin))
            return bytes(filesystem.cat_file(entry.path, start=begin, end=end))

        return self._do(entry.path, ask) if end > begin else b""

    def chunks(self, entry: Entry) -> Iterator[bytes]:
        """A whole object in pieces; each is asked for again while the store is busy.

        Raises:
            FileNotFoundError: it is no longer there.
            OctreeNCAError: the store does not give it.
        """
        if entry.ranged and entry.size is not None:
            for begin in range(0, entry.size, _CHUNK):
                yield self.read(entry, begin, min(begin + _CHUNK, entry.size))
            return
        options = {"block_size": 0} if self._is_http else {}
        with self._do(entry.path, lambda fs: fs.open(entry.path, "rb", **options)) as file:
            while data := self._do(entry.path, lambda fs: file.read(_CHUNK)):
                yield bytes(data)

    def put(self, local: Path, path: str) -> None:
        """Write a file, so that nobody sees a half of it.

        Raises:
            OctreeNCAError: the store does not take it.
        """
        size = local.stat().st_size

        def send(filesystem: Any) -> None:
            filesystem.put_file(str(local), path)

        def send_beside(filesystem: Any) -> None:
            place = PurePosixPath(path)
            beside = str(place.with_name(f".{place.name}.{uuid.uuid4().int}.tmp"))
            filesystem.makedirs(str(place.parent), exist_ok=True)
            try:
                filesystem.put_file(str(local), beside)
                filesystem.mv(beside, path)
            except BaseException:
                with suppress(Exception):
                    filesystem.rm_file(beside)
                raise

        whole = self._protocols[0] in _WHOLE_OBJECTS
        self._written(path, send if whole else send_beside)
        found = self.info(path)
        if found is None or (found.size is not None and found.size != size):
            raise self._kind(
                f"{self.named(path)} does not have the {size:,} bytes that were written; check "
                f"the store, and who else writes there"
            )

    def create(self, path: str, data: bytes) -> bool:
        """Write a small object unless there is one; whether it was not there.

        Raises:
            OctreeNCAError: the store does not take it.
        """
        try:
            self._written(path, lambda filesystem: filesystem.pipe_file(path, data, mode="create"))
        except FileExistsError:
            # A request whose answer got lost was done all the same.
            return self.read_small(path) == data
        return True

    def read_small(self, path: str) -> bytes | None:
        """A small object; None where there is none.

        Raises:
            OctreeNCAError: the store does not give it.
        """
        try:
            return self._do(path, lambda filesystem: bytes(filesystem.cat_file(path)))
        except FileNotFoundError:
            return None

    def write(self, path: str, data: bytes) -> None:
        """Write a small object, over what is there.

        Raises:
            OctreeNCAError: the store does not take it.
        """
        self._written(path, lambda filesystem: filesystem.pipe_file(path, data))

    def remove(self, path: str) -> None:
        """Remove an object; nothing happens where there is none.

        Raises:
            OctreeNCAError: the store does not allow it.
        """
        with suppress(FileNotFoundError):
            self._do(path, lambda filesystem: filesystem.rm_file(path))

    def _written(self, path: str, request: Callable[[Any], object]) -> None:
        try:
            self._do(path, request)
        except FileNotFoundError as error:
            raise self._kind(
                f"{self.named(path)} cannot be written: there is no such bucket or folder; create "
                f"it, or correct the URL"
            ) from error

    def require_readable(self, path: str) -> None:
        """Read a byte of a file, or of the first file of a folder; one that is gone counts as read.

        Raises:
            OctreeNCAError: the store does not give it.
        """
        found = self.info(path)
        if found is None or found.is_folder:
            found = next(iter(self.walk(path)), None)
        if found is not None and found.ranged:
            with suppress(FileNotFoundError):
                self.read(found, 0, 1)

    def require_writable(self) -> None:
        """Write and remove an object, rather than learn after hours that it cannot be done.

        Raises:
            OutputError: results cannot be written there.
        """
        if self._protocols[0] in _READ_ONLY:
            raise OutputError(
                f"{self.shown} can be read only; give a folder, or a store such as s3://, with -o"
            )
        probe = self.below(f".{uuid.uuid4().int}.tmp")
        try:
            self.write(probe, b"")
        finally:
            with suppress(OctreeNCAError):
                self.remove(probe)

    @property
    def _is_http(self) -> bool:
        return self._protocols[0] in ("http", "https")

    def _entry(self, filesystem: Any, found: dict[str, Any], name: str) -> Entry:
        size = found.get("size")
        parts = [found[key] for key in _VERSIONS if found.get(key) is not None]
        known = parts[0].isoformat() if parts and isinstance(parts[0], datetime) else parts[:1]
        return Entry(
            path=str(found["name"]),
            name=name,
            size=None if size is None else int(size),
            version=f"{size} {known}",
            is_folder=found.get("type") == "directory",
            ranged=self._protocols[0] not in _ARCHIVES and size is not None,
        )

    def _probed(self, filesystem: Any, entry: Entry) -> Entry:
        """An HTTP server's entry: many have no ranges and say nothing of it."""
        try:
            with filesystem.open(entry.path, "rb", cache_type="none", size=entry.size) as file:
                file.seek(1)  # the beginning is what any server can give
                file.read(1)
                return entry
        except ValueError:
            return Entry(entry.path, entry.name, entry.size, entry.version, False, False)


_opening = threading.Lock()


def _filesystem(url: str, kind: type[OctreeNCAError]) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it; archives are opened here already."""
    core = import_optional("fsspec.core", "cluster")
    target = protocols(url)[-1]
    if target in ("s3", "s3a"):
        import_optional("s3fs", "cluster")

    def connect() -> tuple[Any, Any]:
        try:
            with _opening:
                return core.url_to_fs(url, **_options(url))  # type: ignore[no-any-return]
        except ImportError as error:
            package = _PACKAGES.get(target)
            advice = f"run pip install {package}" if package else "install what fsspec needs for it"
            raise EnvironmentMismatchError(
                f"{shown(url)} cannot be reached: {target}:// needs a package that is not "
                f"installed; {advice}"
            ) from error

    try:
        filesystem, path = requested(connect, shown(url), kind)
    except FileNotFoundError:
        raise kind(f"{shown(url)} does not exist; check bucket, path and spelling") from None
    if hasattr(filesystem, "retries"):
        filesystem.retries = 1  # ours are enough
    return filesystem, str(path)


def _options(url: str) -> dict[str, Any]:
    """What fsspec is told: time limits, no retries and no listings of its own."""
    options: dict[str, Any] = {}
    names = protocols(url)
    if names[-1] in ("s3", "s3a"):
        own: dict[str, Any] = {
            "config_kwargs": {
                "connect_timeout": _CONNECT,
                "read_timeout": _SILENCE,
                "retries": {"total_max_attempts": 1},
            },
            "use_listings_cache": False,
        }
    elif names[-1] in ("http", "https"):
        aiohttp = import_optional("aiohttp", "cluster")
        limit = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
        own = {"client_kwargs": {"timeout": limit}, "use_listings_cache": False}
    else:
        return options
    if len(names) == 1:
        return own
    return {names[-1]: own}


@lru_cache(maxsize=64)
def store_of(url: str, kind: type[OctreeNCAError] = InputError) -> Store:
    """The store of a URL, the same one whenever it is asked for: connections are kept."""
    return Store(url, kind)
