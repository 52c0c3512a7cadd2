"""Which trainings `compare --methods` plans, and which finished ones it takes."""

import pytest
from helpers.compared_methods import DATASET, finish, jobs_of

from nnunet_octreenca import baselines
from nnunet_octreenca.errors import InputError, PlansError
from nnunet_octreenca.files import read_json, write_json


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


def test_a_seed_reaches_our_plans(prepared):
    _, jobs = jobs_of("OctreeNCA", seeds=(3, 4))
    blocks = [job.plans["configurations"]["3d_fullres"]["octreenca"] for job in jobs]
    assert [block["seed"] for block in blocks] == [3, 4]


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


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("labels", {"background": 0, "tumour": 1}, r'labels is {"background": 0, "tumour": 1} in'),
        ("channel_names", {"0": "CT"}, r'other channels .* is {"0": "CT"} in .* {"0": "MRI"} in'),
        ("regions_class_order", [1], r"other regions .* is \[1\] in .* and missing in"),
    ],
)
def test_a_training_of_other_classes_is_not_taken(prepared, key, value, sentence):
    """Its label 1 would be compared as the data set's."""
    _, (job,) = jobs_of("TinyUNet")
    finish(job)
    path = prepared / "preprocessed" / DATASET / "dataset.json"
    description = read_json(path, "")
    write_json(job.model / "dataset.json", description)
    assert jobs_of("TinyUNet")[1][0].state == "finished"
    write_json(job.model / "dataset.json", description | {key: value})
    with pytest.raises(InputError, match=rf"TinyUNet was trained .*{sentence}"):
        jobs_of("TinyUNet")


def planned(job, description):
    """What the trainer saves with its model."""
    if job.method.trainer in baselines.MODULES:
        trainer = baselines.trainer_class(job.method.trainer)
        return trainer.planned(job.plans, "3d_fullres", description)
    return job.plans
