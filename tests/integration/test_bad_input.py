"""Bad input ends with one sentence that says what to do, exit code 1, and no half results."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.bombs import bomb

from nnunet_octreenca.cli.main import main

DATASET = "Dataset901_Phantoms"
PLANS = "nnUNetOctreeNCAPlans"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's folders, empty."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


@pytest.fixture
def dataset(folders):
    """A data set with a dataset.json, but no plans."""
    folder = folders / "preprocessed" / "Dataset007_Seven"
    folder.mkdir()
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "MRI"},
                "labels": {"background": 0, "organ": 1},
                "numTraining": 3,
                "file_ending": ".nii.gz",
            }
        )
    )
    return folder


def fails_with(capsys, arguments: list[str], *words: str) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ")
    assert "Traceback" not in error
    for word in words:
        assert word in error


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("name", ["7", "Dataset007_Seven", "no such"])
def test_unknown_data_set(capsys, name):
    fails_with(
        capsys, ["extend_plans", "-d", name], "there is no data set with the name or", "check -d"
    )


def test_unset_folders(capsys, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnUNet_{name}", raising=False)
    fails_with(capsys, ["extend_plans", "-d", "7"], "nnUNet_raw is not set")


def test_missing_plans(capsys, dataset):
    fails_with(
        capsys, ["extend_plans", "-d", "7"], "nnUNetPlans.json does not exist", "-d 7` first"
    )
    assert [path.name for path in dataset.iterdir()] == ["dataset.json"]


def test_damaged_plans(capsys, dataset):
    (dataset / "nnUNetPlans.json").write_text('{"configurations": {')
    fails_with(capsys, ["extend_plans", "-d", "7"], "cannot be read")
    (dataset / "nnUNetPlans.json").write_text("[]")
    fails_with(capsys, ["extend_plans", "-d", "7"], "does not hold a JSON object")
    (dataset / "nnUNetPlans.json").write_text('{"label_manager": "LabelManager"}')
    fails_with(capsys, ["extend_plans", "-d", "7"], "not an nnU-Net plans file")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--set", "num_epochs=0"], ["num_epochs", "above 0"]),
        (["--set", "epochs=5"], ["has unknown keys: epochs"]),
        (["--set", "num_epochs"], ["KEY=VALUE"]),
        (["-gpu_memory_target", "0"], ["-gpu_memory_target (0.0)"]),
        (["-gpu_memory_target", "0.0000001"], ["larger -gpu_memory_target"]),
        (["--batch_size", "0"], ["--batch_size (0)"]),
        (["--preset", "dermatology"], ["there is no preset 'dermatology'", "radiology"]),
        (["-overwrite_plans_name", "a__b"], ["must not hold '__'"]),
        (["-overwrite_plans_name", "nnUNetPlans"], ["replace the plans"]),
    ],
)
def test_wrong_flags(capsys, dataset, stock_plans, flags, words):
    plans = dataset / "nnUNetPlans.json"
    plans.write_text(json.dumps(stock_plans((20, 30, 30))))
    before = plans.read_text()
    fails_with(capsys, ["extend_plans", "-d", "7", *flags], *words)
    assert plans.read_text() == before
    assert sorted(path.name for path in dataset.iterdir()) == ["dataset.json", "nnUNetPlans.json"]


def test_unwritable_folder(capsys, dataset, stock_plans, monkeypatch):
    from pathlib import Path

    (dataset / "nnUNetPlans.json").write_text(json.dumps(stock_plans((20, 30, 30))))

    def denied(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_text", denied)
    fails_with(capsys, ["extend_plans", "-d", "7"], "Permission denied")
    assert sorted(path.name for path in dataset.iterdir()) == ["dataset.json", "nnUNetPlans.json"]


def test_debug_shows_the_traceback(folders):
    from nnunet_octreenca.errors import InputError

    with pytest.raises(InputError):
        main(["extend_plans", "-d", "7", "--debug"])


def sentence(output: str) -> str:
    """The line our error ended with."""
    (line,) = [line for line in output.splitlines() if line.startswith("ERROR: ")]
    return line


@pytest.mark.slow
class TestStockCommands:
    """The same for nnU-Net's own commands with our trainer."""

    def predict(self, nnunet, source, out, **options) -> str:
        arguments = ["-i", source, "-o", out, "-d", 901, "-c", "3d_fullres", "-f", 0]
        arguments += ["-tr", "OctreeNCATrainer", "-p", PLANS, "-npp", 1, "-nps", 1]
        done = nnunet.run("nnUNetv2_predict", *arguments, "-device", "cpu", fails=True, **options)
        assert not list(out.glob("*.nii.gz"))
        return done

    def test_training_with_plans_of_another_network(self, nnunet):
        done = nnunet.run(
            "nnUNetv2_train",
            *(DATASET, "3d_fullres", 0, "-tr", "OctreeNCATrainer", "-p", "nnUNetPlans"),
            *("-device", "cpu"),
            fails=True,
        )
        assert "PlainConvUNet, not OctreeNCA" in sentence(done.stderr)
        assert "Traceback" not in done.stderr
        assert not (nnunet.results / DATASET / "OctreeNCATrainer__nnUNetPlans__3d_fullres").exists()

    def test_unknown_configuration(self, nnunet):
        done = nnunet.run(
            "nnUNetv2_train",
            *(DATASET, "4d", 0, "-tr", "OctreeNCATrainer", "-p", PLANS, "-device", "cpu"),
            fails=True,
        )
        assert "no configuration '4d'; they have 2d, 3d_fullres" in sentence(done.stderr)

    def test_empty_folder(self, trained, tmp_path):
        (tmp_path / "in").mkdir()
        done = self.predict(trained, tmp_path / "in", tmp_path / "out")
        assert "contains no image named *_0000.nii.gz" in sentence(done.stderr)

    def test_channels_of_another_model(self, trained, tmp_path):
        source = tmp_path / "in"
        source.mkdir()
        image = next((trained.raw / DATASET / "imagesTs").glob("*.nii.gz"))
        for channel in (0, 1):
            shutil.copy(image, source / f"case_000{channel}.nii.gz")
        done = self.predict(trained, source, tmp_path / "out")
        assert "a case has 2 file(s)" in sentence(done.stderr)

    def test_voxels_that_are_no_numbers(self, trained, tmp_path):
        """SimpleITK, which stock nnU-Net reads with, makes 0 of them."""
        source, out = tmp_path / "in", tmp_path / "out"
        source.mkdir()
        image = sitk.ReadImage(str(next((trained.raw / DATASET / "imagesTs").glob("*.nii.gz"))))
        array = sitk.GetArrayFromImage(image).astype(np.float32)
        array[3, 4, 5] = np.nan
        changed = sitk.GetImageFromArray(array)
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(source / "case_0000.nii.gz"))
        read = sitk.ReadImage(str(source / "case_0000.nii.gz"))
        assert np.isfinite(sitk.GetArrayFromImage(read)).all()
        done = self.predict(trained, source, out)
        assert "case_0000.nii.gz: 1 voxel is NaN or infinite" in done.stderr
        assert "x 5, y 4, z 3" in done.stderr

    def test_checkpoint_of_another_trainer(self, trained):
        import torch

        fold = trained.model() / "fold_4"
        fold.mkdir(parents=True, exist_ok=True)
        checkpoint = {"trainer_name": "nnUNetTrainer", "network_weights": {}}
        torch.save(checkpoint, fold / "checkpoint_latest.pth")
        done = trained.run(
            "nnUNetv2_train",
            *(DATASET, "3d_fullres", 4, "-tr", "OctreeNCATrainer", "-p", PLANS),
            *("-device", "cpu", "--c"),
            fails=True,
        )
        assert "written by nnUNetTrainer" in sentence(done.stderr)
        shutil.rmtree(fold)

    def test_checkpoints_that_would_run_code(self, nnunet, tmp_path):
        """Resuming and pretrained weights, in nnU-Net's own command."""
        marker = tmp_path / "marker"
        fold = nnunet.model() / "fold_4"
        fold.mkdir(parents=True, exist_ok=True)
        latest = fold / "checkpoint_latest.pth"
        latest.write_bytes(bomb("a call of os.system", marker))
        for flags in (["--c"], ["-pretrained_weights", latest]):
            done = nnunet.run(
                "nnUNetv2_train",
                *(DATASET, "3d_fullres", 4, "-tr", "OctreeNCATrainer", "-p", PLANS),
                *("-device", "cpu", *flags),
                fails=True,
            )
            assert "asks for posix.system" in sentence(done.stderr)
            assert "Traceback" not in done.stderr
        shutil.rmtree(fold)
        assert not marker.exists()

    def test_unwritable_output(self, trained, tmp_path):
        (tmp_path / "file").touch()
        out = tmp_path / "file" / "out"
        done = trained.run(
            "nnUNetv2_predict",
            *("-i", trained.raw / DATASET / "imagesTs", "-o", out, "-d", 901),
            *("-c", "3d_fullres", "-f", 0, "-tr", "OctreeNCATrainer", "-p", PLANS),
            *("-device", "cpu"),
            fails=True,
        )
        assert str(out) in done.stderr
