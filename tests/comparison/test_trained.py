"""What `compare --methods` plans, refuses, runs and collects; trainings are stood in for."""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import SimpleITK as sitk
import untrained_model

from nnunet_octreenca import baselines
from nnunet_octreenca.cli import compare_trained
from nnunet_octreenca.cli.main import main
from nnunet_octreenca.comparison.trained import collecting, measuring, memory, prompted, running
from nnunet_octreenca.comparison.trained.jobs import make_request, plan_jobs
from nnunet_octreenca.comparison.trained.methods import METHODS, Method, find_methods
from nnunet_octreenca.comparison.trained.paper import paper_table
from nnunet_octreenca.comparison.trained.variants import change, parse_ablations
from nnunet_octreenca.errors import EnvironmentMismatchError, InputError, PlansError, TrainingError
from nnunet_octreenca.files import read_json, write_json
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.planning import extend_plans

DATASET = "Dataset907_Small"
CASES = {0: ["a", "b"], 1: ["c"]}
SHAPE = (8, 12, 10)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A data set of three cases, planned and preprocessed, as far as files go."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name / DATASET).mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    described = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    raw, folder = tmp_path / "raw" / DATASET, tmp_path / "preprocessed" / DATASET
    for base in (raw, folder):
        write_json(base / "dataset.json", described)
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
        save(folder / "gt_segmentations" / f"{case}.nii.gz", 3 + number)
        save(raw / "imagesTr" / f"{case}_0000.nii.gz", 3 + number)
        save(raw / "labelsTr" / f"{case}.nii.gz", 3 + number)
    return tmp_path


def save(path: Path, size: int) -> None:
    """A label map with a cuboid."""
    path.parent.mkdir(exist_ok=True, parents=True)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:6, 2 : 2 + size, 2:8] = 1
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(path))


def jobs_of(*methods, folds=("0",), ablate=(), **options):
    request = make_request(
        "907", "3d_fullres", folds, find_methods(methods), parse_ablations(ablate), **options
    )
    return request, plan_jobs(request)


def finish(job, size: int = 5, dice: float = 0.8, cases=None) -> None:
    """What a training and its validation leave."""
    validation = job.folder / "validation"
    for case in cases or CASES[job.fold]:
        save(validation / f"{case}.nii.gz", size)
    (job.folder / "checkpoint_final.pth").touch()
    write_json(validation / "summary.json", {"foreground_mean": {"Dice": dice}})
    write_json(
        job.folder / "training.json",
        {"seconds": 60.0, "iterations": 100, "parameters": 7040, "peak_bytes": 10**9,
         "device_peak_bytes": None, "curve": [[30.0, 0.5], [60.0, 0.6]]},
    )  # fmt: skip


def test_every_training_has_a_folder_of_its_own(prepared):
    _, jobs = jobs_of(
        "OctreeNCA", "tinyunet", folds=("0", "1"), ablate=("steps=5", "lambda=0.5"), seeds=(0, 1),
        budget=90.0,
    )  # fmt: skip
    assert len(jobs) == len({job.folder for job in jobs}) == (3 + 1) * 2 * 2
    names = [job.model.name for job in jobs]
    assert "OctreeNCATrainer__nnUNetOctreeNCAPlans_steps5_90s_seed1__3d_fullres" in names
    assert "TinyUNetTrainer__nnUNetPlans_90s_seed0__3d_fullres" in names
    assert all(name.count("__") == 2 for name in names)  # nnU-Net splits there
    _, plain = jobs_of("nnU-Net")
    assert plain[0].model.name == "nnUNetTrainer__nnUNetPlans__3d_fullres"  # nnU-Net's own


def test_variants_change_what_they_name(prepared):
    _, jobs = jobs_of("OctreeNCA", ablate=("steps=5", "levels=1", "alpha0=2", "ema=0.5", "batch=3"))
    found = {job.name: job.plans["configurations"]["3d_fullres"] for job in jobs}
    network = {name: own["architecture"]["arch_kwargs"] for name, own in found.items()}
    assert network["OctreeNCA"]["steps"] == [10, 8]
    assert network["OctreeNCA steps=5"]["steps"] == [5, 8]
    assert network["OctreeNCA levels=1"]["factors"] == []
    assert network["OctreeNCA levels=1"]["steps"] == [12]
    assert network["OctreeNCA alpha0=2"]["steps"] == [10, 16]
    assert found["OctreeNCA ema=0.5"]["octreenca"]["ema_decay"] == 0.5
    assert found["OctreeNCA batch=3"]["batch_size"] == 3
    for key in ("seed", "num_epochs"):
        assert len({own["octreenca"][key] for own in found.values()}) == 1


def test_fewer_levels_keep_their_channels():
    plans = extend_plans(
        untrained_model.stock_plans((32, 32)), input_channels=1, num_classes=2,
        foreground_labels=1, has_regions=False, settings={"channels": [16, 24, 20]},
    )  # fmt: skip
    configuration = plans["configurations"]["2d"]
    change(configuration, "levels", 2)
    arguments = configuration["architecture"]["arch_kwargs"]
    assert (arguments["channels"], arguments["hidden"]) == ([16, 24], [64, 96])
    assert OctreeNCA(1, 2, **arguments).level_channels == (16, 24)
    change(configuration, "channels", 20)
    assert OctreeNCA(1, 2, **arguments).level_hidden == (80, 80)


def test_a_seed_reaches_our_plans(prepared):
    _, jobs = jobs_of("OctreeNCA", seeds=(3, 4))
    blocks = [job.plans["configurations"]["3d_fullres"]["octreenca"] for job in jobs]
    assert [block["seed"] for block in blocks] == [3, 4]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--methods", "foo"], "there is no method 'foo'; choose from OctreeNCA, nnU-Net"),
        (["--methods", "OctreeNCA", "octree-nca"], "names OctreeNCA twice"),
        (["--methods", "TinyUNet", "-f", "all"], "-f all has no held-out cases"),
        (["--methods", "TinyUNet", "-f", "2"], "-f 2 is none of the 2 folds, 0 to 1"),
        (["--methods", "TinyUNet", "-f", "0", "0"], "-f 0 0 names one twice"),
        (["--methods", "TinyUNet", "--budget", "60"], "must be a time such as 90s"),
        (["--methods", "TinyUNet", "--budget", "0m"], "must be a time such as 90s"),
        (["--methods", "TinyUNet", "--seeds", "-1"], "--seeds -1: seeds are 0 to"),
        (["--methods", "TinyUNet", "--cases", "0"], "--cases is 0"),
        (["--methods", "TinyUNet", "--memory", "much"], "'much' is not an amount of memory"),
        (["--methods", "TinyUNet", "--ablate", "steps=3"], "varies OctreeNCA; add it"),
        (["--methods", "OctreeNCA", "--ablate", "size=3"], "with a key of steps, levels"),
        (["--methods", "OctreeNCA", "--ablate", "steps=a"], "'a' is no number"),
        (["--methods", "OctreeNCA", "--ablate", "steps=nan"], "nan is not a finite number"),
        (["--methods", "OctreeNCA", "--ablate", "steps=1.5"], "must be a whole number"),
        (["--methods", "OctreeNCA", "--ablate", "levels=3"], "the plans have 2 levels"),
        (["--methods", "OctreeNCA", "--ablate", "lambda=3"], "dice_weight is 3"),
        (["--methods", "OctreeNCA", "--ablate", "steps=1,1"], "names steps=1 twice"),
        (["--methods", "Med-NCA"], "is for 2-D images, but configuration '3d_fullres' has 3 axes"),
        (["--methods", "nnU-Net ResEnc M"], "-d 907 -pl nnUNetPlannerResEncM"),
        (["--methods", "TinyUNet", "--collect"], "fold 0 of TinyUNet has not been trained"),
        (["--methods", "TinyUNet", "--truth", "x"], "--truth is for finished predictions"),
        (["--methods", "TinyUNet", "--group-by", "("], "is no regular expression"),
        (["--methods", "TinyUNet", "--tolerance", "nan"], "--tolerance is nan"),
        (["--methods", "TinyUNet", "--metrics", "none"], "none"),
        ([], "--methods must be given"),
    ],
)  # fmt: skip
def test_what_is_refused_before_training(prepared, monkeypatch, capsys, words, sentence):
    monkeypatch.setattr(running, "run_child", lambda *_, **__: pytest.fail("trained"))
    out = prepared / "report"
    assert main(["compare", "-d", "907", "-c", "3d_fullres", "-o", str(out), *words]) == 1
    assert sentence in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("what", ["configuration", "data", "raw", "half"])
def test_missing_pieces(prepared, capsys, what):
    words = ["-d", "907", "-c", "3d_fullres", "--methods", "TinyUNet", "--collect"]
    if what == "configuration":
        words[3], sentence = "2d", "no configuration '2d'; it has 3d_fullres"
    elif what == "data":
        (prepared / "preprocessed" / DATASET / "nnUNetPlans_3d_fullres" / "a.b2nd").unlink()
        sentence = "nnUNetv2_preprocess -d 907 -plans_name nnUNetPlans -c 3d_fullres"
    elif what == "raw":
        (prepared / "raw" / DATASET / "dataset.json").unlink()
        sentence = "predictions are timed on the raw images"
    else:
        _, (job,) = jobs_of("TinyUNet")
        job.folder.mkdir(parents=True)
        (job.folder / "checkpoint_latest.pth").touch()
        sentence = "fold 0 of TinyUNet is half trained"
    assert main(["compare", *words, "-o", str(prepared / "report")]) == 1
    assert sentence in capsys.readouterr().err


def test_a_missing_extra_names_the_command(monkeypatch):
    monkeypatch.setitem(METHODS, "Other", Method("Other", "OtherTrainer", needs=("no_such_lib",)))
    with pytest.raises(EnvironmentMismatchError, match=r"needs no_such_lib.*\[baselines\]"):
        find_methods(["Other"])


def stand_in(monkeypatch, started, fails=None):
    """Trainings that only leave their files; `fails` is raised by the trainer of that name."""

    def run_child(command, *, log, environment):
        job = read_json(command[-1], "")
        plans = read_json(job["plans"], "")
        started.append((job["trainer"], job["fold"], job["minutes"], job["seed"]))
        name = f"{job['trainer']}__{plans['plans_name']}__{job['configuration']}"
        folder = Path(environment["nnUNet_results"]) / DATASET / name / f"fold_{job['fold']}"
        folder.mkdir(parents=True, exist_ok=True)
        if fails is not None and fails[0] == job["trainer"]:
            (folder / "checkpoint_latest.pth").touch()
            raise fails[1]
        _, jobs = jobs_of(*METHODS_USED, folds=("0", "1"), budget=90.0)
        finish(next(one for one in jobs if one.folder == folder))

    monkeypatch.setattr(running, "run_child", run_child)


METHODS_USED = ("OctreeNCA", "TinyUNet")


def test_killed_and_run_again(prepared, monkeypatch):
    """What was finished is not trained again, what was half trained is continued."""
    request, jobs = jobs_of(*METHODS_USED, folds=("0", "1"), budget=90.0)
    started, said = [], []
    stand_in(monkeypatch, started, fails=("TinyUNetTrainer", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        running.run_jobs(jobs, request, prepared / "report", "cpu", said.append)
    assert [job.state for job in jobs] == ["finished", "finished", "half", "missing"]
    started.clear(), said.clear()
    stand_in(monkeypatch, started)
    running.run_jobs(jobs, request, prepared / "report", "cpu", said.append)
    assert started == [("TinyUNetTrainer", 0, 1.5, None), ("TinyUNetTrainer", 1, 1.5, None)]
    assert said[0] == "[1/4] OctreeNCA, fold 0: finished"
    assert said[2] == "[3/4] TinyUNet, fold 0: continuing"
    assert {job.state for job in jobs} == {"finished"}


def test_a_training_that_fails_says_why(prepared, monkeypatch):
    from nnunet_octreenca.child_process import CommandError

    request, jobs = jobs_of("TinyUNet", budget=90.0)
    error = CommandError("failed", "Epoch 3\nERROR: the disk is full\n")
    stand_in(monkeypatch, [], fails=("TinyUNetTrainer", error))
    with pytest.raises(TrainingError, match=r"ended with: the disk is full \(all .*fold_0\.log"):
        running.run_jobs(jobs, request, prepared / "report", "cpu", print)


class FakeModel:
    """Instead of a process with a model."""

    order: ClassVar[list] = []

    def __init__(self, job, device, log):
        self.job = job

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def segment(self, files, out, *, memory=False):
        assert all(Path(file).is_file() for file in files)
        self.order.append((self.job.name, out.name, *(["memory"] if memory else [])))
        own = self.job.name == "OctreeNCA"
        return {"seconds": 2.0 if own else 4.0, "network_seconds": 1.0,
                "voxels": 1000 if out.name == "b" else 10, "peak_bytes": 5 * 10**8,
                "network_bytes": 50_000 if own and memory else None,
                "device_peak_bytes": None}  # fmt: skip


def test_collecting_makes_a_report(prepared, monkeypatch, capsys):
    """Two methods, two folds, two seeds: means, spread, timings in turn, and the pages."""
    monkeypatch.setattr(measuring, "Model", FakeModel)
    monkeypatch.setattr(FakeModel, "order", [])
    asked = []

    def measure_sizes(job, shapes, limit, log):
        asked.append((job["trainer"], shapes[0], limit))
        each = 40 if job["trainer"] == "OctreeNCATrainer" else 4000
        rows = [{"shape": [n] * 3, "voxels": n**3, "bytes": each * n**3} for n in (64, 96)]
        return memory.Sizes(1, tuple(rows), (128,) * 3)

    monkeypatch.setattr(memory, "measure_sizes", measure_sizes)
    _, jobs = jobs_of(*METHODS_USED, folds=("0", "1"), seeds=(0, 1))
    for job in jobs:
        finish(job, size=4 if job.name == "OctreeNCA" else 7, dice=0.8 + 0.1 * job.seed)
    out = prepared / "report"
    words = ["-d", "907", "-c", "3d_fullres", "-f", "0", "1", "--methods", *METHODS_USED]
    monkeypatch.setattr("sys.argv", ["nnunet_octreenca", "compare", *words])
    assert main(["compare", *words, "--seeds", "0", "1", "--collect", "--memory", "3G",
                 "-o", str(out)]) == 0  # fmt: skip
    assert FakeModel.order == [
        ("OctreeNCA", "a"), ("TinyUNet", "a"),  # cold
        ("OctreeNCA", "a"), ("TinyUNet", "a"),
        ("TinyUNet", "b"), ("OctreeNCA", "b"),
        ("OctreeNCA", "b", "memory"), ("TinyUNet", "b", "memory"),
    ]  # fmt: skip
    records = read_json(out / "records.json", "")["methods"]
    assert records["OctreeNCA"]["case_seconds"] == 2
    assert records["TinyUNet"]["case_seconds"] == 4
    assert records["OctreeNCA"]["bytes_per_voxel"] == 50
    assert "bytes_per_voxel" not in records["TinyUNet"]
    assert records["TinyUNet"]["seeds"] == 2
    content = read_json(out / "comparison.json", "")
    assert [case["case"] for case in content["cases"]] == ["a", "b", "c"]
    octree = [case["metrics"]["OctreeNCA"]["organ"]["dice"] for case in content["cases"]]
    assert octree == pytest.approx([2 * 3 / 7, 1.0, 2 * 4 / 9])  # sizes 3, 4, 5 against 4
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "0.8500 ± 0.0707" in page
    assert "trainings from seed 0" in page
    assert "As given by --records" not in page
    assert "In the paper" not in page
    assert asked == [
        ("OctreeNCATrainer", (64,) * 3, 3 << 30),
        ("TinyUNetTrainer", (64,) * 3, 3 << 30),
    ]
    curve = records["TinyUNet"]["curves"][1]
    assert curve["scale"] == "log"
    assert curve["points"][1] == pytest.approx([0.884736, 3.538944])
    assert "96 x 96 x 96" in page
    assert "paper: M3D-NCA" in page
    assert "Memory of one pass (GB)" in page
    assert "open it in a browser" in capsys.readouterr().out


def test_prompted_methods_stand_beside(prepared, monkeypatch, capsys):
    """SAM2 is shown the truth of the held-out cases; it has a record and a caveat, no training."""
    pytest.importorskip("transformers")

    class Follows:
        parameters = 5

        def __init__(self, folder, device):
            assert folder.name == "weights"

        def clip(self, frames, truth, seed):
            assert frames.shape == (*truth.shape, 3)
            return truth.astype(np.uint8)

    monkeypatch.setattr(prompted, "Prompted", Follows)
    monkeypatch.setattr(measuring, "Model", FakeModel)
    monkeypatch.setattr(FakeModel, "order", [])
    monkeypatch.setattr("sys.argv", ["nnunet_octreenca", "compare"])
    _, jobs = jobs_of("TinyUNet")
    finish(jobs[0])
    (prepared / "weights").mkdir()
    write_json(prepared / "weights" / "config.json", {"model_type": "sam2"})
    out = prepared / "report"
    words = ["-d", "907", "-c", "3d_fullres", "--collect", "--memory", "0", "--metrics", "dice"]
    words += ["-o", str(out), "--methods", "SAM2"]
    assert main(["compare", *words]) == 1
    assert "SAM2 is compared with what is trained; add a method" in capsys.readouterr().err
    words.append("TinyUNet")
    assert main(["compare", *words]) == 1
    assert "SAM2 needs trained weights" in capsys.readouterr().err
    assert main(["compare", *words, "--sam-checkpoint", str(prepared / "weights")]) == 0
    content = read_json(out / "comparison.json", "")
    assert {case["metrics"]["SAM2"]["organ"]["dice"] for case in content["cases"]} == {1}
    records = read_json(out / "records.json", "")["methods"]
    assert records["SAM2"]["parameters"] == 5
    assert len(records["TinyUNet"]["curves"]) == 1
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "SAM2: Not trained on this data set, but shown one random point of each class" in page


def test_other_cases_are_not_compared(prepared):
    request, jobs = jobs_of(*METHODS_USED)
    finish(jobs[0])
    finish(jobs[1], cases=["a", "c"])
    with pytest.raises(InputError, match=r"of TinyUNet and of OctreeNCA .*different cases.*b"):
        collecting.gather(jobs, request, prepared / "report", ".nii.gz")


@pytest.mark.parametrize("method", ["OctreeNCA", "M3D-NCA", "nnU-Net"])
def test_a_training_of_other_plans_is_not_taken(prepared, method):
    _, (job,) = jobs_of(method)
    finish(job)
    description = read_json(prepared / "preprocessed" / DATASET / "dataset.json", "")
    write_json(job.model / "plans.json", planned(job, description))
    _, (again,) = jobs_of(method)
    assert again.state == "finished"
    path = prepared / "preprocessed" / DATASET / f"{job.method.plans}.json"
    plans = read_json(path, "")
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]
    write_json(path, plans)
    with pytest.raises(PlansError, match=rf"{method} was trained with other plans .* in spacing"):
        jobs_of(method)


def planned(job, description):
    """What the trainer saves with its model."""
    if job.method.trainer in baselines.MODULES:
        trainer = baselines.trainer_class(job.method.trainer)
        return trainer.planned(job.plans, "3d_fullres", description)
    return job.plans


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


def test_the_papers_figures_stand_only_beside_its_data():
    table = paper_table({"description": "Medical Segmentation Decathlon, Task05_Prostate"})
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["OctreeNCA"] == ["82.5", "17,600", "2.18 GiB"]
    assert rows["M3D-NCA"][:2] == ["80.5", "12,480"]
    assert paper_table({"description": "Hippocampus"}) is None
    assert compare_trained.TIMED_CASES > 0


@pytest.mark.slow
@pytest.mark.nightly
def test_two_methods_from_end_to_end(nnunet, tmp_path):
    """Trainings by the clock in processes of their own, one of them killed and continued."""
    import signal
    import subprocess
    import sys
    import time

    out = tmp_path / "report"
    words = ["-d", "901", "-c", "3d_fullres", "--methods", "TinyUNet", "M3D-NCA", "--cases", "1"]
    words += ["--budget", "10s", "--memory", "300M", "-device", "cpu", "--metrics", "dice"]
    words += ["-o", str(out)]
    command = [sys.executable, "-m", "nnunet_octreenca.cli.main", "compare", *words]
    results = nnunet.results / "Dataset901_Phantoms"
    latest = results / "TinyUNetTrainer__nnUNetPlans_10s__3d_fullres/fold_0/checkpoint_latest.pth"
    process = subprocess.Popen(command, env=nnunet.environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not latest.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert not (latest.parent / "training.json").exists()
    nnunet.run("python", *command[1:])
    facts = read_json(latest.parent / "training.json", "")
    assert 10 <= facts["seconds"] < 60
    assert facts["parameters"] > 20_000
    assert not latest.exists()
    records = read_json(out / "records.json", "")["methods"]
    for record in records.values():
        assert 0 < record["network_seconds"] <= record["case_seconds"] < record["cold_seconds"]
        assert record["iterations"] >= 1
        assert len(record["curves"][1]["points"]) >= 1
    if sys.platform == "linux":
        assert records["TinyUNet"]["bytes_per_voxel"] > 20  # six channels of float32 and more
    content = read_json(out / "comparison.json", "")
    summary = read_json(latest.parent / "validation" / "summary.json", "")
    means = {row["method"]: row["interval"]["mean"] for row in content["summary"]
             if row["class_name"] == "mean of classes"}  # fmt: skip
    assert means["TinyUNet"] == pytest.approx(summary["foreground_mean"]["Dice"])
    assert (out / "report.html").stat().st_size > 10_000
