"""Real brain MRI (MSD Task04) through nnU-Net's commands, from planning to postprocessing."""

import json
import shutil

import pytest

pytestmark = pytest.mark.slow

DATASET = "Dataset004_Hippocampus"
PLANS = "nnUNetOctreeNCAPlans"
OURS = ("-tr", "OctreeNCATrainer", "-p", PLANS)


@pytest.fixture(scope="module")
def hippocampus(new_nnunet, data_folder, tmp_path_factory):
    """Ten cases to train on, two to predict; planned by OctreeNCAPlanner itself."""
    data = data_folder("hippocampus")
    nnunet = new_nnunet(tmp_path_factory.mktemp("hippocampus"))
    folder = nnunet.raw / DATASET
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / name).mkdir(parents=True)
    files = sorted((data / "images").glob("*.nii.gz"))[:12]
    for number, file in enumerate(files):
        part = "Tr" if number < 10 else "Ts"
        image = file.name.replace(".nii.gz", "_0000.nii.gz")
        shutil.copy(file, folder / f"images{part}" / image)
        shutil.copy(data / "labels" / file.name, folder / f"labels{part}" / file.name)
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "MRI"},
                "labels": {"background": 0, "anterior": 1, "posterior": 2},
                "numTraining": 10,
                "file_ending": ".nii.gz",
            }
        )
    )
    return nnunet


@pytest.mark.nightly
def test_all_commands(hippocampus, tmp_path):
    """plan_and_preprocess to apply_postprocessing, in the order a researcher types them."""
    nnunet = hippocampus
    nnunet.run(
        "nnUNetv2_plan_and_preprocess",
        *("-d", 4, "-c", "2d", "3d_fullres", "-np", 2, 2, "-npfp", 2, "--verify_dataset_integrity"),
    )
    settings = ["num_epochs=1", "num_iterations_per_epoch=25", "num_val_iterations_per_epoch=1"]
    nnunet.run(
        "nnunet_octreenca",
        *("extend_plans", "-d", 4),
        *(part for pair in settings for part in ("--set", pair)),
    )
    plans = json.loads((nnunet.preprocessed / DATASET / f"{PLANS}.json").read_text())
    fullres = plans["configurations"]["3d_fullres"]
    assert fullres["patch_size"] == [40, 56, 40]  # DESIGN section 2
    assert fullres["architecture"]["arch_kwargs"]["factors"] == [[2, 2, 2]] * 3

    out = {}
    for configuration in ("2d", "3d_fullres"):
        arguments = (configuration, 0, *OURS, "-device", "cpu", "--npz")
        nnunet.run("nnUNetv2_train", DATASET, *arguments)
        out[configuration] = tmp_path / configuration
        nnunet.run(
            "nnUNetv2_predict",
            *("-i", nnunet.raw / DATASET / "imagesTs", "-o", out[configuration], "-d", 4),
            *("-c", configuration, "-f", 0, *OURS, "-npp", 1, "-nps", 1, "-device", "cpu"),
            "--save_probabilities",
        )
        assert len(list(out[configuration].glob("*.nii.gz"))) == 2

    described = ("-djfile", out["3d_fullres"] / "dataset.json")
    described += ("-pfile", out["3d_fullres"] / "plans.json")
    truth = nnunet.raw / DATASET / "labelsTs"
    nnunet.run("nnUNetv2_evaluate_folder", truth, out["3d_fullres"], *described)
    summary = json.loads((out["3d_fullres"] / "summary.json").read_text())
    assert set(summary["mean"]) == {"1", "2"}
    assert len(summary["metric_per_case"]) == 2

    together = tmp_path / "ensemble"
    nnunet.run("nnUNetv2_ensemble", "-i", *out.values(), "-o", together, "-np", 1)
    assert len(list(together.glob("*.nii.gz"))) == 2

    folder = nnunet.results / DATASET / f"OctreeNCATrainer__{PLANS}__3d_fullres"
    validation = folder / "fold_0" / "validation"
    ground_truth = nnunet.preprocessed / DATASET / "gt_segmentations"
    for name in ("plans.json", "dataset.json"):
        shutil.copy(folder / name, validation)
    nnunet.run(
        "nnUNetv2_determine_postprocessing",
        *("-i", validation, "-ref", ground_truth, "-np", 1),
    )
    processed = tmp_path / "processed"
    nnunet.run(
        "nnUNetv2_apply_postprocessing",
        *("-i", out["3d_fullres"], "-o", processed, "-np", 1),
        *("-pp_pkl_file", validation / "postprocessing.pkl"),
    )
    assert len(list(processed.glob("*.nii.gz"))) == 2
