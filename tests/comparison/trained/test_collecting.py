"""The report of finished trainings: means, spread, timings in turn, and the pages."""

import numpy as np
import pytest
from helpers.compared_methods import METHODS_USED, FakeModel, finish, jobs_of

from nnunet_octreenca.cli import compare_trained
from nnunet_octreenca.cli.main import main
from nnunet_octreenca.comparison.trained import collecting, measuring, memory, prompted
from nnunet_octreenca.comparison.trained.paper import paper_table
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import read_json, write_json


def test_collecting_makes_a_report(prepared, monkeypatch, capsys):
    """Two methods, two folds, two seeds: means, spread, timings in turn, and the pages."""
    monkeypatch.setattr(measuring, "Model", FakeModel)
    monkeypatch.setattr(FakeModel, "order", [])
    asked = []

    def measure_sizes(job, shapes, limit, log, *, seconds):
        assert seconds == memory.SECONDS
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
    told = r"of TinyUNet and of OctreeNCA .*other cases .*b\); remove .*summary.json to validate"
    with pytest.raises(InputError, match=told):
        collecting.gather(jobs, request, prepared / "report", ".nii.gz")


@pytest.mark.parametrize("name", ["training.json", "validation/summary.json"])
@pytest.mark.parametrize("content", ["{", "{}"])
def test_damaged_files_are_named_before_anything_is_timed(
    prepared, monkeypatch, capsys, name, content
):
    """What is removed is made again: the state is then "not validated"."""
    monkeypatch.setattr(measuring, "Model", None)
    _, (job,) = jobs_of("TinyUNet")
    finish(job)
    (job.folder / name).write_text(content)
    words = ["-d", "907", "-c", "3d_fullres", "--methods", "TinyUNet", "--collect"]
    assert main(["compare", *words, "-o", str(prepared / "report")]) == 1
    said = capsys.readouterr().err
    assert f"{job.folder / name} " in said
    assert "remove it and run the same command again" in said
    (job.folder / name).unlink()
    assert job.state == "trained"


def test_the_papers_figures_stand_only_beside_its_data():
    table = paper_table({"description": "Medical Segmentation Decathlon, Task05_Prostate"})
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["OctreeNCA"] == ["82.5", "17,600", "2.18 GiB"]
    assert rows["M3D-NCA"][:2] == ["80.5", "12,480"]
    assert paper_table({"description": "Hippocampus"}) is None
    assert compare_trained.TIMED_CASES > 0
