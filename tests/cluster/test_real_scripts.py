"""The batch scripts of the documentation, as jobs of a real SLURM with one node."""

import os

import pytest
from helpers.clusters import wait_until
from helpers.doc_blocks import ROOT
from helpers.slurm import no_slurm

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(bool(no_slurm()), reason=no_slurm()),
]
SCRIPTS = ROOT / "docs" / "slurm"
# What a script starts, in the place of hours of training.
RECORDER = """#!/bin/bash
printf '%s\\n' "$@" >"$RECORDED/${SLURM_ARRAY_TASK_ID:-0}.part"
mv "$RECORDED/${SLURM_ARRAY_TASK_ID:-0}.part" "$RECORDED/${SLURM_ARRAY_TASK_ID:-0}"
"""


@pytest.fixture
def slurm(controller, tmp_path, monkeypatch):
    """SLURM; jobs write into the test's folder."""
    monkeypatch.setenv(*controller.environment)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    yield controller
    controller.empty()


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """What `nnUNetv2_train` or `torchrun` was given, by the number of the array's task."""
    programs, folder = tmp_path / "bin", tmp_path / "recorded"
    programs.mkdir()
    folder.mkdir()
    for name in ("nnUNetv2_train", "torchrun"):
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RECORDED", str(folder))
    return lambda: {path.name: path.read_text().split() for path in folder.glob("[0-9]")}


def submit(slurm, name, *arguments, options=()):
    """The number of a job that runs a script."""
    said = slurm.run("sbatch", "--parsable", *options, str(SCRIPTS / name), *map(str, arguments))
    assert said.isdigit(), said
    return said


def ended(slurm, job):
    """The states of a job, one for each task of an array, when it has none that goes on."""
    wait_until(lambda: job not in slurm.run("squeue", "--noheader", "--format=%F").split())
    return slurm.states(job)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("train", ["4", "3d_fullres", "0"], ["--nodes=1"]),
        ("cross_validation", ["4", "3d_fullres"], []),
        ("predict", ["model", "in", "out"], []),
    ],
)
def test_sbatch_takes_what_a_script_asks_for(slurm, name, arguments, options):
    said = slurm.run("sbatch", "--test-only", *options, str(SCRIPTS / f"{name}.sbatch"), *arguments)
    assert "to start at" in said


def test_the_folds_of_a_cross_validation(slurm, recorded):
    job = submit(slurm, "cross_validation.sbatch", 4, "3d_fullres")
    assert ended(slurm, job) == ["COMPLETED"] * 5
    given = recorded()
    assert sorted(given) == ["0", "1", "2", "3", "4"]
    for fold, words in given.items():
        assert words[:3] == ["4", "3d_fullres", fold]


def test_a_training(slurm, recorded):
    job = submit(slurm, "train.sbatch", 4, "3d_fullres", 0, options=["--nodes=1"])
    assert ended(slurm, job) == ["COMPLETED"]
    words = recorded()["0"]
    node = slurm.run("sinfo", "--noheader", "--format=%n")
    assert words[words.index("--nnodes") + 1] == "1"
    assert words[words.index("--nproc-per-node") + 1] == "4", "GPUs that SLURM gave"
    assert words[words.index("--rdzv-id") + 1] == job
    assert words[words.index("--rdzv-endpoint") + 1] == f"{node}:{20_000 + int(job) % 20_000}"


def test_a_prediction(slurm, pictures, model_path, same_as_one_process, tmp_path):
    source = pictures("a", "b", "c")
    small = ["--cpus-per-task=1", "--mem=3G"]
    given = (model_path, source, tmp_path / "out")
    first = submit(slurm, "predict.sbatch", *given, options=["--array=0-1", *small])
    after = [f"--dependency=afterany:{first}", "--array=0", *small]
    second = submit(slurm, "predict.sbatch", *given, options=after)
    assert ended(slurm, second) == ["COMPLETED"]
    assert same_as_one_process(source, options={"mirror": True}) == 3
    reports = {path.name for path in (tmp_path / "out" / "reports").iterdir()}
    assert reports == {f"{first}_0.json", f"{first}_1.json", f"{second}_0.json"}
