"""Model folders as nnU-Net writes them and as people edit and move them."""

import codecs
import json
from collections import OrderedDict

import pytest
import torch
from untrained_model import model_folder

from nnunet_octreenca.errors import CheckpointError, InputError
from nnunet_octreenca.integration.model import load_model

LABELS = {"background": 0, "gland": 1, "stroma": 2}


@pytest.fixture
def folder(tmp_path):
    model_folder(tmp_path / "model", labels=LABELS)
    return tmp_path / "model"


def edit(folder, **changes):
    """dataset.json with keys replaced, or removed where None."""
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        content.pop(key, None)
        if value is not None:
            content[key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (b"", "utf-8"),
    ],
)
def test_byte_order_marks(folder, mark, encoding):
    edit(folder, labels={"background": 0, "Drüse": 1, "stroma": 2})
    for name in ("dataset.json", "plans.json"):
        content = json.dumps(json.loads((folder / name).read_text()), ensure_ascii=False)
        (folder / name).write_bytes(mark + content.replace("\n", "\r\n").encode(encoding))
    assert load_model(folder).names == {0: "background", 1: "Drüse", 2: "stroma"}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"0": "background", "1": "gland", "2": "stroma"}, LABELS),
        ({"2": "stroma", "0": "background", "1": "gland"}, LABELS),
        ({"0": "BG", "1": "gland", "2": "stroma"}, LABELS),
        ({"background": "0", "gland": "1", "stroma": "2"}, LABELS),
        ({"background": 0.0, "gland": 1.0, "stroma": 2.0}, LABELS),
        ({"Background": 0, "gland": 1, "stroma": 2}, LABELS),
        ({"background": 0, "1": 1, "2": 2}, {"background": 0, "1": 1, "2": 2}),
    ],
)
def test_labels_of_both_versions(folder, labels, names):
    edit(folder, labels=labels)
    assert load_model(folder).names == {number: name for name, number in names.items()}


@pytest.mark.parametrize(
    "channels",
    [
        {"channel_names": None, "modality": {"0": "R", "1": "G", "2": "B"}},
        {"channel_names": ["R", "G", "B"]},
        {"modality": {"0": "R", "1": "G", "2": "B"}},
    ],
)
def test_channels_of_both_versions(folder, channels):
    edit(folder, **channels)
    assert load_model(folder).channels == 3


@pytest.mark.parametrize(
    ("ending", "natural"), [(".PNG", True), (".Tif", True), (".NII.GZ", False)]
)
def test_endings_in_any_case(folder, ending, natural):
    edit(folder, file_ending=ending)
    assert load_model(folder).natural == natural


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_wrapped_networks(folder, prefix):
    before = load_model(folder).networks[0].state_dict()
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    weights = checkpoint["network_weights"]
    checkpoint["network_weights"] = OrderedDict((prefix + name, w) for name, w in weights.items())
    torch.save(checkpoint, path)
    after = load_model(folder).networks[0].state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight, after[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "names no labels"),
        ({"labels": []}, "names no labels"),
        ({"labels": {"gland": 1, "stroma": 2}}, "has no label 0"),
        ({"labels": {"background": 0, "gland": "one", "stroma": 2}}, "'gland' .* is 'one'"),
        ({"labels": {"background": 0, "gland": 1.5, "stroma": 2}}, "'gland' .* is 1.5"),
        ({"labels": {"background": 0, "gland": None, "stroma": 2}}, "'gland' .* is None"),
        ({"labels": {"background": 0, "all": [1, 2], "stroma": 2}}, "lacks regions_class_order"),
        ({"channel_names": None}, "names no channels"),
        ({"channel_names": 3}, "names no channels"),
        ({"labels": {"background": 0, "all": [1, 2]}, "regions_class_order": 1}, "must be a list"),
    ],
)
def test_descriptions_that_lack_something_get_a_sentence(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(InputError, match=rf"{message}"):
        load_model(folder)


@pytest.mark.parametrize("labels", [{**LABELS, "more": 3}, {"background": 0, "gland": 1}])
def test_other_labels_than_in_training(folder, labels):
    """The weights are of the same shapes: a class more is a hidden channel less."""
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["init_args"]["dataset_json"] = json.loads((folder / "dataset.json").read_text())
    torch.save(checkpoint, path)
    load_model(folder)
    edit(folder, labels=labels)
    with pytest.raises(CheckpointError, match=rf"has {len(labels)} labels .* trained with 3"):
        load_model(folder)


@pytest.mark.parametrize("name", ["dataset.json", "plans.json"])
def test_json_that_is_none(folder, name):
    (folder / name).write_text('{"labels": {"background": 0,}}')
    with pytest.raises(InputError, match=rf"{name} cannot be read"):
        load_model(folder)


def test_our_preprocessor_is_followed_as_the_default_one(folder):
    path = folder / "plans.json"
    before = load_model(folder).preprocessing
    path.write_text(path.read_text().replace("DefaultPreprocessor", "OctreeNCAPreprocessor"))
    assert load_model(folder).preprocessing == before


@pytest.mark.parametrize("axes", [[0, 2], [-1], ["0"], 5, [True]])
def test_mirror_axes_that_the_network_lacks(folder, axes):
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["inference_allowed_mirroring_axes"] = axes
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"mirrors the axes"):
        load_model(folder)


def test_plans_without_the_configuration(folder):
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"] = {"other": next(iter(plans["configurations"].values()))}
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(InputError, match=r"plans\.json has no configuration '2d'"):
        load_model(folder)


def test_untrained_models_have_the_steps_asked_for(tmp_path):
    """Their plans.json too, which other commands read."""
    folder = model_folder(tmp_path / "model", steps=2)
    plans = json.loads((folder / "plans.json").read_text())
    steps = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["steps"]
    assert set(steps) == {2}
    assert {tuple(network.steps) for network in load_model(folder).networks} == {tuple(steps)}
