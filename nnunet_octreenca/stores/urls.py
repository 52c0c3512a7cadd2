"""URLs: which text is one, and how it is shown without what it keeps secret."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from nnunet_octreenca.errors import InputError

_HIDDEN = "***"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
AZURE = ("abfs", "abfss", "az", "adl", "wasb", "wasbs")
"""Protocols of Azure, which has a container before the @ of a URL, and no user."""
_USER = re.compile(rf"\b((?!(?:{'|'.join(AZURE)}):)[A-Za-z][A-Za-z0-9+.-]*://)[^\s/'\"]*@")
# Up to the next space or quotation mark, but for the sentence's own punctuation before it.
_QUERY = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*://[^\s?'\"<>]*)\?[^\s'\"<>]*?(?=[);:,.]*(?:[\s'\"<>]|$))"
)
_VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_CONNECTION_STRING"),
    *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_SECRET"),
)
_SHORTEST = 4  # characters of what is hidden wherever it stands; fewer would hide plain words

_secrets: set[str] = set()  # of the URLs that this process was given


def is_url(text: object) -> bool:
    """Whether a text is a URL, or a chain of them.

    >>> [is_url(text) for text in ("s3://b/a", "zip://a::/b.zip", "C:\\\\a", "a/b")]
    [True, True, False, False]
    """
    return isinstance(text, str) and _URL.match(text) is not None


def local_path(text: Path | str) -> Path | None:
    """The path on this machine's disks that a text is, also as file://...; None of other URLs.

    >>> local_path("file:///data/a%20b.svs"), local_path("s3://bucket/a.svs")
    (PosixPath('/data/a b.svs'), None)
    """
    if not isinstance(text, str) or not is_url(text):
        return Path(text)
    if "::" in text or not text.lower().startswith(("file://", "local://")):
        return None
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{redact(text)} names a machine; write file:///PATH with three slashes")
    return Path(unquote(parts.path))


def local_paths(places: Iterable[str], reason: str, instead: str) -> list[Path]:
    """The paths of folders, where no URLs of other machines will do.

    Args:
        places: paths or URLs.
        reason: why only folders will do, the beginning of the sentence.
        instead: what to do, its end.

    Raises:
        InputError: one is a URL of another machine.
    """
    found = []
    for place in places:
        path = local_path(place)
        if path is None:
            raise InputError(f"{reason}, and {shown(place)} is a URL; {instead}")
        found.append(path)
    return found


def absolute(place: Path | str) -> str:
    """A path, or the URL of a file in an archive on a disk, that means the same everywhere.

    >>> absolute("s3://bucket/in"), absolute("zip://a.tif::/data/b.zip")
    ('s3://bucket/in', 'zip://a.tif::/data/b.zip')
    """
    path = local_path(place)
    if path is not None:
        return str(path.absolute())
    *outer, last = str(place).split("::")
    return "::".join([*outer, last if is_url(last) else str(Path(last).absolute())])


def shown(url: str) -> str:
    """A URL for people, reports and errors: without user, password and query.

    >>> shown("https://me:word@host/a.svs?signature=0123")
    'https://***@host/a.svs?***'
    """
    return redact(url)


def redact(text: str) -> str:
    """A text in which URLs have neither users, passwords nor queries.

    The secrets of URLs that `keep_secret` was told of, and of the environment, are hidden
    wherever else they stand.
    """
    text = _QUERY.sub(rf"\1?{_HIDDEN}", _USER.sub(rf"\1{_HIDDEN}@", text))
    for secret in _secrets | {os.environ.get(name, "") for name in _VARIABLES}:
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, _HIDDEN)
    return text


def keep_secret(url: str) -> bool:
    """Hide what a URL keeps secret from now on, wherever `redact` finds it.

    Returns:
        Whether it has anything to hide.
    """
    found = _kept(url)
    _secrets.update(found)
    return bool(found)


def has_secrets(url: str) -> bool:
    """Whether a URL has a user, a password or a query.

    >>> has_secrets("https://me:word@host/a.svs"), has_secrets("s3://bucket/a.svs")
    (True, False)
    """
    return bool(_kept(url))


def _kept(url: str) -> set[str]:
    """What a URL keeps secret."""
    found: set[str] = set()
    for part in url.split("::"):
        pieces = urlsplit(part)
        user, _, _ = pieces.netloc.rpartition("@")
        if pieces.scheme in AZURE:
            user = ""
        found |= {user, user.partition(":")[2], unquote(user.partition(":")[2]), pieces.query}
        found |= {value for _, value in parse_qsl(pieces.query)}
        found |= {item.partition("=")[2] for item in pieces.query.split("&")}
    return found - {""}


def protocols(url: str) -> list[str]:
    """The protocols of a chain, the outermost first, in lower case.

    >>> protocols("zip://a.tif::s3://bucket/b.zip")
    ['zip', 's3']
    """
    return [part.partition("://")[0].lower() for part in url.split("::")]


def creates_once(url: str) -> bool:
    """Whether a store tells which of two that create an object at the same moment was first.

    >>> creates_once("s3://bucket/out"), creates_once("sftp://host/out")
    (True, False)
    """
    return protocols(url)[0] in ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")


def last_name(path: str) -> str:
    """The name of a file or folder that a URL, or a path of fsspec, ends with.

    >>> last_name("https://host/a%20b.svs?sig=1"), last_name("bucket/folder/"), last_name("s3://b")
    ('a b.svs', 'folder', 'b')
    """
    first = path.partition("::")[0]
    if first.startswith(("http://", "https://")):
        first = unquote(urlsplit(first).path)
    return first.rstrip("/").rpartition("/")[2]
