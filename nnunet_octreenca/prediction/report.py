"""What a run did, as a JSON file and as the last lines on the terminal."""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from nnunet_octreenca import __version__
from nnunet_octreenca.files import JsonObject, write_json
from nnunet_octreenca.integration.nnunet_version import nnunet_version
from nnunet_octreenca.prediction.folder import Run
from nnunet_octreenca.resources import peak_memory


def report(run: Run, arguments: Mapping[str, object]) -> JsonObject:
    """What goes into the JSON file: enough to repeat the run and to trust it.

    Args:
        run: that has ended.
        arguments: what it was called with.
    """
    model, options = run.model, run.options
    return {
        "versions": {
            "nnunet_octreenca": __version__,
            "nnunetv2": nnunet_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "began": run.began.isoformat(timespec="seconds"),
        "seconds": round(run.seconds, 3),
        "arguments": dict(arguments),
        "model": {
            "folder": str(model.folder),
            "folds": list(model.folds),
            "trainer": model.trainer,
            "plans": model.plans,
            "configuration": model.configuration,
        },
        "device": _device_name(model.device),
        "engine": model.networks[0].engine().name,
        "threads": torch.get_num_threads(),
        "precision": "float16" if options.float16 else "float32",
        "seeds": list(options.seeds_of(model)),
        "mirror_axes": list(options.mirror_axes_of(model)),
        "peak_bytes": peak_memory(),
        "peak_device_bytes": (
            torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else 0
        ),
        "cases": [asdict(case) for case in run.done],
        "failed": [asdict(failure) for failure in run.failed],
        "left_out": run.left_out,
    }


def write_report(path: Path, run: Run, arguments: Mapping[str, object]) -> None:
    """Write the JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report(run, arguments))


def summary(run: Run) -> list[str]:
    """The last lines: how many cases, how long, and what failed."""
    parts = [f"{len(run.done)} done"]
    if run.left_out:
        parts.append(f"{len(run.left_out)} finished before")
    if run.failed:
        parts.append(f"{len(run.failed)} failed")
    head = f"{', '.join(parts)}, {run.seconds:.1f} s, peak {peak_memory() / 1e9:.2f} GB"
    return [head, *(f"  {failure.case}: {failure.sentence}" for failure in run.failed)]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()})"
