"""A data set as far as its files go, for `compare --methods`, and what its trainings leave."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import SimpleITK as sitk

from nnunet_octreenca.comparison.trained.jobs import Job, Request, make_request, plan_jobs
from nnunet_octreenca.comparison.trained.methods import find_methods
from nnunet_octreenca.comparison.trained.variants import parse_ablations
from nnunet_octreenca.files import write_json

DATASET = "Dataset907_Small"
CASES = {0: ["a", "b"], 1: ["c"]}
"""Held out, of each fold."""

SHAPE = (8, 12, 10)
METHODS_USED = ("OctreeNCA", "TinyUNet")


def describe(place: Path, dataset: str, training: int) -> tuple[Path, Path]:
    """nnU-Net's folders in `place`, with a description of MRI with one organ.

    Returns:
        The raw and the preprocessed folder of the data set.
    """
    for name in ("raw", "preprocessed", "results"):
        (place / name / dataset).mkdir(parents=True)
    described = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": training,
        "file_ending": ".nii.gz",
    }
    raw, preprocessed = place / "raw" / dataset, place / "preprocessed" / dataset
    for base in (raw, preprocessed):
        write_json(base / "dataset.json", described)
    return raw, preprocessed


def save_cuboid(path: Path, size: int) -> None:
    """A label map with a cuboid of this many rows."""
    path.parent.mkdir(exist_ok=True, parents=True)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:6, 2 : 2 + size, 2:8] = 1
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(path))


def jobs_of(
    *methods: str, folds: tuple[str, ...] = ("0",), ablate: tuple[str, ...] = (), **options: Any
) -> tuple[Request, list[Job]]:
    """What `compare --methods` would train."""
    request = make_request(
        "907", "3d_fullres", folds, find_methods(methods), parse_ablations(ablate), **options
    )
    return request, plan_jobs(request)


def finish(job: Job, size: int = 5, dice: float = 0.8, cases: list[str] | None = None) -> None:
    """What a training and its validation leave."""
    validation = job.folder / "validation"
    for case in cases or CASES[job.fold]:
        save_cuboid(validation / f"{case}.nii.gz", size)
    (job.folder / "checkpoint_final.pth").touch()
    write_json(validation / "summary.json", {"foreground_mean": {"Dice": dice}})
    write_json(
        job.folder / "training.json",
        {"seconds": 60.0, "iterations": 100, "parameters": 7040, "peak_bytes": 10**9,
         "device_peak_bytes": None, "curve": [[30.0, 0.5], [60.0, 0.6]]},
    )  # fmt: skip


class FakeModel:
    """Instead of a process with a model."""

    order: ClassVar[list[tuple[str, ...]]] = []

    def __init__(self, job: Job, device: str, log: Path) -> None:
        self.job = job

    def __enter__(self) -> "FakeModel":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def segment(self, files: list[str], out: Path, *, memory: bool = False) -> dict[str, Any]:
        assert all(Path(file).is_file() for file in files)
        self.order.append((self.job.name, out.name, *(["memory"] if memory else [])))
        own = self.job.name == "OctreeNCA"
        return {"seconds": 2.0 if own else 4.0, "network_seconds": 1.0,
                "voxels": 1000 if out.name == "b" else 10, "peak_bytes": 5 * 10**8,
                "network_bytes": 50_000 if own and memory else None,
                "device_peak_bytes": None}  # fmt: skip
