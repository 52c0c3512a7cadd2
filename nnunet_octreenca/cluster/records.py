"""One line a case: who segmented it, with what, how long, and what went wrong."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnunet_octreenca.cluster.journal import Ended
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.files import JsonObject, atomic_write
from nnunet_octreenca.libraries import import_optional

_NUMBERS = ("seconds", "reserved_bytes", "planned_bytes", "peak_bytes", "process")


def record(ended: Ended) -> JsonObject:
    """The line of a case, as JSON and Parquet hold it.

    Args:
        ended: the case.
    """
    outcome = ended.outcome
    done, failed, before = outcome.done, outcome.failed, outcome.before
    labels = done.labels_sha256 if done else before.labels if before else ""
    outputs = done.outputs if done else list(before.outputs) if before else []
    return {
        "case": ended.case,
        "state": ended.state,
        "files": done.files if done else failed.files if failed else [],
        "outputs": outputs,
        "labels_sha256": labels,
        "error": failed.error if failed else "",
        "sentence": failed.sentence if failed else "",
        "host": ended.host,
        "worker": ended.worker,
        "job": ended.job,
        "process": ended.process,
        "began": ended.began,
        "seconds": ended.seconds,
        "reserved_bytes": ended.reserved,
        "planned_bytes": done.planned_bytes if done else 0,
        "peak_bytes": outcome.peak_bytes,
        "versions": dict(ended.versions),
    }


def write_parquet(path: Path, records: Iterable[Ended]) -> None:
    """Write all lines as a Parquet file, whole or not at all; versions are columns.

    Raises:
        OutputError: it cannot be written.
        EnvironmentMismatchError: pyarrow is not installed.
    """
    arrow = import_optional("pyarrow", "cluster")
    parquet = import_optional("pyarrow.parquet", "cluster")
    rows = [_flat(record(ended)) for ended in records]
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["case"]
    columns = {name: [row.get(name) for row in rows] for name in names}
    fields = [(name, _type(arrow, name)) for name in names]
    table = arrow.table(columns, schema=arrow.schema(fields))
    try:
        with atomic_write(path) as temporary:
            parquet.write_table(table, temporary)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}); give another --report") from error


def _flat(row: JsonObject) -> JsonObject:
    versions = row.pop("versions")
    return {**row, **{f"version_{name}": found for name, found in versions.items()}}


def _type(arrow: Any, name: str) -> Any:
    if name in ("files", "outputs"):
        return arrow.list_(arrow.string())
    if name == "seconds":
        return arrow.float64()
    return arrow.int64() if name in _NUMBERS else arrow.string()
