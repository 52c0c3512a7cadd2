"""What went wrong with a store: worth another try or not, and as a sentence."""

import asyncio
import errno
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from nnunet_octreenca.errors import EnvironmentMismatchError, OctreeNCAError, first_line
from nnunet_octreenca.stores.urls import AZURE, protocols, redact

TRIES = 6
"""Of every request, before it is given up."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 16.0
"""Seconds before the second try; doubled for each further one."""

_BUSY = {408, 425, 429, 500, 502, 503, 504}  # HTTP
_BUSY_ERRNO = {
    getattr(errno, name)
    for name in ("EBUSY", "EREMOTEIO", "ETIMEDOUT", "ECONNRESET", "ECONNREFUSED", "EPIPE")
    if hasattr(errno, name)
}
# Of aiohttp, botocore, gcsfs and Azure's libraries, which need not be installed.
_CONNECTION = {
    *("ClientConnectionError", "ClientPayloadError", "ServerTimeoutError", "FSTimeoutError"),
    *("HTTPClientError", "EndpointConnectionError", "ResponseStreamingError"),
    *("IncompleteReadError", "ConnectionClosedError", "ReadTimeoutError", "ConnectTimeoutError"),
    *("ServiceRequestError", "ServiceResponseError", "TransportError"),
}
_UNKNOWN_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
_UNKNOWN_CREDENTIALS |= {"DefaultCredentialsError", "NoAuthTokenError", "TokenRetrievalError"}

_T = TypeVar("_T")


class StoreFault(Exception):
    """What a library said of a store, without secrets; the cause of one of our errors."""


class BusyFault(StoreFault):
    """The same where the store did not answer."""


def requested(
    request: Callable[[], _T],
    url: str,
    kind: type[OctreeNCAError],
    *,
    optional: bool = False,
) -> _T:
    """The result of a request to a store, which is repeated while the store is busy.

    Args:
        request: is called up to `TRIES` times.
        url: what is read or written, as people may see it.
        kind: of the error that is raised.
        optional: what may not be seen is as good as not there: S3 says "denied" of objects that
            are missing to those who may not list a bucket.

    Raises:
        FileNotFoundError: nothing is there; who calls knows what that means.
        FileExistsError: the request was to create what is there.
        OctreeNCAError: of `kind`, one sentence; no library's error passes, which could hold a
            signed URL.
    """
    began = time.monotonic()
    for attempt in range(TRIES):
        try:
            return request()
        except (OctreeNCAError, KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            causes = list(_causes(error))
            if _any_status(causes, {404, 410}) or (
                isinstance(error, FileNotFoundError) and not _refused(causes) and not _busy(causes)
            ):
                raise FileNotFoundError(errno.ENOENT, "nothing is there", url) from None
            if optional and _refused(causes):
                raise FileNotFoundError(errno.ENOENT, "may not be seen", url) from None
            if isinstance(error, FileExistsError):
                raise FileExistsError(errno.EEXIST, "exists already", url) from None
            fault = BusyFault(_said(causes))
            if not _busy(causes):
                raise _sentence(causes, url, kind) from StoreFault(str(fault))
        if attempt + 1 < TRIES:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)
            time.sleep(pause * random.uniform(0.5, 1.0))
    raise kind(
        f"{url} did not answer {TRIES} requests within {time.monotonic() - began:.0f} s "
        f"({fault}); try again later with --continue"
    ) from fault


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from: fsspec wraps what its libraries say."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        # aiohttp, gcsfs, Azure's
        names = ("status", "code", "status_code")
        found = next((value for name in names if (value := getattr(error, name, None))), None)
    return found if isinstance(found, int) else None


def _any_status(causes: list[BaseException], wanted: set[int]) -> bool:
    return any(_status(error) in wanted for error in causes)


def _busy(causes: list[BaseException]) -> bool:
    if _any_status(causes, _BUSY):
        return True
    if any(base.__name__ == "ClientSSLError" for e in causes for base in type(e).__mro__):
        return False  # a certificate does not get better
    return any(
        isinstance(error, (asyncio.TimeoutError, TimeoutError, ConnectionError))
        or (isinstance(error, OSError) and error.errno in _BUSY_ERRNO)
        or any(base.__name__ in _CONNECTION for base in type(error).__mro__)
        for error in causes
    )


def _refused(causes: list[BaseException]) -> bool:
    return _any_status(causes, {401, 403}) or any(
        isinstance(error, PermissionError) for error in causes
    )


def _sentence(causes: list[BaseException], url: str, kind: type[OctreeNCAError]) -> OctreeNCAError:
    names = {base.__name__ for error in causes for base in type(error).__mro__}
    said = _said(causes)
    azure = protocols(url)[-1] in AZURE and "Must provide either a connection_string" in said
    if names & _UNKNOWN_CREDENTIALS or azure:
        return EnvironmentMismatchError(
            f"{url} cannot be reached without credentials ({said}); {_credentials(url)}"
        )
    if _refused(causes):
        return kind(
            f"access to {url} is denied ({said}); {_credentials(url)} of a user who may do this"
        )
    return kind(f"{url} cannot be used ({said})")


def _credentials(url: str) -> str:
    if protocols(url)[-1] in ("s3", "s3a"):
        return "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if protocols(url)[-1] in ("gs", "gcs"):
        return "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`"
    if protocols(url)[-1] in AZURE:
        return (
            "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and "
            "AZURE_STORAGE_ACCOUNT_KEY"
        )
    return "give credentials in the environment or in fsspec's configuration"


def _said(causes: list[BaseException]) -> str:
    """The first line of the error that knows most, without secrets."""
    error = next((one for one in causes if _status(one) is not None), causes[0])
    line = next((part.strip() for part in str(error).splitlines() if part.strip()), "")
    status = _status(error)
    if status is not None and getattr(error, "message", None):
        # aiohttp names the URL; Azure's library adds lines
        line = f"{status} {first_line(getattr(error, 'message'))}"  # noqa: B009
    elif isinstance(error, OSError) and error.strerror:
        line = error.strerror
    return redact(f"{type(error).__name__}: {line}" if line else type(error).__name__)
