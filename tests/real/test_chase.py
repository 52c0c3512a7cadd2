"""Real fundus photographs (CHASE_DB1, 999 x 960 RGB) through nnU-Net's 2d configuration."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.slow

DATASET = "Dataset005_Chase"
PLANS = "nnUNetOctreeNCAPlans"


@pytest.mark.nightly
def test_rgb_png_end_to_end(new_nnunet, data_folder, tmp_path):
    """Cropped training, then each photograph whole: labels of its own size."""
    from PIL import Image

    data = data_folder("chase_db1")
    nnunet = new_nnunet(tmp_path / "nnunet")
    folder = nnunet.raw / DATASET
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    photographs = sorted((data / "images").glob("*.jpg"))[:6]
    for number, photograph in enumerate(photographs):
        part = "Tr" if number < 5 else "Ts"
        Image.open(photograph).save(folder / f"images{part}" / f"{photograph.stem}_0000.png")
        if part == "Tr":
            (truth,) = (data / "labels").glob(f"{photograph.stem}_1stHO.png")
            vessels = np.array(Image.open(truth).convert("L")) > 127
            Image.fromarray(vessels.astype(np.uint8)).save(
                folder / "labelsTr" / f"{photograph.stem}.png"
            )
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "R", "1": "G", "2": "B"},
                "labels": {"background": 0, "vessel": 1},
                "numTraining": 5,
                "file_ending": ".png",
            }
        )
    )
    nnunet.run("nnUNetv2_plan_and_preprocess", "-d", 5, "-c", "2d", "-np", 1, "-npfp", 1)
    settings = ["num_epochs=1", "num_iterations_per_epoch=4", "num_val_iterations_per_epoch=1"]
    nnunet.run(
        "nnunet_octreenca",
        *("extend_plans", "-d", 5, "-gpu_memory_target", 0.3, "--batch_size", 1),
        *(part for pair in settings for part in ("--set", pair)),
    )
    plans = json.loads((nnunet.preprocessed / DATASET / f"{PLANS}.json").read_text())
    flat = plans["configurations"]["2d"]
    assert flat["octreenca"]["crop_levels"] >= 1  # a whole photograph does not fit
    assert min(flat["patch_size"]) >= 960  # the coarse levels see all of them
    ours = ("-tr", "OctreeNCATrainer", "-p", PLANS, "-device", "cpu")
    nnunet.run("nnUNetv2_train", DATASET, "2d", 0, *ours)
    out = tmp_path / "out"
    nnunet.run(
        "nnUNetv2_predict",
        *("-i", folder / "imagesTs", "-o", out, "-d", 5, "-c", "2d", "-f", 0),
        *("-npp", 0, "-nps", 0, "--disable_tta", *ours),
    )
    (predicted,) = out.glob("*.png")
    labels = np.array(Image.open(predicted))
    assert labels.shape == np.array(Image.open(photographs[5]).convert("L")).shape
    assert set(np.unique(labels)) <= {0, 1}
