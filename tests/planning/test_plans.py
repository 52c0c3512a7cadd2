"""A plans file of stock nnU-Net's form, extended."""

import json
import pydoc
from copy import deepcopy
from dataclasses import replace

import pytest

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import level_shapes
from nnunet_octreenca.planning import (
    RECIPES,
    extend_plans,
    load_preset,
    octreenca_configuration,
    octreenca_settings,
    recipe_named,
    training_bytes,
)
from nnunet_octreenca.planning.configuration import NETWORK_CLASS
from nnunet_octreenca.planning.input_statistics import input_statistics
from nnunet_octreenca.planning.settings import Settings

UNET = {"network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet"}
PLANS = {
    "dataset_name": "Dataset001_Made",
    "plans_name": "nnUNetPlans",
    "original_median_shape_after_transp": [36, 50, 35],
    "configurations": {
        "2d": {
            "data_identifier": "nnUNetPlans_2d",
            "batch_size": 366,
            "patch_size": [56, 40],
            "median_image_size_in_voxels": [50.0, 35.0],
            "spacing": [1.0, 1.0],
            "architecture": UNET,
        },
        "3d_lowres": {
            "data_identifier": "nnUNetPlans_3d_lowres",
            "batch_size": 2,
            "patch_size": [32, 32, 32],
            "median_image_size_in_voxels": [24, 33, 23],
            "spacing": [1.5, 1.5, 1.5],
            "architecture": UNET,
            "next_stage": "3d_cascade_fullres",
        },
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "batch_size": 9,
            "patch_size": [40, 56, 40],
            "median_image_size_in_voxels": [36.0, 50.0, 35.0],
            "spacing": [1.0, 1.0, 1.0],
            "architecture": UNET,
        },
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        "3d_fullres_small_batch": {"inherits_from": "3d_fullres", "batch_size": 1},
    },
    "label_manager": "LabelManager",
}
DATA = {"input_channels": 1, "num_classes": 3, "foreground_labels": 2, "has_regions": False}


def resolved(plans, name):
    """A configuration with its inheritance resolved, as nnU-Net's PlansManager does it."""
    configuration = plans["configurations"][name]
    parent = configuration.get("inherits_from")
    return {**(resolved(plans, parent) if parent else {}), **configuration}


def build(plans, name, n_in, classes):
    return OctreeNCA(n_in, classes, **resolved(plans, name)["architecture"]["arch_kwargs"])


@pytest.mark.parametrize(
    ("name", "context", "coarsest", "steps", "n_in", "crop"),
    [
        ("2d", [56, 40], (7, 5), [5, 5, 5, 7], 1, (32, 24)),
        ("3d_lowres", [24, 40, 24], (6, 5, 6), [5, 5, 5, 6], 1, (16, 22, 16)),
        ("3d_fullres", [40, 56, 40], (5, 7, 5), [5, 5, 5, 7], 1, (22, 30, 22)),
        ("3d_cascade_fullres", [40, 56, 40], (5, 7, 5), [5, 5, 5, 7], 3, (22, 30, 22)),
        ("3d_fullres_small_batch", [40, 56, 40], (5, 7, 5), [5, 5, 5, 7], 1, (22, 30, 22)),
    ],
)
def test_configurations(name, context, coarsest, steps, n_in, crop):
    extended = extend_plans(PLANS, **DATA)
    configuration = resolved(extended, name)
    assert configuration["patch_size"] == context
    assert configuration["batch_size"] == 1
    network = build(extended, name, n_in, 3)
    assert (network.dimension, network.level_channels[0], network.level_hidden[0]) == (
        len(context),
        16,
        64,
    )
    assert network.steps == tuple(steps)
    assert level_shapes(context, network.factors)[-1] == coarsest
    assert network.fire_rate == 1
    assert network.constant_background
    settings = octreenca_settings(configuration, configuration_name=name, plans_name="p")
    recipe = Settings(optimizer="soap", initial_lr=4e-3, warm_up=0.05, loss_on_levels=0.5)
    uses = 2 if n_in == 3 else 1  # three channels take longer to load than a step
    assert settings == replace(recipe, crop_shape=crop, crop_levels=1, steps_per_context=uses)


@pytest.mark.parametrize(
    ("cases", "options", "expected"),
    [
        (19, {}, {"2d": 0.2, "3d_fullres": 0.2, "3d_lowres": 0.2}),
        (20, {}, {"2d": 0.0, "3d_fullres": 0.0, "3d_lowres": 0.0}),
        (None, {}, {"2d": 0.0, "3d_fullres": 0.0, "3d_lowres": 0.0}),
        (5, {"settings": {"shift": 0.1}}, {"2d": 0.1, "3d_fullres": 0.1}),
        (5, {"settings": {"shift": 0}}, {"2d": 0.0, "3d_fullres": 0.0}),
        (5, {"recipe": RECIPES["paper"]}, {"2d": 0.0, "3d_fullres": 0.0}),
        (5, {"recipe": RECIPES["wide"]}, {"2d": 0.2, "3d_fullres": 0.2}),
        # Contexts of a part of the image are drawn anywhere already.
        (5, {"gpu_memory_target_in_gb": 0.01}, {"3d_fullres": 0.0}),
    ],
)
def test_contexts_are_moved_where_cases_are_few(cases, options, expected):
    extended = extend_plans(PLANS, **{**DATA, **options}, cases=cases)
    found = {name: resolved(extended, name)["octreenca"]["shift"] for name in expected}
    assert found == expected


INTENSITIES = {"0": {"mean": 51.0, "std": 25.5}, "1": {"mean": 400.0, "std": 80.0}}


@pytest.mark.parametrize(
    ("schemes", "mean", "std"),
    [
        (["RGBTo01Normalization", "NoNormalization"], [0.2, 400.0], [0.1, 80.0]),
        (["ZScoreNormalization", "NoNormalization"], [0.0, 400.0], [1.0, 80.0]),
        (["ZScoreNormalization", "CTNormalization"], None, None),
    ],
)
def test_raw_intensities_are_standardized_by_the_network(schemes, mean, std):
    plans = deepcopy(PLANS)
    plans["foreground_intensity_properties_per_channel"] = INTENSITIES
    for name in ("2d", "3d_lowres", "3d_fullres"):
        plans["configurations"][name]["normalization_schemes"] = schemes
    extended = extend_plans(plans, **{**DATA, "input_channels": 2})
    network = resolved(extended, "3d_fullres")["architecture"]["arch_kwargs"]
    assert (network.get("input_mean"), network.get("input_std")) == (mean, std)
    build(extended, "3d_fullres", 2, 3)
    # A cascade's second stage also sees two labels, which stay 0 and 1.
    cascaded = resolved(extended, "3d_cascade_fullres")["architecture"]["arch_kwargs"]
    assert cascaded.get("input_std") == (None if std is None else [*std, 1.0, 1.0])
    paper = extend_plans(plans, **{**DATA, "input_channels": 2}, recipe=RECIPES["paper"])
    assert "input_mean" not in resolved(paper, "3d_fullres")["architecture"]["arch_kwargs"]


@pytest.mark.parametrize("own", [{"mean": 3.0, "std": 0.0}, {"mean": float("nan"), "std": 1.0},
                                 {"mean": None, "std": "1"}, {}, 5])  # fmt: skip
def test_statistics_that_say_nothing_are_left_out(own):
    assert input_statistics({"0": own}, ["NoNormalization"], 1) is None


def test_the_paper_s_recipe():
    extended = extend_plans(PLANS, **DATA, recipe=recipe_named("paper"))
    configuration = extended["configurations"]["3d_fullres"]
    assert configuration["batch_size"] == 3
    settings = octreenca_settings(configuration, configuration_name="x", plans_name="p")
    assert settings == Settings(lr_schedule="exponential", gradient_clip=None)
    with pytest.raises(PlansError, match="'prostate'; choose from default, paper"):
        recipe_named("prostate")


def test_what_data_depend_on_stays_as_it_was():
    extended = extend_plans(PLANS, **DATA)
    assert extended["plans_name"] == "nnUNetOctreeNCAPlans"
    ours = {"batch_size", "patch_size", "architecture", "octreenca"}
    for name, configuration in PLANS["configurations"].items():
        new = extended["configurations"][name]
        kept = {key: value for key, value in configuration.items() if key not in ours}
        assert {key: value for key, value in new.items() if key not in ours} == kept
    for key in PLANS.keys() - {"plans_name", "configurations"}:
        assert extended[key] == PLANS[key]
    assert json.loads(json.dumps(extended)) == extended


def test_a_configuration_that_only_inherits_is_left_alone():
    extended = extend_plans(PLANS, **DATA)
    name = "3d_fullres_small_batch"
    assert extended["configurations"][name] == PLANS["configurations"][name]


def test_the_given_plans_are_not_changed():
    plans = deepcopy(PLANS)
    extended = extend_plans(plans, **DATA)
    extended["configurations"]["2d"]["spacing"][0] = 99
    assert plans == PLANS


@pytest.mark.parametrize(
    ("name", "n_in", "channels"), [("3d_fullres", 5, 60), ("3d_cascade_fullres", 50, 104)]
)
def test_a_cascades_second_stage_takes_the_labels_as_channels(name, n_in, channels):
    """n_in + K + 8: 5 + 45 + 8 = 58 and (5 + 45) + 45 + 8 = 103."""
    many = {**DATA, "input_channels": 5, "num_classes": 46, "foreground_labels": 45}
    extended = extend_plans(PLANS, **many)
    network = build(extended, name, n_in, 46)
    assert (network.level_channels[0], network.level_hidden[0]) == (channels, 4 * channels)


def test_regions_have_no_constant_background():
    regions = {**DATA, "has_regions": True, "num_classes": 1, "foreground_labels": 2}
    extended = extend_plans(PLANS, **regions)
    network = build(extended, "3d_fullres", 1, 1)
    assert network.logits == 1
    assert not network.constant_background


@pytest.mark.parametrize("gib", [0.4, 0.1, 0.03])
def test_what_is_planned_fits_the_memory_target(gib):
    configuration = octreenca_configuration(
        (155, 240, 240),
        input_channels=4,
        num_classes=4,
        has_regions=False,
        gpu_memory_target_in_gb=gib,
        batch_size=2,
    )
    kwargs = configuration["architecture"]["arch_kwargs"]
    needed = training_bytes(
        configuration["patch_size"],
        **{key: kwargs[key] for key in ("factors", "steps", "channels", "hidden")},
        input_channels=4,
        num_classes=4,
        batch_size=2,
        crop=Settings.from_plans(configuration["octreenca"]).crop,
        engine="cuda",
    )
    assert needed <= gib * 2**30
    if gib < 0.4:
        assert needed > gib * 2**30 / 3, "and the target is used"


def test_less_memory_crops_first_then_shrinks():
    def plan(gib):
        configuration = octreenca_configuration(
            (24, 320, 320),
            input_channels=1,
            num_classes=2,
            has_regions=False,
            gpu_memory_target_in_gb=gib,
            recipe=recipe_named("paper"),
        )
        block = configuration["octreenca"]
        return configuration["patch_size"], block["crop_shape"], block["crop_levels"]

    assert plan(100) == ([24, 320, 320], None, 0)
    assert plan(2.0) == ([24, 320, 320], [12, 160, 160], 1)
    assert plan(0.5) == ([24, 320, 320], [6, 80, 80], 2)  # the paper's
    assert plan(0.2)[0] != [24, 320, 320]


def test_settings_go_into_every_planned_configuration():
    extended = extend_plans(
        PLANS, **DATA, settings={"num_epochs": 7, "crop_shape": [16, 16, 16], "crop_levels": 1}
    )
    for name in ("3d_lowres", "3d_fullres", "3d_cascade_fullres"):
        block = extended["configurations"][name]["octreenca"]
        assert (block["num_epochs"], block["crop_shape"]) == (7, [16, 16, 16])
    other = extended["configurations"]["2d"]["octreenca"]
    assert (other["num_epochs"], other["crop_shape"]) == (7, [32, 24])
    with pytest.raises(PlansError, match="has unknown keys: epochs"):
        extend_plans(PLANS, **DATA, settings={"epochs": 7})


@pytest.mark.parametrize(
    "settings",
    [{"crop_shape": [16, 16, 16]}, {"crop_levels": 2}, {"crop_shape": None, "crop_levels": 1}],
)
def test_a_crop_has_a_shape_and_levels(settings):
    with pytest.raises(PlansError, match=r"crop_shape is .* and crop_levels .: give both"):
        extend_plans(PLANS, **DATA, settings=settings)


def test_no_crop_where_none_is_wanted():
    extended = extend_plans(PLANS, **DATA, settings={"crop_shape": None})
    assert extended["configurations"]["3d_fullres"]["octreenca"]["crop_shape"] is None


def test_a_preset_replaces_the_configurations_of_its_dimension():
    extended = extend_plans(
        PLANS, **DATA, preset=load_preset("radiology"), settings={"num_epochs": 7}
    )
    configuration = extended["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [24, 320, 320]
    assert configuration["batch_size"] == 3
    assert build(extended, "3d_fullres", 1, 3).steps == (10, 10, 10, 10, 20)
    preset = Settings.from_plans(load_preset("radiology")["octreenca"])
    expected = replace(preset, num_epochs=7).to_plans()
    assert configuration["octreenca"] == expected
    assert configuration["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert extended["configurations"]["2d"]["patch_size"] == [56, 40]
    regions = extend_plans(PLANS, **{**DATA, "has_regions": True}, preset=load_preset("radiology"))
    assert not build(regions, "3d_fullres", 1, 3).constant_background


def test_batch_size_and_plans_name_can_be_given():
    extended = extend_plans(PLANS, **DATA, batch_size=5, plans_name="Mine")
    assert extended["plans_name"] == "Mine"
    assert extended["configurations"]["3d_fullres"]["batch_size"] == 5


@pytest.mark.parametrize("plans", [{}, {"configurations": {}}, {"configurations": [1]}])
def test_what_is_no_plans_file_is_refused(plans):
    with pytest.raises(PlansError, match=r"not an nnU-Net plans file.*plan_experiment"):
        extend_plans(plans, **DATA)


def test_a_name_that_nnunet_would_split_is_refused():
    with pytest.raises(PlansError, match="'My__Plans' must not hold '__'"):
        extend_plans(PLANS, **DATA, plans_name="My__Plans")


def test_a_missing_median_shape_is_named():
    plans = deepcopy(PLANS)
    del plans["configurations"]["3d_fullres"]["median_image_size_in_voxels"]
    with pytest.raises(PlansError, match="'3d_fullres' has no 'median_image_size_in_voxels'"):
        extend_plans(plans, **DATA)


def test_inheritance_in_a_circle_ends():
    plans = deepcopy(PLANS)
    for name, parent in (("a", "b"), ("b", "a")):
        plans["configurations"][name] = {"inherits_from": parent, "previous_stage": "3d_lowres"}
    with pytest.raises(PlansError, match=r"'a' has no .*looked in a -> b"):
        extend_plans(plans, **DATA)


def test_a_target_that_nothing_fits_is_refused():
    with pytest.raises(PlansError, match="-gpu_memory_target"):
        extend_plans(PLANS, **DATA, gpu_memory_target_in_gb=1e-8)


def test_another_networks_configuration_is_named():
    with pytest.raises(PlansError, match="'2d' of plans 'nnUNetPlans' describes PlainConvUNet"):
        octreenca_settings(
            PLANS["configurations"]["2d"], configuration_name="2d", plans_name="nnUNetPlans"
        )


def test_the_plans_name_the_network_by_where_it_is_found():
    assert pydoc.locate(NETWORK_CLASS) is OctreeNCA


def test_a_preset_that_cannot_hold_the_labels_is_refused():
    """The presets' cells have 16 channels: too few for an image and 40 labels."""
    many = {**DATA, "num_classes": 41, "foreground_labels": 40}
    with pytest.raises(PlansError, match=r"16 channels, but '\w+' needs \d+ for image and labels"):
        extend_plans(PLANS, **many, preset=load_preset("radiology"))


def test_channels_of_every_level_are_given_to_the_plans():
    extended = extend_plans(PLANS, **DATA, settings={"channels": [16, 24, 32, 48]})
    network = build(extended, "3d_fullres", 1, 3)
    assert network.level_channels == (16, 24, 32, 48)
    assert network.level_hidden == (64, 96, 128, 192)
    kwargs = extended["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert (kwargs["channels"], kwargs["hidden"]) == ([16, 24, 32, 48], [64, 96, 128, 192])
    for settings, wanted in (
        ({"channels": 20}, (20, 80)),
        ({"channels": [20] * 4, "hidden": 30}, (20, 30)),
        ({"hidden": 30}, (16, 30)),
    ):
        kwargs = extend_plans(PLANS, **DATA, settings=settings)["configurations"]["2d"][
            "architecture"
        ]["arch_kwargs"]
        assert (kwargs["channels"], kwargs["hidden"]) == wanted


def test_the_wide_recipe_has_more_channels_on_coarse_levels():
    extended = extend_plans(PLANS, **DATA, recipe=RECIPES["wide"])
    network = build(extended, "3d_fullres", 1, 3)
    assert network.level_channels == (16, 16, 32, 48)
    assert network.level_hidden == (64, 64, 128, 192)
    assert build(extended, "2d", 1, 3).level_channels == (16, 16, 16, 16)
    assert build(extend_plans(PLANS, **DATA), "3d_fullres", 1, 3).level_channels == (16,) * 4
    given = extend_plans(PLANS, **DATA, recipe=RECIPES["wide"], settings={"channels": 20})
    assert build(given, "3d_fullres", 1, 3).level_channels == (20,) * 4


def test_the_stochastic_recipe_differs_in_steps_fire_rate_and_optimizer_alone():
    usual, stochastic = (
        extend_plans(PLANS, **DATA, recipe=RECIPES[name])["configurations"]["3d_fullres"]
        for name in ("default", "stochastic")
    )
    network = stochastic["architecture"]["arch_kwargs"]
    assert (network["steps"], network["fire_rate"]) == ([10, 10, 10, 7], 0.5)
    network.update(steps=[5, 5, 5, 7], fire_rate=1.0)
    assert stochastic["octreenca"]["optimizer"] == "adam"
    stochastic["octreenca"].update(optimizer="soap")
    assert stochastic == usual


def test_a_list_is_for_the_configurations_of_as_many_levels():
    """A 2-D configuration of large images has more levels than a 3-D one of small volumes."""
    plans = deepcopy(PLANS)
    plans["configurations"]["2d"]["median_image_size_in_voxels"] = [320.0, 320.0]
    extended = extend_plans(plans, **DATA, settings={"channels": [16, 24, 32, 48]})
    assert build(extended, "2d", 1, 3).level_channels == (16,) * 5
    assert build(extended, "3d_fullres", 1, 3).level_channels == (16, 24, 32, 48)


@pytest.mark.parametrize("preset", [None, "radiology"])
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"channels": [16, 24]}, r"channels is \[16, 24\] for 2 levels, but the configurations"),
        ({"channels": "wide"}, "channels is 'wide', but must be a whole number"),
        ({"channels": [16, 0, 24, 32]}, r"channels is \[16, 0, 24, 32\], but must be"),
        ({"hidden": 10**9}, "hidden is 1000000000, but must be"),
        ({"channels": 2}, r"channels|needs 3 for image"),
    ],
)
def test_channels_that_cannot_be_are_named(settings, named, preset):
    with pytest.raises(PlansError, match=named):
        extend_plans(PLANS, **DATA, settings=settings, preset=preset and load_preset(preset))


def test_a_preset_takes_other_channels():
    plans = extend_plans(
        PLANS, **DATA, settings={"channels": [16, 16, 24, 32, 48]}, preset=load_preset("radiology")
    )
    network = build(plans, "3d_fullres", 1, 3)
    assert network.level_channels == (16, 16, 24, 32, 48)
    assert network.level_hidden == (64, 64, 96, 128, 192)
    plain = extend_plans(PLANS, **DATA, preset=load_preset("radiology"))
    assert build(plain, "3d_fullres", 1, 3).level_hidden == (64,) * 5
