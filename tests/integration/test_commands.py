"""nnU-Net's own commands with our trainer, on phantoms: every flag of training and prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.bombs import bomb

pytestmark = pytest.mark.slow

DATASET = "Dataset901_Phantoms"
PLANS = "nnUNetOctreeNCAPlans"


def labels(folder: Path) -> dict[str, np.ndarray]:
    """Segmentations of a folder by case."""
    return {
        path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in sorted(folder.glob("*.nii.gz"))
    }


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(first[case], second[case]) for case in first
    )


@pytest.fixture(scope="module")
def images(nnunet) -> Path:
    return nnunet.raw / DATASET / "imagesTs"


@pytest.fixture(scope="module")
def predict(trained, images, tmp_path_factory):
    """`nnUNetv2_predict` with some flags; the folder it wrote."""

    def run(*flags: object, out: Path | None = None, **options) -> Path:
        out = out or tmp_path_factory.mktemp("predicted")
        arguments = ["-i", images, "-o", out, "-d", 901, "-p", PLANS, "-device", "cpu"]
        if "-c" not in flags:
            arguments += ["-c", "3d_fullres"]
        if "-tr" not in flags:
            arguments += ["-tr", "OctreeNCATrainer"]
        if "-npp" not in flags:
            arguments += ["-npp", 0, "-nps", 0]  # each process more imports torch
        trained.run("nnUNetv2_predict", *arguments, *flags, **options)
        return out

    return run


@pytest.fixture(scope="module")
def fold0(predict) -> Path:
    """Prediction with fold 0, mirrored, with probabilities, in several processes."""
    return predict("-f", 0, "--save_probabilities", "-npp", 1, "-nps", 1)


def test_training_writes_what_nnunet_writes(trained):
    fold = trained.model() / "fold_0"
    assert (fold / "checkpoint_final.pth").is_file()
    assert (fold / "checkpoint_best.pth").is_file()
    assert not (fold / "checkpoint_latest.pth").exists()
    assert (fold / "progress.png").stat().st_size > 10_000
    assert not list(fold.glob(".*"))
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
    assert 0 <= summary["foreground_mean"]["Dice"] <= 1
    assert len(list((fold / "validation").glob("*.npz"))) == 2
    for path in fold.glob("*.pth"):
        torch.load(path, weights_only=True)
    log = next(fold.glob("training_log_*.txt")).read_text()
    assert "Epoch 1" in log
    assert "Epoch 2" not in log  # the plans say two epochs


def test_prediction_is_one_pass_with_the_saved_average(trained, fold0, images, tmp_path):
    """Probabilities are those of the network run by hand on the preprocessed image."""
    code = """
import sys, json, numpy as np, torch
from pathlib import Path
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunet_octreenca import OctreeNCA
from nnunet_octreenca.inference import predict_logits
model, image, expected = map(Path, sys.argv[1:])
predictor = nnUNetPredictor(device=torch.device("cpu"))
predictor.initialize_from_trained_model_folder(str(model), (0,))
manager = predictor.configuration_manager
preprocessor = manager.preprocessor_class(verbose=False)
data, _, properties = preprocessor.run_case(
    [str(image)], None, predictor.plans_manager, manager, predictor.dataset_json)
plans = json.loads((model / "plans.json").read_text())
kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
network = OctreeNCA(1, 3, **kwargs)
checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
network.load_state_dict(checkpoint["octreenca_weight_average"]["average"])
logits = predict_logits(
    network, torch.from_numpy(data), mirror_axes=(0, 1, 2), context=manager.patch_size)
logits = manager.resampling_fn_probabilities(
    logits, properties["shape_after_cropping_and_before_resampling"], manager.spacing,
    [properties["spacing"][i] for i in predictor.plans_manager.transpose_forward])
mine = torch.softmax(torch.as_tensor(logits).float(), 0).numpy()
theirs = np.load(expected)["probabilities"]
backward = [0] + [i + 1 for i in predictor.plans_manager.transpose_backward]
mine = mine.transpose(backward)
assert mine.shape == theirs.shape, (mine.shape, theirs.shape)
print("largest difference", abs(mine - theirs).max())
"""
    case = sorted(images.glob("*_0000.nii.gz"))[0]
    npz = fold0 / case.name.replace("_0000.nii.gz", ".npz")
    # A file: with -c the checkout, which has no native engine, would be imported first.
    script = tmp_path / "by_hand.py"
    script.write_text(code)
    output = trained.run("python", script, trained.model(), case, npz).output
    assert float(output.split("largest difference")[1].split()[0]) < 1e-5


def test_same_command_same_bits_and_no_seed_matters_where_all_cells_fire(trained, predict, fold0):
    again = predict("-f", 0, "--save_probabilities")
    other = predict(
        "-f",
        0,
        "--save_probabilities",
        environment={**trained.environment, "nnUNet_octreenca_seed": "5"},
    )
    assert same(labels(fold0), labels(again))
    for path in fold0.glob("*.npz"):
        first = np.load(path)["probabilities"]
        assert np.array_equal(first, np.load(again / path.name)["probabilities"])
        assert np.array_equal(first, np.load(other / path.name)["probabilities"])


def test_model_folder_and_sequential_mode_give_the_same(trained, predict, fold0, images, tmp_path):
    trained.run(
        "nnUNetv2_predict_from_modelfolder",
        *("-i", images, "-o", tmp_path / "folder", "-m", trained.model(), "-f", 0),
        *("-npp", 1, "-nps", 1, "-device", "cpu"),  # it knows no 0
    )
    assert same(labels(fold0), labels(tmp_path / "folder"))
    assert same(labels(fold0), labels(predict("-f", 0)))


def test_disable_tta_and_two_folds_change_the_probabilities(predict, fold0):
    single = predict("-f", 0, "--disable_tta", "--save_probabilities")
    both = predict("-f", 0, 1, "--save_probabilities")
    for path in fold0.glob("*.npz"):
        mirrored = np.load(path)["probabilities"]
        assert not np.array_equal(mirrored, np.load(single / path.name)["probabilities"])
        assert not np.array_equal(mirrored, np.load(both / path.name)["probabilities"])


@pytest.mark.nightly
def test_parts_make_the_whole_and_continue_leaves_what_is_there(predict, fold0):
    out = predict("-f", 0, "-num_parts", 2, "-part_id", 0)
    assert len(labels(out)) == 2
    written = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    predict("-f", 0, "-num_parts", 2, "-part_id", 1, out=out)
    missing = sorted(out.glob("*.nii.gz"))[-1]
    missing.unlink()
    predict("-f", 0, "--continue_prediction", out=out)
    assert same(labels(fold0), labels(out))
    for path, time in written.items():
        assert path == missing or path.stat().st_mtime_ns == time


@pytest.mark.nightly
def test_fold_all(trained, predict):
    trained.train("3d_fullres", "all")
    assert len(labels(predict("-f", "all"))) == 3


@pytest.mark.nightly
def test_cascade_and_2d(trained, predict):
    """3d_lowres, its next stage, and 2d; the cascade takes the first stage's predictions."""
    # Fold "all" validates every case, so that the second stage has all it trains on.
    trained.train("3d_lowres", "all")
    handed_on = trained.model("3d_lowres") / "predicted_next_stage" / "3d_cascade_fullres"
    assert len(list(handed_on.glob("*.b2nd"))) == 10
    trained.train("3d_cascade_fullres", 0)
    checkpoint = torch.load(
        trained.model("3d_cascade_fullres") / "fold_0" / "checkpoint_final.pth", weights_only=False
    )
    weights = checkpoint["network_weights"]
    channels = weights["levels.0.perceive.weight"].shape[0]
    assert channels - weights["levels.0.update.weight"].shape[0] == 3  # image and two labels
    lowres = predict("-f", "all", "-c", "3d_lowres")
    cascade = predict("-f", 0, "-c", "3d_cascade_fullres", "-prev_stage_predictions", lowres)
    trained.train("2d", 0)
    flat = predict("-f", 0, "-c", "2d")
    assert labels(lowres).keys() == labels(cascade).keys() == labels(flat).keys()


def test_validation_again_and_best(trained):
    summary = trained.model() / "fold_1" / "validation" / "summary.json"
    before = json.loads(summary.read_text())["foreground_mean"]
    summary.unlink()
    trained.train("3d_fullres", 1, "--val", "--npz")
    assert json.loads(summary.read_text())["foreground_mean"] == before


def test_pretrained_weights(trained):
    """Another trainer's name starts from our weights: its first checkpoint is near them."""
    start = trained.model() / "fold_0" / "checkpoint_final.pth"
    output = trained.train(
        "3d_fullres", 0, "-pretrained_weights", start, "--disable_checkpointing", fails=False
    )
    assert "Loading pretrained weights" in output


@pytest.mark.nightly
def test_best_configuration_and_ensemble_with_stock(trained, images, tmp_path):
    """Across trainers through nnU-Net's Python function, as its documentation says."""
    minutes = {**trained.environment, "nnUNet_octreenca_minutes": "0.05"}
    trained.run(
        "nnUNetv2_train",
        *(DATASET, "3d_fullres", 0, "-tr", "nnUNetTrainerTimeBudget", "-device", "cpu", "--npz"),
        environment=minutes,
    )
    code = f"""
if __name__ == "__main__":
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration
    models = [
        dict(plans="{PLANS}", configuration="3d_fullres", trainer="OctreeNCATrainer"),
        dict(plans="nnUNetPlans", configuration="3d_fullres", trainer="nnUNetTrainerTimeBudget"),
    ]
    found = find_best_configuration(901, models, num_processes=2, folds=(0,))
    print(sorted(found["all_results"]))
"""
    script = tmp_path / "best.py"
    script.write_text(code)
    output = trained.run("python", script).output
    assert f"OctreeNCATrainer__{PLANS}__3d_fullres" in output
    assert "ensemble___OctreeNCATrainer" in output
    information = json.loads((trained.results / DATASET / "inference_information.json").read_text())
    postprocessing = information["best_model_or_ensemble"]["postprocessing_file"]
    assert Path(postprocessing).is_file()


def test_zip_carries_a_model_to_another_machine(trained, fold0, images, tmp_path):
    """Export, install where there is nothing else, predict: the same labels."""
    archive = tmp_path / "model.zip"
    trained.run(
        "nnUNetv2_export_model_to_zip",
        *("-d", 901, "-o", archive, "-c", "3d_fullres", "-tr", "OctreeNCATrainer"),
        *("-p", PLANS, "-f", 0, 1),
    )
    elsewhere = {
        **trained.environment,
        **{f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")},
    }
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
    trained.run("nnUNetv2_install_pretrained_model_from_zip", archive, environment=elsewhere)
    predict = (
        *("-i", images, "-d", 901, "-c", "3d_fullres", "-f", 0, "-tr", "OctreeNCATrainer"),
        *("-p", PLANS, "-npp", 0, "-nps", 0, "-device", "cpu"),
    )
    # torch's switch makes nnU-Net's own command read the checkpoint as data.
    as_data = {**elsewhere, "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
    trained.run("nnUNetv2_predict", *predict, "-o", tmp_path / "out", environment=as_data)
    assert same(labels(fold0), labels(tmp_path / "out"))

    ours = tmp_path / "ours"
    environment = {**elsewhere, "nnUNet_results": str(ours)}
    report = json.loads(trained.run("nnunet_octreenca", "check", archive, "--json").output)
    trained.run("nnunet_octreenca", "install", archive, environment=environment)
    assert contents(ours) == contents(tmp_path / "results")
    (model,) = report["models"]
    assert (model["dataset"], model["folds"]) == (DATASET, ["0", "1"])
    assert model["checkpoints"][0]["versions"]["nnunetv2"]

    marker = tmp_path / "marker"
    checkpoint = ours / trained.model().relative_to(trained.results) / "fold_0"
    (checkpoint / "checkpoint_final.pth").write_bytes(bomb("a call of os.system", marker))
    trained.run(
        "nnUNetv2_predict", *predict, "-o", tmp_path / "none",
        environment={**as_data, "nnUNet_results": str(ours)}, fails=True,
    )  # fmt: skip
    assert not marker.exists()


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.usefixtures("registered")
def test_the_command_of_3d_slicer(trained, fold0, images, tmp_path):
    """With nothing set but the three variables; registration does the rest."""
    ours = ("nnUNet_extTrainer", "nnUNet_def_n_proc", "nnUNet_n_proc_DA")
    bare = {k: v for k, v in trained.environment.items() if k not in ours}
    trained.run(
        "nnUNetv2_predict",
        *("-i", images, "-o", tmp_path, "-d", DATASET, "-tr", "OctreeNCATrainer"),
        *("-p", PLANS, "-c", "3d_fullres", "-f", 0, "-npp", 1, "-nps", 1),
        *("-step_size", 0.5, "-device", "cpu", "-chk", "checkpoint_final.pth"),
        environment=bare,
    )
    assert same(labels(fold0), labels(tmp_path))
