"""`compare --dry-run`: the hours it tells, from a budget or from steps that are really timed."""

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.compared_methods import METHODS_USED, describe, finish, jobs_of

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.comparison.trained import running
from nnunet_octreenca.comparison.trained.methods import find_methods
from nnunet_octreenca.files import read_json, write_json
from nnunet_octreenca.integration import training_job
from nnunet_octreenca.integration.planner import extend_plans_file
from nnunet_octreenca.integration.register import TRAINER_SHIMS

DATASET = "Dataset908_Tiny"
SHAPE = (16, 20, 24)
METHODS = ("OctreeNCA", "nnU-Net", "nnU-Net ResEnc M", "M3D-NCA", "TinyUNet")


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A data set planned by stock nnU-Net, its preset M, and ours; nothing is preprocessed."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINER_SHIMS))
    raw, folder = describe(tmp_path, DATASET, training=1)
    for part, name in (("imagesTr", "a_0000"), ("labelsTr", "a")):
        (raw / part).mkdir()
        image = sitk.GetImageFromArray(np.zeros(SHAPE, np.uint8))
        sitk.WriteImage(image, str(raw / part / f"{name}.nii.gz"))
    statistics = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")
    write_json(
        folder / "dataset_fingerprint.json",
        {
            "spacings": [[1.0, 1.0, 1.0]],
            "shapes_after_crop": [list(SHAPE)],
            "median_relative_size_after_cropping": 1.0,
            "foreground_intensity_properties_per_channel": {"0": dict.fromkeys(statistics, 1.0)},
        },
    )
    plan_with_nnunet()
    extend_plans_file(DATASET)
    (folder / "nnUNetPlans_3d_fullres").mkdir()
    (folder / "nnUNetPlans_3d_fullres" / "a.b2nd").touch()
    return tmp_path


def plan_with_nnunet() -> None:
    """By the two planners, in this process."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
        residual_encoder_unet_planners as residual,
    )

    for planner in (ExperimentPlanner, residual.nnUNetPlannerResEncM):
        planner(DATASET).plan_experiment()


@pytest.fixture
def in_this_process(monkeypatch):
    """Steps are taken here instead of in processes, each of which imports everything anew."""
    taken = []

    def run_child(command, *, log, environment):
        job = read_json(command[-1], "")
        monkeypatch.setenv("nnUNet_results", environment["nnUNet_results"])
        answer = training_job.probe(job)
        taken.append((job["trainer"], answer["parameters"]))
        write_json(job["probe"], answer)

    monkeypatch.setattr(running, "run_child", run_child)
    return taken


def test_steps_of_every_kind_of_method(planned, in_this_process, capsys):
    """Hours of each method, from its own plans; nothing is left behind."""
    before = sorted(planned.rglob("*"))
    words = ["-d", "908", "-c", "3d_fullres", "--methods", *METHODS, "-device", "cpu"]
    assert main(["compare", *words, "--dry-run", "-o", str(planned / "report")]) == 0
    printed = capsys.readouterr().out
    found = dict(re.findall(r"^(.+): ([0-9.]+) (?:s|min|h)$", printed, re.MULTILINE))
    assert set(found) == set(METHODS), printed
    assert all(float(hours) >= 0 for hours in found.values())
    assert "of training; validation and timing come on top" in printed
    assert [trainer for trainer, _ in in_this_process] == [
        method.trainer for method in find_methods(METHODS)
    ]
    _, stock, preset, *_ = (parameters for _, parameters in in_this_process)
    assert stock != preset > 1_000_000  # the one is plain, the other residual
    after = [path for path in sorted(planned.rglob("*")) if path not in before]
    assert not after, [str(Path(path).relative_to(planned)) for path in after]


def test_a_dry_run_says_how_long(prepared, monkeypatch, capsys):
    monkeypatch.setattr(running, "run_child", lambda *_, **__: pytest.fail("trained"))
    words = ["--methods", *METHODS_USED, "--budget", "90m", "--seeds", "0", "1", "--dry-run"]
    _, jobs = jobs_of("OctreeNCA", seeds=(0, 1), budget=5400.0)
    finish(jobs[0])
    out = prepared / "report"
    assert main(["compare", "-d", "907", "-c", "3d_fullres", "-o", str(out), *words]) == 0
    printed = capsys.readouterr().out
    assert "OctreeNCA: 1.50 h" in printed
    assert "In all some 4.50 h" in printed
    assert "finished" in printed
    assert "not trained" in printed
    assert not out.exists()


def test_a_dry_run_without_a_budget_times_a_step(prepared, monkeypatch, capsys):
    """Of each method once: half a second, and as many steps as the trainer says."""
    probed = []

    def run_child(command, *, log, environment):
        job = read_json(command[-1], "")
        probed.append(job["trainer"])
        assert Path(job["probe"]).parent == Path(environment["nnUNet_results"]) != prepared
        write_json(job["probe"], {"step_seconds": 0.5, "steps": 7200})

    monkeypatch.setattr(running, "run_child", run_child)
    words = ["-d", "907", "-c", "3d_fullres", "-f", "0", "1", "--methods", *METHODS_USED]
    _, jobs = jobs_of("OctreeNCA")
    finish(jobs[0])
    assert main(["compare", *words, "--dry-run", "-o", str(prepared / "report")]) == 0
    assert probed == ["OctreeNCATrainer", "TinyUNetTrainer"]
    printed = capsys.readouterr().out
    assert "OctreeNCA: 1.00 h" in printed
    assert "TinyUNet: 2.00 h" in printed


def test_a_step_that_cannot_be_taken_says_why(prepared, monkeypatch, capsys):
    from nnunet_octreenca.child_process import CommandError

    def run_child(command, *, log, environment):
        raise CommandError("failed", "RuntimeError: no memory\n")

    monkeypatch.setattr(running, "run_child", run_child)
    words = ["-d", "907", "-c", "3d_fullres", "--methods", "TinyUNet", "--dry-run"]
    assert main(["compare", *words, "-o", str(prepared / "report")]) == 1
    said = capsys.readouterr().err
    assert "TinyUNet cannot take a training step: RuntimeError: no memory; leave it out" in said
    assert "Traceback" not in said
