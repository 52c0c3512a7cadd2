"""A trainer in this process, on plans written by hand: fast, no data loader."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import untrained_model

from nnunet_octreenca.planning import extend_plans

DATASET = "Dataset902_Hand"


def dataset_json(labels: dict, channels: int = 1, regions: list[int] | None = None) -> dict:
    """A data set's description."""
    described = {
        "channel_names": {str(c): f"channel {c}" for c in range(channels)},
        "labels": labels,
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    return described | ({"regions_class_order": regions} if regions else {})


@pytest.fixture
def stock_plans() -> Callable:
    """Makes plans as nnU-Net writes them: `stock_plans(shape, channels=1)`."""
    return functools.partial(untrained_model.stock_plans, dataset=DATASET)


@pytest.fixture
def make_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Build a trainer; keyword arguments beside `shape` and `labels` are settings."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))

    def make(
        shape: tuple[int, ...] = (8, 12, 10),
        labels: dict | None = None,
        regions: list[int] | None = None,
        channels: int = 1,
        trainer: str = "OctreeNCATrainer",
        plans: dict | None = None,
        batch_size: int = 2,
        **settings,
    ):
        from nnunet_octreenca.integration import time_budget, trainer_variants
        from nnunet_octreenca.integration import trainer as module

        labels = labels or {"background": 0, "first": 1, "second": 2}
        description = dataset_json(labels, channels, regions)
        stock = untrained_model.stock_plans(shape, channels, dataset=DATASET)
        name = next(iter(stock["configurations"]))
        foreground = {v for v in labels.values() if isinstance(v, int)} - {0, labels.get("ignore")}
        if plans is None:
            plans = extend_plans(
                stock,
                input_channels=channels,
                num_classes=len(regions) if regions else len(foreground) + 1,
                foreground_labels=len(foreground),
                has_regions=regions is not None,
                batch_size=batch_size,
                settings={"num_epochs": 4, "num_iterations_per_epoch": 5, **settings},
            )
        folder = tmp_path / "preprocessed" / DATASET / f"nnUNetPlans_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "case_0.b2nd").touch()
        (folder.parent / "dataset.json").write_text(json.dumps(description))
        variants = trainer_variants.VARIANTS | time_budget.TRAINERS
        found = getattr(module, trainer, None) or variants[trainer]
        return found(
            {**plans, "continue_training": False}, name, 0, description, torch.device("cpu")
        )

    return make


@pytest.fixture
def batch() -> Callable:
    """A batch like the data loader's, for a trainer."""

    def make(trainer, seed: int = 0) -> dict:
        rng = np.random.default_rng(seed)
        shape = trainer.configuration_manager.patch_size
        size = trainer.configuration_manager.batch_size
        manager = trainer.label_manager
        channels = len(trainer.dataset_json["channel_names"])
        data = torch.from_numpy(rng.normal(size=(size, channels, *shape)).astype(np.float32))
        if manager.has_regions:
            heads = manager.num_segmentation_heads + manager.has_ignore_label
            target = torch.from_numpy(rng.random((size, heads, *shape)) < 0.4)
        else:
            highest = max(manager.all_labels) + manager.has_ignore_label
            target = torch.from_numpy(rng.integers(0, highest + 1, (size, 1, *shape)))
            target = target.to(torch.int16)
        return {"data": data, "target": target, "keys": [f"case_{n}" for n in range(size)]}

    return make


@pytest.fixture
def on_noise(batch) -> Callable:
    """Let a trainer run on batches of noise, without preprocessed data."""

    def prepare(trainer):
        class Batches:
            def __next__(self):
                return batch(trainer)

            def close(self):
                pass

        trainer.get_dataloaders = lambda: (Batches(), Batches())
        base = Path(trainer.preprocessed_dataset_folder_base)
        (base / "dataset_fingerprint.json").write_text("{}")
        return trainer

    return prepare


@pytest.fixture
def registered() -> Iterator[None]:
    """Our classes known to nnU-Net during the test, afterwards what there was before."""
    from nnunet_octreenca.integration import register

    before = [shim for shim in register.shims() if shim.state != "missing"]
    register.register()
    yield
    if not before:
        register.unregister()


@pytest.fixture
def pillow_limit(tmp_path: Path) -> dict[str, str]:
    """Environment in which Pillow refuses pictures of over 200 pixels in every process."""
    folder = tmp_path / "limit"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "from PIL import Image\nImage.MAX_IMAGE_PIXELS = 100\n", encoding="utf-8"
    )
    return {"PYTHONPATH": str(folder)}
