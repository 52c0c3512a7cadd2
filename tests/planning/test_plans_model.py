"""plans.json and dataset.json of others: one fault, one sentence, and nothing is imported."""

import copy
import json

import pytest
import untrained_model

from nnunet_octreenca.errors import InputError, PlansError
from nnunet_octreenca.files import read_json
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.planning import extend_plans
from nnunet_octreenca.planning.dataset_description import DatasetDescription, description_faults
from nnunet_octreenca.planning.network_model import read_network
from nnunet_octreenca.planning.plans_faults import plans_faults
from nnunet_octreenca.planning.plans_model import check_model, read_plans
from nnunet_octreenca.planning.value_rules import MAX_DEPTH, too_deep

DATASET = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}
HERE = "configurations.3d_fullres."


@pytest.fixture(scope="module")
def good():
    stock = untrained_model.stock_plans((16, 32, 32), 2, spacing=(2.0, 1.0, 1.0))
    plans = extend_plans(
        stock, input_channels=2, num_classes=3, foreground_labels=2, has_regions=False
    )
    fullres = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_cascade"] = {
        "inherits_from": "3d_fullres",
        "previous_stage": "3d_fullres",
        "batch_size": 1,
    }
    fullres["next_stage"] = "3d_cascade"
    return plans


def set_to(place, value):
    """A change of one value; `place` is dotted, with "3d" short for the configuration."""

    def change(plans):
        *parents, key = place.split(".")
        here = plans
        for parent in parents:
            here = here["configurations"]["3d_fullres"] if parent == "3d" else here[parent]
        here[key] = value

    change.__name__ = f"{place} = {str(value)[:30]}"
    return change


def without(place):
    def change(plans):
        *parents, key = place.split(".")
        here = plans
        for parent in parents:
            here = here["configurations"]["3d_fullres"] if parent == "3d" else here[parent]
        del here[key]

    change.__name__ = f"no {place}"
    return change


STATISTICS = "foreground_intensity_properties_per_channel.0."
NETWORK = "3d.architecture.arch_kwargs."

FAULTS = [
    # numbers of axes
    (set_to("3d.spacing", [1.0, 1.0]), "spacing is [1.0, 1.0], but must be a list of 3"),
    (set_to("3d.spacing", [1.0, 0.0, 1.0]), "within (0, 1e+09]"),
    (set_to("3d.spacing", [1.0, float("nan"), 1.0]), "each a finite number"),
    (set_to("3d.spacing", "1 1 1"), "spacing is '1 1 1'"),
    (set_to("3d.median_image_size_in_voxels", [1, 1]), "a list of 3"),
    (set_to("3d.patch_size", [16, 32]), "spacing is [2.0, 1.0, 1.0], but must be a list of 2"),
    (set_to("3d.patch_size", [0, 32, 32]), "patch_size is [0, 32, 32]"),
    (set_to("3d.patch_size", [16, 32, 10**9]), "patch_size is [16, 32, 1000000000]"),
    (set_to("3d.patch_size", [1 << 16] * 3), "more than 2147483648 cells"),
    (set_to("3d.patch_size", [16.5, 32, 32]), "a whole number within [1, 65536]"),
    (set_to("3d.patch_size", [True, 32, 32]), "patch_size is [True, 32, 32]"),
    (set_to("3d.patch_size", 32), "patch_size is 32"),
    (set_to("3d.patch_size", []), "patch_size is []"),
    (without("3d.patch_size"), "patch_size is missing"),
    (without("3d.spacing"), "spacing is missing"),
    (set_to("3d.batch_size", 0), "batch_size is 0"),
    (set_to("3d.batch_size", 10**12), "batch_size is 1000000000000"),
    (set_to("3d.batch_size", "2"), "batch_size is '2'"),
    (set_to("3d.batch_dice", 1), "batch_dice is 1, but must be true or false"),
    # intensities
    (set_to(STATISTICS + "std", float("inf")), "std is inf, but must be a finite number"),
    (set_to(STATISTICS + "std", float("nan")), "std is nan"),
    (set_to(STATISTICS + "std", -1.0), "std is -1.0"),
    (set_to(STATISTICS + "mean", "high"), "mean is 'high'"),
    (set_to(STATISTICS + "percentile_00_5", 91.0), "are they swapped?"),
    (set_to("foreground_intensity_properties_per_channel", []), "is [], but must be an object"),
    (set_to("foreground_intensity_properties_per_channel", {"\n": {}}), r"has the key '\n'"),
    (set_to("3d.resampling_fn_data_kwargs", {"a\nb": 1}), r"has the key 'a\nb'"),
    (set_to("3d.octreenca", {"a\nb": 1}), r"unknown keys: 'a\nb'"),
    (set_to(NETWORK + "a\nb", 1), r"has 'a\nb', which is not an argument"),
    (set_to("foreground_intensity_properties_per_channel.1", 5), ".1 is 5, but must be an object"),
    # the network
    (set_to(NETWORK + "steps", [10, 10, 10**9]), "steps is [10, 10, 1000000000]"),
    (set_to(NETWORK + "steps", [10, -1, 10]), "steps is [10, -1, 10]"),
    (set_to(NETWORK + "steps", []), "steps is []"),
    (set_to(NETWORK + "steps", 10), "steps is 10"),
    (set_to(NETWORK + "channels", 10**7), "channels is 10000000"),
    (set_to(NETWORK + "channels", 3), "channels is 3, but the cells of every level hold 2 ch"),
    (set_to(NETWORK + "channels", [16, 24]), "channels is [16, 24], but must be"),
    (set_to(NETWORK + "channels", [16, 10**7, 24]), "channels is [16, 10000000, 24], but must be"),
    (set_to(NETWORK + "channels", [16, 3, 24]), "channels is [16, 3, 24], but the cells of every"),
    (set_to(NETWORK + "channels", "16"), "channels is '16', but must be a whole number"),
    (set_to(NETWORK + "hidden", [64, 0, 64]), "hidden is [64, 0, 64], but must be null or"),
    (set_to(NETWORK + "hidden", 10**9), "hidden is 1000000000"),
    (set_to(NETWORK + "hidden", 0), "hidden is 0"),
    (set_to(NETWORK + "factors", [[2, 2, 2]]), "factors is [[2, 2, 2]], but must be"),
    (set_to(NETWORK + "factors", [[3, 2, 2]] * 2), "a whole number within [1, 2]"),
    (set_to(NETWORK + "factors", [[10**9] * 3] * 2), "a whole number within [1, 2]"),
    (set_to(NETWORK + "factors", [[2, 2]] * 2), "factors is [[2, 2], [2, 2]]"),
    (set_to(NETWORK + "dimension", 2), "factors is"),
    (set_to(NETWORK + "dimension", 4), "dimension is 4"),
    (set_to(NETWORK + "fire_rate", float("nan")), "fire_rate is nan"),
    (set_to(NETWORK + "fire_rate", 0), "fire_rate is 0"),
    (set_to(NETWORK + "constant_background", "yes"), "constant_background is 'yes'"),
    (set_to(NETWORK + "input_mean", [0.1, 0.2]), "has 2 input_mean and 0 input_std for 2 channels"),
    (set_to(NETWORK + "input_std", [1.0, 0.0]), "input_std is [1.0, 0.0], but must be"),
    (set_to(NETWORK + "input_mean", [float("inf")] * 2), "input_mean is [inf, inf]"),
    (set_to(NETWORK + "deep", 1), "has 'deep', which is not an argument of OctreeNCA"),
    (without(NETWORK + "steps"), "steps is missing"),
    (set_to("3d.architecture", []), "architecture is [], but must be an object"),
    (set_to("3d.architecture.arch_kwargs", None), "arch_kwargs is None"),
    (set_to("3d.octreenca", []), "block is []"),
    (set_to("3d.octreenca.num_epochs", 10**12), "num_epochs is 1000000000000"),
    (set_to("3d.octreenca.initial_lr", float("inf")), "initial_lr is inf"),
    (set_to("3d.octreenca.ema_decay", True), "ema_decay is True"),
    (set_to("3d.octreenca.betas", [0.9, [0.9]]), "betas is"),
    (set_to("3d.octreenca.virus", 1), "unknown keys: virus"),
    # what would be imported
    (set_to("3d.architecture._kw_requires_import", ["hidden"]), "OctreeNCA imports nothing"),
    (set_to("3d.architecture._kw_requires_import", "hidden"), "'hidden', but must be a list"),
    (set_to("3d.architecture.network_class_name", "os.system"), "'os.system', which is neither"),
    (set_to("3d.architecture.network_class_name", 3), "network_class_name is 3"),
    (set_to("image_reader_writer", "MyReader"), "install it into nnU-Net and predict with"),
    (set_to("image_reader_writer", "os.system"), "image_reader_writer is 'os.system'"),
    (set_to("label_manager", "MyLabels"), "label_manager is 'MyLabels'"),
    (set_to("3d.preprocessor_name", "MyPreprocessor"), "preprocessor_name is 'MyPreprocessor'"),
    (set_to("3d.preprocessor_name", ["a"]), "preprocessor_name is ['a']"),
    (set_to("3d.resampling_fn_data", "exec"), "resampling_fn_data is 'exec'"),
    (set_to("3d.resampling_fn_seg", "my_function"), "resampling_fn_seg is 'my_function'"),
    (set_to("3d.resampling_fn_probabilities", None), "resampling_fn_probabilities is None"),
    (set_to("3d.resampling_fn_data_kwargs", {"order": [3]}), "kwargs.order is [3]"),
    (set_to("3d.resampling_fn_data_kwargs", {"order": float("inf")}), "kwargs.order is inf"),
    (set_to("3d.resampling_fn_data_kwargs", [3]), "kwargs is [3], but must be an object"),
    (set_to("3d.normalization_schemes", ["Mine", "Mine"]), "normalization_schemes is ['Mine'"),
    # what must match
    (set_to("3d.normalization_schemes", ["ZScoreNormalization"]), "has 1 values, but dataset.json"),
    (set_to("3d.use_mask_for_norm", [False] * 3), "has 3 values, but dataset.json names 2"),
    (set_to("3d.use_mask_for_norm", [0, 0]), "each true or false"),
    (set_to("transpose_forward", [0, 1, 1]), "do not undo one another"),
    (set_to("transpose_forward", [0, 2, 1]), "do not undo one another"),
    (set_to("transpose_backward", [0, 1, 3]), "transpose_backward is [0, 1, 3]"),
    (without("transpose_forward"), "transpose_forward is missing"),
    # names that become folders
    (set_to("dataset_name", "../../home"), "dataset_name is '../../home'"),
    (set_to("dataset_name", "/etc"), "dataset_name is '/etc'"),
    (set_to("plans_name", "a/b"), "plans_name is 'a/b'"),
    (set_to("plans_name", "a\\b"), "without path separators"),
    (set_to("3d.data_identifier", ".."), "data_identifier is '..'"),
    (set_to("3d.data_identifier", "C:data"), "data_identifier is 'C:data'"),
    (set_to("3d.data_identifier", "nul.txt"), "data_identifier is 'nul.txt'"),
    (set_to("3d.data_identifier", "a\nb"), "control characters"),
    (set_to("3d.data_identifier", "a" * 300), "data_identifier is 'aaa"),
    (set_to("3d.previous_stage", "../x"), "previous_stage is '../x', which is not a configuration"),
    (set_to("3d.next_stage", ["2d", 5]), "next_stage is '2d', which is not a configuration"),
    (lambda plans: plans["configurations"].update({"../x": {}}), "is called '../x'"),
    # inheritance and nesting
    (set_to("3d.inherits_from", "3d_cascade"), "is circular: 3d_fullres -> 3d_cascade -> 3d_f"),
    (set_to("3d.inherits_from", "3d_fullres"), "is circular: 3d_fullres -> 3d_fullres"),
    (set_to("3d.inherits_from", "nothing"), "names 'nothing', which is not a configuration"),
    (set_to("3d.inherits_from", ["3d_cascade"]), "inherits_from is ['3d_cascade']"),
    (set_to("configurations", {}), "it has no configurations"),
    (set_to("configurations", []), "it has no configurations"),
    (set_to("configurations", {str(n): {} for n in range(1000)}), "1000 configurations"),
    (set_to("configurations.3d_cascade", "3d_fullres"), "'3d_fullres', but must be an object"),
    (set_to("plans_name", None), "plans_name is None"),
]  # fmt: skip


def test_what_our_planner_writes_has_no_fault(good):
    dataset = DatasetDescription.from_json(DATASET, "dataset.json")
    assert list(plans_faults(json.loads(json.dumps(good)), dataset)) == []


@pytest.mark.parametrize(
    ("change", "message"), FAULTS, ids=[change.__name__ for change, _ in FAULTS]
)
def test_faults(good, change, message):
    plans = copy.deepcopy(good)
    set_to(NETWORK + "steps", [10, 10, 10])(plans)
    set_to(NETWORK + "factors", [[2, 2, 2]] * 2)(plans)
    assert list(plans_faults(plans, DatasetDescription.from_json(DATASET, ""))) == []
    change(plans)
    dataset = DatasetDescription.from_json(DATASET, "dataset.json")
    found = [fault for _, fault in plans_faults(plans, dataset)]
    assert any(message in fault for fault in found), found
    assert all("\n" not in fault and len(fault) < 600 for fault in found)
    at_fault = next(name for name, fault in plans_faults(plans, dataset) if message in fault)
    with pytest.raises(PlansError, match=r"^plans\.json: "):
        check_model(plans, DATASET, "plans.json", "dataset.json", configuration=at_fault)


def test_faults_of_a_configuration_that_is_not_used_are_left(good):
    plans = copy.deepcopy(good)
    plans["configurations"]["2d"] = {"inherits_from": "3d_fullres", "patch_size": [0, 0]}
    check_model(plans, DATASET, "p", "d", configuration="3d_fullres")
    with pytest.raises(PlansError, match=r"configurations\.2d\.patch_size"):
        check_model(plans, DATASET, "p", "d", configuration="2d")


def test_custom_names_pass_where_nnunet_looks_them_up(good):
    plans = copy.deepcopy(good)
    set_to("image_reader_writer", "MyReader")(plans)
    set_to("3d.normalization_schemes", ["Mine"] * 2)(plans)
    check_model(plans, DATASET, "p", "d", configuration="3d_fullres", custom_names=True)
    set_to("image_reader_writer", "os.system")(plans)
    with pytest.raises(PlansError, match="bare name of a class"):
        check_model(plans, DATASET, "p", "d", configuration="3d_fullres", custom_names=True)


STOCK = {
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "dropout_op": None,
    "nonlin": "torch.nn.LeakyReLU",
}


@pytest.mark.parametrize(
    ("part", "good_part"),
    [
        *((part, True) for part in STOCK.values()),
        ("os.system", False),
        ("torch.nn.modules.module.os.system", False),
        ("torch.nn.functional.torch", False),
        ("torch.hub.load", False),
        ("torch.nn.os", False),
        ("torch.nn.LeakyReLU\n", False),
        (["os", "system"], False),
        (5, False),
    ],
)
def test_parts_of_stock_networks(good, part, good_part):
    plans = copy.deepcopy(good)
    set_to("3d.architecture", {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {**STOCK, "nonlin": part},
        "_kw_requires_import": list(STOCK),
    })(plans)  # fmt: skip
    found = [fault for _, fault in plans_faults(plans)]
    assert (found == []) == good_part, found


def test_deep_files(tmp_path, good):
    nested: dict = {}
    for _ in range(MAX_DEPTH):
        nested = {"a": [nested]}
    assert too_deep(nested)
    assert not too_deep(good)
    assert [fault for _, fault in plans_faults({**good, "extra": nested})] == [
        "it is nested too deeply for plans"
    ]
    assert any("too deeply" in fault for fault in description_faults({**DATASET, "a": nested}, "d"))
    for text in ("[" * 100_000, '{"a":' * 100_000, "1" * 10_000):
        (tmp_path / "plans.json").write_text(text)
        with pytest.raises(InputError, match=r"plans\.json (cannot be read|does not hold)"):
            read_json(tmp_path / "plans.json", "copy it again")


DESCRIPTIONS = [
    ({"labels": {"background": 0, "organ": -1}}, "'organ' in dataset.json is -1"),
    ({"labels": {"background": 0, "organ": 1, "lesion": 3}}, "are [0, 1, 3]; they must be"),
    ({"labels": {"background": 0, "organ": 10**9}}, "within [0, 32767]"),
    ({"labels": {"background": 0, "organ": float("nan")}}, "'organ' in dataset.json is nan"),
    ({"labels": {"background": 0, "organ": True}}, "'organ' in dataset.json is True"),
    ({"labels": {"background": 0, "organ": {"a": 1}}}, "'organ' in dataset.json is {'a': 1}"),
    ({"labels": {"background": 0, "organ": []}}, "'organ' in dataset.json has no numbers"),
    ({"labels": {"background": 0, "or\x1b[2Jgan": 1}}, "no name that can be shown"),
    ({"labels": {"background": 0, "\ud800": 1}}, "no name that can be shown"),
    ({"labels": {"organ": 1}}, "has no label 0"),
    ({"labels": {"background": 0, "organ": 1, "ignore": 5}}, "'ignore' in dataset.json is 5"),
    ({"labels": {"background": 0, "ignore": [2, 3], "organ": 1}}, "it must be the one above"),
    ({"labels": {"background": 0, "all": [1, 2], "a": 1}, "regions_class_order": [1]},
     "names 2 regions, but regions_class_order [1] has 1"),
    ({"labels": {"background": 0, "all": [1, 2]}, "regions_class_order": [-1]}, "holds -1"),
    ({"labels": {"background": 0, "all": [1, 2]}, "regions_class_order": ["x"]}, "holds 'x'"),
    ({"channel_names": {"0": "a", "2": "b"}}, "numbered from '0' to '1'"),
    ({"channel_names": {str(n): "a" for n in range(5000)}}, "5000 channels; at most 1024"),
    ({"channel_names": {"0": {}}}, "hold {}, which is not a name"),
    ({"channel_names": {"0": "a/b\x00"}}, "which is not a name"),
    ({"file_ending": "/../../x"}, "file_ending in dataset.json is '/../../x'"),
    ({"file_ending": 3}, "file_ending in dataset.json is 3"),
    ({"file_ending": "nii"}, "file_ending in dataset.json is 'nii'"),
    ({"numTraining": -1}, "numTraining is -1"),
    ({"numTraining": 1e300}, "numTraining is 1e+300"),
    ({"overwrite_image_reader_writer": "Mine"}, "overwrite_image_reader_writer is 'Mine'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), DESCRIPTIONS, ids=[m for _, m in DESCRIPTIONS])
def test_descriptions(change, message):
    found = list(description_faults({**DATASET, **change}, "dataset.json"))
    assert len(found) == 1, found
    assert message in found[0]
    with pytest.raises(InputError):
        DatasetDescription.from_json({**DATASET, **change}, "dataset.json")


def test_heads_and_foreground():
    plain = DatasetDescription.from_json(DATASET, "")
    assert (plain.heads, plain.foreground, plain.has_regions) == (3, {1, 2}, False)
    assert plain.channels == ("T1", "T2")
    regions = DatasetDescription.from_json(
        {
            **DATASET,
            "labels": {"background": 0, "all": [1, 2], "core": 2, "ignore": 3},
            "regions_class_order": [1, 2],
        },
        "",
    )
    assert (regions.heads, regions.foreground, regions.has_regions) == (2, {1, 2}, True)


def test_the_model_says_what_the_plans_say(good):
    plans = read_plans(good)
    full, cascade = (plans.configurations[name] for name in ("3d_fullres", "3d_cascade"))
    assert plans.reader == "SimpleITKIO"
    assert (full.patch_size, full.spacing) == ((16, 32, 32), (2.0, 1.0, 1.0))
    assert cascade.network == full.network
    assert (full.previous_stage, cascade.previous_stage) == (None, "3d_fullres")
    dataset = DatasetDescription.from_json(DATASET, "")
    assert (full.input_channels(dataset), cascade.input_channels(dataset)) == (2, 4)


@pytest.mark.parametrize(
    ("channels", "hidden"), [(20, 48), ([16, 24, 24], 48), ([20, 16, 24], [7, 8, 9])]
)
@pytest.mark.parametrize(("dimension", "inputs"), [(2, 3), (3, 1), (3, 4)])
def test_parameters_are_those_of_the_network(dimension, inputs, channels, hidden):
    arguments = {
        "dimension": dimension, "channels": channels, "hidden": hidden,
        "factors": [[2] * dimension] * 2, "steps": [1, 2, 3],
    }  # fmt: skip
    network = OctreeNCA(inputs, 3, **arguments)
    expected = sum(weights.numel() for weights in network.parameters())
    assert read_network(arguments).parameters(inputs) == expected


NASTY = [None, True, -1, 0, 10**30, 1e308, float("nan"), "", "..", "\x00", [], [[]], {}, {"": None},
         [None] * 3, [-1] * 3, [1] * 100]  # fmt: skip


def places(content, place=()):
    """Of all values in a JSON document, the document itself left out."""
    inner = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in inner:
        yield (*place, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*place, key))


def replaced(content, place, value):
    content = copy.deepcopy(content)
    here = content
    for key in place[:-1]:
        here = here[key]
    here[place[-1]] = value
    return content


def test_no_value_anywhere_is_met_with_a_traceback(good):
    """Every value of both files by each of NASTY: faults, or files that can be read."""
    dataset = DatasetDescription.from_json(DATASET, "")
    refused = 0
    for place in places(good):
        for nasty in NASTY:
            plans = replaced(good, place, nasty)
            faults = [fault for _, fault in plans_faults(plans, dataset)]
            refused += bool(faults)
            if not faults:
                read_plans(plans)
    assert refused > 1000
    for place in places(DATASET):
        for nasty in NASTY:
            description = replaced(DATASET, place, nasty)
            if not list(description_faults(description, "d")):
                DatasetDescription.from_json(description, "d")
