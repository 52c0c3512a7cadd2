"""Models that come with the package: whole, small, complete cards, refused when changed."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from recipe_data import vessels
from zoo import checkpoint_of, held_out_scores, intervals, pack
from zoo_cards import ENTRIES, Entry, card

from nnunet_octreenca import load_model, segment_file
from nnunet_octreenca.comparison.scores import Scores
from nnunet_octreenca.comparison.statistics import Resamples
from nnunet_octreenca.datasets.phantoms import make_phantoms
from nnunet_octreenca.errors import CheckpointError, InputError
from nnunet_octreenca.integration import zoo
from nnunet_octreenca.integration.model_check import check_files

NAMES = list(zoo.zoo_models())
HEADINGS = [
    "Data",
    "Licence and citation",
    "Training",
    "Dice on held-out cases",
    "Failures",
    "Intended use",
]
# Which licences a model may have: data that forbid commercial use give none.
FREE = {"Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0"}
CHECKPOINT = "fold_0/checkpoint_final.pth"


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The zoo, where it may be changed."""
    shutil.copytree(zoo.FOLDER, tmp_path / "zoo")
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    return tmp_path / "zoo"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Two cases that the model was not trained on, with their truth."""
    folder = tmp_path_factory.mktemp("phantoms") / "Dataset034_Phantoms"
    make_phantoms(folder, training=2, test=0, seed=99)
    return folder


def test_all_models_take_less_than_a_megabyte():
    files = [path for path in zoo.FOLDER.rglob("*") if path.is_file()]
    assert "phantoms" in NAMES
    assert sum(path.stat().st_size for path in files) < 1_000_000
    listed = {zoo.FOLDER / name / file for name in NAMES for file in zoo.zoo_model(name).hashes}
    assert set(files) == listed | {zoo.FOLDER / zoo.INDEX}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_whole_and_holds_no_more_than_loading_needs(name):
    model = zoo.zoo_model(name)
    report = check_files(f"zoo:{name}")
    assert report.faults == []
    saved = torch.load(model.folder / CHECKPOINT, weights_only=True)
    assert set(saved) == {
        "network_weights",
        "trainer_name",
        "init_args",
        "inference_allowed_mirroring_axes",
        "octreenca_versions",
    }
    assert model.licence in FREE
    assert 0 < model.dice.low <= model.dice.mean <= model.dice.high <= 1
    assert load_model(f"zoo:{name}").folder == zoo.FOLDER / name


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_complete(name):
    model = zoo.zoo_model(name)
    found = re.findall(r"^## (.+)\n\n(.)", model.card, re.MULTILINE)
    assert [heading for heading, _ in found] == HEADINGS
    assert f"# zoo:{name}" in model.card
    assert "not a medical device" in model.card
    # What the index says is in the card.
    dice = model.dice
    assert f"| {dice.cases} | {dice.mean:.3f} | {dice.low:.3f} to {dice.high:.3f} |" in model.card
    name_in_words = re.sub(r"^CC-(BY.*)-(4\.0)$", r"CC \1 \2", model.licence)
    assert f"[{name_in_words}](https://" in model.card


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_every_planned_model_may_be_given_away(entry):
    assert entry.licence in FREE


def test_the_model_finds_organ_and_lesion(phantoms):
    import SimpleITK

    model = load_model("zoo:phantoms")
    for case in ("phantom_000", "phantom_001"):
        labels = segment_file(phantoms / f"imagesTr/{case}_0000.nii.gz", model, mirror=False)
        truth = SimpleITK.GetArrayFromImage(
            SimpleITK.ReadImage(str(phantoms / f"labelsTr/{case}.nii.gz"))
        )
        for value in (1, 2):
            both = ((labels == value) & (truth == value)).sum()
            assert 2 * both / ((labels == value).sum() + (truth == value).sum()) > 0.75


@pytest.mark.parametrize("name", ["plans.json", "dataset.json", CHECKPOINT, "card.md"])
def test_a_changed_file_is_refused(copied, name):
    path = copied / "phantoms" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(str(path)) + ".* has the SHA-256 .* again"):
        load_model("zoo:phantoms")
    with pytest.raises(CheckpointError, match="has the SHA-256"):
        check_files("zoo:phantoms")


def test_a_missing_and_an_added_file_are_refused(copied):
    folder = copied / "phantoms"
    shutil.copytree(folder / "fold_0", folder / "fold_1")  # would be averaged with the first
    with pytest.raises(CheckpointError, match=r"fold_1.* is none of its files"):
        load_model("zoo:phantoms")
    shutil.rmtree(folder / "fold_1")
    load_model("zoo:phantoms")
    (folder / "dataset.json").unlink()
    with pytest.raises(CheckpointError, match=r"dataset\.json is missing; install"):
        load_model("zoo:phantoms")


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(InputError, match=r"no model 'liver'; choose from .*phantoms"):
        load_model("zoo:liver")


def test_no_name_leaves_the_zoo(copied):
    for name in ("", "..", "../zoo/phantoms", "phantoms/"):
        with pytest.raises(InputError, match="the zoo has no model"):
            zoo.model_place(f"zoo:{name}")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"models": {"a": {}}}', '{"models": {"a": 1}}', '{"models": []}',
    '{"models": {"a": {"task": "", "licence": "", "dice": {}, "sha256": {}}}}'],
)  # fmt: skip
def test_a_damaged_index_is_one_sentence(copied, content):
    (copied / "index.json").write_text(content)
    with pytest.raises(InputError, match=r"index\.json .*; install nnunet_octreenca again"):
        zoo.model_place("zoo:a")


def test_packing_keeps_the_labels_and_drops_the_training(tmp_path, phantoms):
    model = zoo.zoo_model("phantoms")
    saved = torch.load(model.folder / CHECKPOINT, weights_only=True)
    plans, described = (
        json.loads((model.folder / name).read_text()) for name in ("plans.json", "dataset.json")
    )
    # Averages are views of a larger buffer, which would be saved with each.
    saved["network_weights"] = {
        name: torch.cat([weight.flatten(), torch.zeros(1000)])[: weight.numel()].view(weight.shape)
        for name, weight in saved["network_weights"].items()
    }
    saved["init_args"] |= {"plans": {**plans, "continue_training": False}}
    saved["init_args"]["dataset_json"] = described
    saved |= {"optimizer_state": torch.zeros(100_000), "logging": {}, "trainer_name": "Budgeted"}
    pack(saved, tmp_path / "packed")
    size = (tmp_path / "packed" / CHECKPOINT).stat().st_size
    assert size == (model.folder / CHECKPOINT).stat().st_size
    assert json.loads((tmp_path / "packed/plans.json").read_text()) == plans
    image = phantoms / "imagesTr/phantom_000_0000.nii.gz"
    labels = [
        segment_file(image, each, mirror=False) for each in (tmp_path / "packed", model.folder)
    ]
    assert np.array_equal(*labels)
    assert labels[0].max() == 2


def test_the_end_of_a_run_is_taken_before_its_last_checkpoint(tmp_path):
    with pytest.raises(SystemExit, match="holds neither"):
        checkpoint_of(tmp_path)
    (tmp_path / "checkpoint_latest.pth").touch()
    path, notes = checkpoint_of(tmp_path)
    assert path.name == "checkpoint_latest.pth"
    assert "a minute from its end" in notes[-1]
    (tmp_path / "checkpoint_final.pth").touch()
    assert checkpoint_of(tmp_path) == (tmp_path / "checkpoint_final.pth", [])


def test_held_out_cases_are_scored_as_compare_scores_them(tmp_path, phantoms):
    from recipe_data import DATA_SETS

    work = tmp_path / "work"
    raw = work / "raw" / phantoms.name
    shutil.copytree(phantoms, raw)
    prepared = work / "preprocessed" / phantoms.name
    prepared.mkdir(parents=True)
    split = [{"train": ["phantom_000"], "val": ["phantom_001"]}]
    (prepared / "splits_final.json").write_text(json.dumps(split))
    scores, inputs = held_out_scores(
        zoo.FOLDER / "phantoms", DATA_SETS["phantoms"], ENTRIES["phantoms"], work
    )
    assert inputs.cases == ("phantom_001",)
    import SimpleITK

    truth = SimpleITK.GetArrayFromImage(
        SimpleITK.ReadImage(str(raw / "labelsTr/phantom_001.nii.gz"))
    )
    labels = segment_file(raw / "imagesTr/phantom_001_0000.nii.gz", "zoo:phantoms")
    expected = [
        2 * ((labels == value) & (truth == value)).sum()
        / ((labels == value).sum() + (truth == value).sum())
        for value in (1, 2)
    ]  # fmt: skip
    assert scores.values["dice"][0, :, 0] == pytest.approx(expected)
    assert not list(work.glob("tmp*"))


def test_intervals_are_of_people_and_of_each_camera():
    cases = ("Image_07L", "Image_07R", "Image_08L", "Image_08R", "hrf_03_dr", "hrf_03_h")
    values = np.array([[[0.8, 0.8, 0.6, 0.6, 0.5, 0.7]]])
    entry = ENTRIES["vessels"]
    groups = tuple(re.search(entry.group_by, case)[0] for case in cases)
    assert len(set(groups)) == 4
    scores = Scores(("zoo",), ("vessel",), cases, {"dice": values}, 1.0)
    found = dict(intervals(scores, groups, entry))
    assert {name: (round(each.mean, 6), each.cases) for name, each in found.items()} == {
        "vessel": (0.666667, 6),
        "CHASE_DB1": (0.7, 4),
        "HRF at half size": (0.6, 2),
    }
    of_children = Resamples(["7", "7", "8", "8"]).interval(values[0, 0, :4])
    assert found["CHASE_DB1"] == of_children
    assert found["CHASE_DB1"] != Resamples("abcd").interval(values[0, 0, :4])


def test_a_cards_failures_name_the_worst_cases():
    entry = Entry("phantoms", "things", "Apache-2.0", "data", "terms", "known", "use")
    written = card("x", entry, ["trained"], [], [("a", 0.9), ("b", 0.1), ("c", 0.5), ("d", 0.3)])
    assert "lowest Dice: b 0.100, d 0.300, c 0.500." in written


def test_hrf_is_halved_and_chase_is_not(tmp_path):
    generator = np.random.default_rng(0)
    for folder in ("chase_db1/images", "chase_db1/labels", "hrf_av/images", "hrf_av/labels"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(1, 11):
        pixels = generator.integers(0, 255, (6, 5, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"chase_db1/images/Image_{number:02d}L.png")
        mask = Image.fromarray(pixels[..., 0] > 127)
        mask.save(tmp_path / f"chase_db1/labels/Image_{number:02d}L_1stHO.png")
    picture = generator.integers(0, 255, (8, 6, 3), np.uint8)
    truth = np.zeros((8, 6, 3), np.uint8)
    truth[0, 0:2, 2] = 255  # two of four pixels: vessel
    truth[2, 2, 0] = 255  # one of four: none
    truth[4:6, 4:6, 1] = 255
    for name in ("01_h", "03_h"):
        Image.fromarray(picture).save(tmp_path / f"hrf_av/images/{name}.png")
        Image.fromarray(truth).save(tmp_path / f"hrf_av/labels/{name}_AVmanual.png")
    raw = tmp_path / "raw"
    assert vessels(tmp_path, raw) == [
        *(f"Image_{n:02d}L" for n in (7, 8, 9, 10)),
        "hrf_01_h",
        "hrf_03_h",
    ]
    label = np.asarray(Image.open(raw / "labelsTr/hrf_01_h.png"))
    expected = np.zeros((4, 3))
    expected[0, 0] = expected[2, 2] = 1
    assert np.array_equal(label, expected)
    halved = np.asarray(Image.open(raw / "imagesTr/hrf_01_h_0000.png")).astype(float)
    assert np.abs(halved - picture.reshape(4, 2, 3, 2, 3).mean((1, 3))).max() <= 0.5
    with Image.open(raw / "imagesTr/Image_01L_0000.png") as kept:
        assert kept.size == (5, 6)
    described = json.loads((raw / "dataset.json").read_text())
    assert described["numTraining"] == 12
    assert described["channel_names"] == dict.fromkeys("012", "rgb_to_0_1")
