"""A data set of three cases for nnU-Net, as far as its files go."""

import json

import pytest
import untrained_model
from helpers.compared_methods import CASES, DATASET, SHAPE, describe, save_cuboid

from nnunet_octreenca.files import write_json
from nnunet_octreenca.planning import extend_plans


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A data set of three cases, planned and preprocessed, as far as files go."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    raw, folder = describe(tmp_path, DATASET, training=3)
    stock = untrained_model.stock_plans(SHAPE, dataset=DATASET)
    write_json(folder / "nnUNetPlans.json", stock)
    ours = extend_plans(
        stock, input_channels=1, num_classes=2, foreground_labels=1, has_regions=False
    )
    write_json(folder / "nnUNetOctreeNCAPlans.json", ours)
    (folder / "nnUNetPlans_3d_fullres").mkdir()
    (folder / "nnUNetPlans_3d_fullres" / "a.b2nd").touch()
    splits = [{"train": [], "val": cases} for cases in CASES.values()]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    for number, case in enumerate(c for cases in CASES.values() for c in cases):
        save_cuboid(folder / "gt_segmentations" / f"{case}.nii.gz", 3 + number)
        save_cuboid(raw / "imagesTr" / f"{case}_0000.nii.gz", 3 + number)
        save_cuboid(raw / "labelsTr" / f"{case}.nii.gz", 3 + number)
    return tmp_path
