"""The ignore label, with and without regions: from the stock commands' training to their labels.

Regions alone, and everything else, in one process: test_trainer.py.
"""

import json

import numpy as np
import pytest
import SimpleITK as sitk

pytestmark = pytest.mark.slow

PLANS = "nnUNetOctreeNCAPlans"
PLAIN = {"background": 0, "first": 1, "second": 2}
REGIONS = {"background": 0, "whole": [1, 2], "second": 2}


@pytest.mark.parametrize(
    ("number", "described", "order"),
    [
        pytest.param(904, PLAIN, None, marks=pytest.mark.nightly),
        (905, REGIONS, [1, 2]),
    ],
    ids=["ignore", "regions and ignore"],
)
def test_labels_end_to_end(nnunet, tmp_path, number, described, order):
    from nnunet_octreenca.datasets.phantoms import make_phantoms

    name = f"Dataset{number}_Labels"
    folder = nnunet.raw / name
    make_phantoms(folder, training=6, test=1, shape=(8, 25, 21))
    description = json.loads((folder / "dataset.json").read_text())
    description["labels"] = {**described, "ignore": 3}
    if order:
        description["regions_class_order"] = order
    for path in (folder / "labelsTr").glob("*.nii.gz"):
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        array[:, :8] = 3  # never annotated
        changed = sitk.GetImageFromArray(array)
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(path))
    (folder / "dataset.json").write_text(json.dumps(description))

    nnunet.run(
        "nnUNetv2_plan_and_preprocess", "-d", number, "-c", "3d_fullres", "-np", 1, "-npfp", 1
    )
    short = ["num_epochs=1", "num_iterations_per_epoch=4", "num_val_iterations_per_epoch=1"]
    settings = [part for pair in short for part in ("--set", pair)]
    nnunet.run("nnunet_octreenca", "extend_plans", "-d", number, *settings)
    plans = json.loads((nnunet.preprocessed / name / f"{PLANS}.json").read_text())
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert kwargs["constant_background"] is (order is None)
    ours = ("-tr", "OctreeNCATrainer", "-p", PLANS, "-device", "cpu")
    nnunet.run("nnUNetv2_train", name, "3d_fullres", 0, *ours)
    model = nnunet.results / name / f"OctreeNCATrainer__{PLANS}__3d_fullres" / "fold_0"
    summary = json.loads((model / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == ({"(1, 2)", "2"} if order else {"1", "2"})
    out = tmp_path / "out"
    nnunet.run(
        "nnUNetv2_predict",
        *("-i", folder / "imagesTs", "-o", out, "-d", number, "-c", "3d_fullres", "-f", 0),
        *("-npp", 0, "-nps", 0, "--save_probabilities", *ours),
    )
    (predicted,) = out.glob("*.nii.gz")
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(predicted)))
    assert set(np.unique(found)) <= {0, 1, 2}
    probabilities = np.load(next(out.glob("*.npz")))["probabilities"]
    assert probabilities.shape == ((2 if order else 3), *found.shape)
    if order is None:
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-3)
    else:
        assert np.array_equal(found == 2, probabilities[1] > 0.5)
