import pytest

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import Crop, level_shapes
from nnunet_octreenca.planning import level_factors, load_preset, preset_names
from nnunet_octreenca.planning.configuration import NETWORK_CLASS
from nnunet_octreenca.planning.settings import Settings

PAPER = [
    # name, n_in, parameters, context, coarsest level, crop, batch, steps
    ("radiology", 1, 17_600, (24, 320, 320), (6, 20, 20), Crop((6, 80, 80), 2), 3, 20),
    ("pathology", 3, 15_520, (320, 320), (20, 20), None, 3, 20),
    ("surgery", 3, 16_960, (80, 240, 432), (5, 15, 27), Crop((20, 60, 106), 2), 1, 27),
]


def test_there_are_the_papers_three():
    assert preset_names() == sorted(row[0] for row in PAPER)


@pytest.mark.parametrize(
    ("name", "n_in", "parameters", "context", "coarsest", "crop", "batch", "steps"), PAPER
)
def test_preset(name, n_in, parameters, context, coarsest, crop, batch, steps):
    preset = load_preset(name)
    kwargs = preset["architecture"]["arch_kwargs"]
    network = OctreeNCA(n_in, 2, **kwargs)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert tuple(preset["patch_size"]) == context
    assert [tuple(row) for row in kwargs["factors"]] == level_factors(context)
    assert level_shapes(context, kwargs["factors"])[-1] == coarsest
    assert kwargs["steps"] == [10, 10, 10, 10, steps]
    assert (network.level_channels[0], network.level_hidden[0], network.fire_rate) == (16, 64, 0.5)
    assert preset["batch_size"] == batch
    assert preset["architecture"]["network_class_name"] == NETWORK_CLASS
    settings = Settings.from_plans(preset["octreenca"])
    assert settings == Settings(
        crop_shape=crop.shape if crop else None,
        crop_levels=crop.levels if crop else 0,
        lr_schedule="exponential",
        gradient_clip=None,
    ), "the paper's schedule, no clipping"


def test_an_unknown_preset_is_named():
    with pytest.raises(
        PlansError,
        match="'prostate'; choose from paper, stochastic, wide, pathology, radiology, surgery",
    ):
        load_preset("prostate")


def test_a_preset_is_the_callers_own():
    load_preset("radiology")["patch_size"][0] = 1
    assert load_preset("radiology")["patch_size"] == [24, 320, 320]
