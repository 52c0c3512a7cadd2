"""OctreeNCAPlanner and extend_plans: the same plans, on the same preprocessed data."""

import json

import pytest

pytestmark = pytest.mark.slow

DATASET = "Dataset901_Phantoms"


def test_extended_plans_keep_the_data(nnunet):
    stock = json.loads((nnunet.preprocessed / DATASET / "nnUNetPlans.json").read_text())
    ours = json.loads((nnunet.preprocessed / DATASET / "nnUNetOctreeNCAPlans.json").read_text())
    assert ours["configurations"].keys() == stock["configurations"].keys()
    for name in ("2d", "3d_fullres", "3d_lowres"):
        one, other = stock["configurations"][name], ours["configurations"][name]
        for key in ("data_identifier", "spacing", "normalization_schemes", "resampling_fn_data"):
            assert one[key] == other[key]
    cascade = ours["configurations"]["3d_cascade_fullres"]
    assert (cascade["inherits_from"], cascade["previous_stage"]) == ("3d_fullres", "3d_lowres")


@pytest.mark.usefixtures("registered")
def test_planner_and_extend_plans_agree(nnunet):
    """`-pl OctreeNCAPlanner` works out what `extend_plans` does, and reuses the data too."""
    nnunet.run(
        "nnUNetv2_plan_experiment",
        *("-d", 901, "-pl", "OctreeNCAPlanner", "-overwrite_plans_name", "FromPlanner"),
    )
    nnunet.run(
        "nnunet_octreenca", "extend_plans", "-d", 901, "-overwrite_plans_name", "FromExtension"
    )
    folder = nnunet.preprocessed / DATASET
    planned = json.loads((folder / "FromPlanner.json").read_text())
    extended = json.loads((folder / "FromExtension.json").read_text())
    assert planned["plans_name"] == "FromPlanner"
    assert planned["experiment_planner_used"] == "OctreeNCAPlanner"
    for name in ("2d", "3d_fullres"):
        assert planned["configurations"][name] == extended["configurations"][name]


def test_memory_target_crops(nnunet):
    """A fiftieth of a gibibyte does not hold three whole images."""
    output = nnunet.run(
        "nnunet_octreenca",
        *("extend_plans", "-d", 901, "--preset", "paper", "-gpu_memory_target", 0.02),
        *("-overwrite_plans_name", "SmallPlans"),
    ).output
    small, whole = (
        json.loads((nnunet.preprocessed / DATASET / f"{name}.json").read_text())
        for name in ("SmallPlans", "nnUNetOctreeNCAPlans")
    )
    assert "3d_fullres: context" in output
    volumes = [plans["configurations"]["3d_fullres"]["patch_size"][1] for plans in (small, whole)]
    assert volumes[0] < volumes[1]
