"""moto's S3 in a thread, which counts what it sends and fails when a test wants it to."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

KEYS = {"AWS_ACCESS_KEY_ID": "AKIATESTTEST", "AWS_SECRET_ACCESS_KEY": "a+very/secret=key"}
_ERRORS = {
    403: ("AccessDenied", "Access Denied"),
    500: ("InternalError", "We encountered an internal error."),
    503: ("SlowDown", "Please reduce your request rate."),
}


class _Silent(WSGIRequestHandler):
    def log(self, *arguments: Any) -> None:
        pass


@cache
def the_server() -> "S3Server":
    """The one of this process: connections to it are kept."""
    return S3Server()


def empty_server(monkeypatch: pytest.MonkeyPatch) -> Iterator["S3Server"]:
    """The server of this process for one test, with its credentials in the environment."""
    server = the_server()
    server.empty()
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    yield server
    server.empty()


class S3Server:
    """The server, with one bucket called "bucket".

    Attributes:
        sent: bytes of objects' content by key.
        asked: (method, path) of all requests.
        fails: gets method and path of a request; a status to answer with, or None.
        refused: access keys that may nothing.
        keys_seen: access key to the number of its requests.
    """

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.asked: list[tuple[str, str]] = []
        self.fails: Callable[[str, str], int | None] = lambda method, path: None
        self.refused: set[str] = set()
        self.keys_seen: Counter[str] = Counter()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Silent
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        self.client.create_bucket(Bucket="bucket")

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path))
        _, _, signed = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")
        key = signed.partition("/")[0]
        self.keys_seen[key] += 1
        status = 403 if key in self.refused else self.fails(method, path)
        if status is not None:
            code, message = _ERRORS[status]
            length = int(environ.get("CONTENT_LENGTH") or 0)
            environ["wsgi.input"].read(length)
            start(f"{status} {code}", [("Content-Type", "application/xml")])
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            return [text.encode() if method != "HEAD" else b""]
        content = list(self._moto(environ, start))
        if method == "GET":
            self.sent[path] += sum(map(len, content))
        return content

    def forget(self) -> None:
        """Count from 0."""
        self.sent.clear()
        self.keys_seen.clear()
        self.asked.clear()

    @property
    def environ(self) -> dict[str, str]:
        """Variables with which its libraries find it."""
        return {
            **KEYS,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def upload(self, folder: Path, prefix: str) -> str:
        """Write all files of a folder; returns its URL."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"s3://bucket/{prefix}"

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        self.client.put_object(Bucket="bucket", Key=key, Body=data)

    def get(self, key: str) -> bytes:
        """An object's content."""
        return self.client.get_object(Bucket="bucket", Key=key)["Body"].read()

    def keys(self, prefix: str = "") -> list[str]:
        """Of all objects, sorted."""
        found = self.client.list_objects_v2(Bucket="bucket", Prefix=prefix)
        return sorted(one["Key"] for one in found.get("Contents", []))

    def empty(self) -> None:
        """Remove all objects, and what fails."""
        self.fails = lambda method, path: None
        self.refused.clear()
        for key in self.keys():
            self.client.delete_object(Bucket="bucket", Key=key)
        self.forget()
