"""`nnunet_octreenca check`: what a model holds, and what is wrong with it."""

import hashlib
import json
import os
import pickle

import numpy as np
import pytest
import torch
from helpers.bombs import Calls, bomb
from helpers.exported import DATASET, MODEL, exported_files, write_zip
from nnunetv2.postprocessing.remove_connected_components import (
    remove_all_but_largest_component_from_segmentation,
)
from untrained_model import model_folder

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.integration.model import load_model

CHECKPOINT = "fold_0/checkpoint_final.pth"


@pytest.fixture
def folder(tmp_path):
    return model_folder(tmp_path / "model")


def check(path, capsys, *flags, code=0):
    assert main(["check", str(path), *flags]) == code
    printed = capsys.readouterr()
    assert printed.err.count("ERROR") == len(printed.err.splitlines()), printed.err
    assert (printed.err != "") == (code != 0)
    return json.loads(printed.out) if "--json" in flags else printed.out + printed.err


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_checkpoint(folder, change):
    path = folder / CHECKPOINT
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_channels_of_every_level(tmp_path, capsys):
    model = model_folder(tmp_path / "unequal", cells=(16, 24, 20))
    (report,) = check(model, capsys, "--json")["models"]
    assert (report["channels"], report["hidden"]) == ([16, 24, 20], [64, 96, 80])
    network = load_model(model).networks[0]
    assert report["parameters"] == sum(weights.numel() for weights in network.parameters())
    assert "16 24 20 channels, 64 96 80 hidden units" in check(model, capsys)
    edit_json(
        model / "plans.json",
        lambda plans: plans["configurations"]["2d"]["architecture"]["arch_kwargs"].update(
            channels=[16, 16, 20]
        ),
    )
    assert "another network than plans.json describes" in check(model, capsys, code=1)


def test_what_a_model_holds(folder, capsys):
    edit_checkpoint(
        folder,
        lambda saved: saved.update(
            current_epoch=7, octreenca_versions={"nnunet_octreenca": "0.1.0", "nnunetv2": "2.8.1"}
        ),
    )
    report = check(folder, capsys, "--json")
    (model,) = report["models"]
    network = load_model(folder).networks[0]
    assert model["dataset"] == "Dataset903_Hand"
    assert model["classes"] == {"background": [0], "first": [1], "second": [2]}
    assert (model["configuration"], model["folds"]) == ("2d", ["0"])
    assert (model["steps"], model["channels"]) == (list(network.steps), network.level_channels[0])
    assert model["levels"] == len(network.levels)
    assert model["parameters"] == sum(weights.numel() for weights in network.parameters())
    (checkpoint,) = model["checkpoints"]
    assert checkpoint["parameters"] == model["parameters"]
    assert (checkpoint["epochs"], checkpoint["trainer"]) == (7, "OctreeNCATrainer")
    assert checkpoint["versions"] == {"nnunet_octreenca": "0.1.0", "nnunetv2": "2.8.1"}
    assert report["faults"] == []
    for name, values in report["files"].items():
        content = (folder / name).read_bytes()
        assert values == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert set(report["files"]) == {"dataset.json", "plans.json", CHECKPOINT}

    printed = check(folder, capsys)
    assert "classes        background 0, first 1, second 2" in printed
    assert "7 epochs" in printed
    assert "nnunetv2 2.8.1" in printed
    assert "Nothing is wrong." in printed


def test_zip_and_folder_say_the_same(tmp_path, capsys):
    files = exported_files(tmp_path / "results")
    packed = check(write_zip(tmp_path / "model.zip", files), capsys, "--json")
    unpacked = check(tmp_path / "results", capsys, "--json")
    assert [model["folder"] for model in packed["models"]] == [MODEL]
    assert {**packed, "model": None} == {**unpacked, "model": None}
    assert packed["models"][0]["folds"] == ["0", "1"]


def test_regions_and_volumes(tmp_path, capsys):
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    model_folder(tmp_path / "m", patch=(8, 16, 16), channels=1, ending=".nii.gz",
                 labels=labels, regions=(1, 2))  # fmt: skip
    report = check(tmp_path / "m", capsys, "--json")
    assert report["models"][0]["classes"] == {"background": [0], "whole": [1, 2], "core": [2]}
    assert report["models"][0]["parameters"] == report["models"][0]["checkpoints"][0]["parameters"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda saved: saved.pop("trainer_name"), "not a checkpoint of nnU-Net's: it lacks"),
        (lambda saved: saved.pop("network_weights"), "not a checkpoint of nnU-Net's: it lacks"),
        (lambda saved: saved["init_args"].update(configuration="4d"), "no configuration '4d'"),
        (lambda saved: saved.update(trainer_name="os.system"), "names the trainer 'os.system'"),
        (
            lambda saved: saved["network_weights"].popitem(),
            "holds another network than plans.json describes",
        ),
        (
            lambda saved: next(iter(saved["network_weights"].values())).fill_(float("nan")),
            "weights that are not finite",
        ),
        (
            lambda saved: saved["init_args"].update(
                dataset_json={"channel_names": {"0": "a"}, "labels": {"background": 0, "a": 1}}
            ),
            "has 3 labels or regions, and fold_0/checkpoint_final.pth was trained with 2",
        ),
    ],
)
def test_faults_of_checkpoints(change, sentence, folder, capsys):
    edit_checkpoint(folder, change)
    assert sentence in check(folder, capsys, code=1)


def test_every_fault_gets_its_sentence(folder, tmp_path, capsys):
    marker = tmp_path / "marker"
    (folder / CHECKPOINT).write_bytes(bomb("a call of os.system", marker))
    (folder / "fold_1").mkdir()
    (folder / "fold_1/checkpoint_best.pth").write_bytes(b"half")
    edit_json(folder / "dataset.json", lambda d: d["labels"].update(first=-1))

    def change(plans):
        plans["configurations"]["2d"]["spacing"] = [1.0]
        plans["image_reader_writer"] = "os.system"

    edit_json(folder / "plans.json", change)
    report = check(folder, capsys, "--json", code=1)
    assert len(report["faults"]) == 5, report["faults"]
    text = "\n".join(report["faults"])
    for part in ("'first' in dataset.json is -1", "configurations.2d.spacing is [1.0]",
                 "'os.system'", "asks for posix.system", "checkpoint_best.pth"):  # fmt: skip
        assert part in text
    assert not marker.exists()
    assert len(report["files"]) == 4


def test_pickles_of_postprocessing(folder, tmp_path, capsys):
    ours = ([remove_all_but_largest_component_from_segmentation], [{"labels_or_regions": [1]}])
    for label in (1, np.int64(1), (1, 2)):
        ours[1][0]["labels_or_regions"] = label
        (folder / "postprocessing.pkl").write_bytes(pickle.dumps(ours))
        check(folder, capsys)
    marker = tmp_path / "marker"
    for call in (Calls(os.system, f"touch {marker}"),
                 Calls(remove_all_but_largest_component_from_segmentation, 1)):  # fmt: skip
        (folder / "postprocessing.pkl").write_bytes(pickle.dumps(call))
        assert "loading it could run any code" in check(folder, capsys, code=1)
    assert not marker.exists()


def test_what_is_no_model(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "there is no plans.json" in check(tmp_path / "empty", capsys, code=1)
    for name, content in (("none", None), ("text.zip", b"PK\x03\x04 half")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert main(["check", str(tmp_path / name)]) == 1
        assert "ERROR" in capsys.readouterr().err


def test_models_of_stock_nnunet(folder, capsys):
    """They are described, with NumPy's scalars in their checkpoints."""

    def stock(plans):
        plans["configurations"]["2d"]["architecture"] = {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {"conv_op": "torch.nn.modules.conv.Conv2d", "n_stages": 2},
            "_kw_requires_import": ["conv_op"],
        }

    edit_json(folder / "plans.json", stock)
    weights = torch.ones(10)
    torch.save(
        {
            "network_weights": {"encoder.a": weights, "decoder.encoder.a": weights},
            "init_args": {"configuration": "2d", "device": torch.device("cpu")},
            "trainer_name": "nnUNetTrainer",
            "_best_ema": np.float64(0.5),
        },
        folder / CHECKPOINT,
    )
    (model,) = check(folder, capsys, "--json")["models"]
    assert model["network"].endswith("PlainConvUNet")
    assert model["checkpoints"][0]["parameters"] == 10
    assert model["levels"] is None


def test_names_cannot_move_the_cursor(folder, capsys):
    edit_checkpoint(folder, lambda saved: saved.update(trainer_name="a\x1b[2Jb"))
    printed = check(folder, capsys, code=1)
    assert "\x1b" not in printed
    assert "a?[2Jb" in printed


def test_a_plan_that_would_allocate_much_is_refused_at_once(folder, capsys):
    def large(plans):
        arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
        arguments.update(channels=4096, hidden=65536, steps=[1] * 32, factors=[[1, 1]] * 31)

    edit_json(folder / "plans.json", large)
    assert "parameters; an OctreeNCA has some ten thousand" in check(folder, capsys, code=1)


def test_data_sets_folder(tmp_path, capsys):
    exported_files(tmp_path)
    (model,) = check(tmp_path / DATASET, capsys, "--json")["models"]
    assert model["folder"] == MODEL.partition("/")[2]
