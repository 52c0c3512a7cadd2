"""What a run did, as a JSON file and as the last lines on the terminal."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.files import JsonObject, write_json
from nnunet_octreenca.hashes import content_hash
from nnunet_octreenca.prediction.folder import Run
from nnunet_octreenca.prediction.identity import device_name, environment
from nnunet_octreenca.resources import peak_memory
from nnunet_octreenca.stores.urls import redact

FORM = 1
"""Of the report; raised where older code would misread it."""


def report(run: Run, arguments: Mapping[str, object]) -> JsonObject:
    """What goes into the JSON file: enough to repeat the run and to trust it.

    Args:
        run: that has ended.
        arguments: what it was called with.
    """
    model, options = run.model, run.options
    return {
        "form": FORM,
        "versions": dict(run.identity.versions),
        "began": run.began.isoformat(timespec="seconds"),
        "seconds": round(run.seconds, 3),
        "arguments": {
            name: redact(value) if isinstance(value, str) else value
            for name, value in arguments.items()
        },
        "working_folder": str(Path.cwd()),
        "model": {
            "folder": str(model.folder),
            "folds": list(model.folds),
            "trainer": model.trainer,
            "plans": model.plans,
            "configuration": model.configuration,
            "sha256": run.identity.model,
            "files": {
                path.relative_to(model.folder).as_posix(): content_hash([path])
                for path in model.files
            },
        },
        "options": asdict(options),
        "settings": dict(run.identity.settings),
        "environment": environment(),
        "device": device_name(model.device),
        "device_type": model.device.type,
        "engine": run.identity.versions["engine"],
        "threads": torch.get_num_threads(),
        "precision": "float16" if options.float16 else "float32",
        "seeds": list(options.seeds_of(model)),
        "mirror_axes": list(options.mirror_axes_of(model)),
        "peak_bytes": _peak(run),
        "peak_device_bytes": (
            torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else 0
        ),
        "cases": [asdict(case) for case in run.done],
        "failed": [asdict(failure) for failure in run.failed],
        "left_out": run.left_out,
        "finished_before": [asdict(record) for record in run.before],
    }


def write_report(
    path: Path, run: Run, arguments: Mapping[str, object], more: Mapping[str, object] | None = None
) -> None:
    """Write the JSON file, whole or not at all.

    Args:
        path: of the file.
        run, arguments: as for `report`.
        more: entries beside, or instead of, those of `report`.

    Raises:
        OutputError: it cannot be written.
    """
    content = {**report(run, arguments), **(more or {})}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}); give another --report") from error


def summary(run: Run) -> list[str]:
    """The last lines: how many cases, how long, and what failed."""
    parts = [f"{len(run.done)} done"]
    if run.left_out:
        parts.append(f"{len(run.left_out)} finished before")
    if run.failed:
        parts.append(f"{len(run.failed)} failed")
    head = f"{', '.join(parts)}, {run.seconds:.1f} s, peak {_peak(run) / 1e9:.2f} GB"
    return [head, *(f"  {failure.case}: {failure.sentence}" for failure in run.failed)]


def _peak(run: Run) -> int:
    """Bytes of this process, or of the child that segmented, whichever took more."""
    return max(run.peak_bytes, peak_memory())
