"""SAM and SAM2 from tiny checkpoints: prompted with the truth, refused without weights."""

import json

import numpy as np
import pytest

from nnunet_octreenca.baselines import prompted
from nnunet_octreenca.baselines.prompted import Prompted, as_pictures, checkpoint_method
from nnunet_octreenca.comparison.trained.methods import find_methods
from nnunet_octreenca.comparison.trained.prompted import find_checkpoints, note
from nnunet_octreenca.errors import InputError

transformers = pytest.importorskip("transformers")

CLIP = (4, 50, 70)


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    from helpers.tiny_sam import save_sam

    return save_sam(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    from helpers.tiny_sam import save_sam2

    return save_sam2(tmp_path_factory.mktemp("sam2"))


@pytest.fixture
def clip():
    """Frames of noise and a truth: class 1 always, class 2 from the third frame on."""
    frames = np.random.default_rng(0).integers(0, 255, (*CLIP, 3), dtype=np.uint8)
    truth = np.zeros(CLIP, np.uint8)
    truth[:, 5:20, 5:30] = 1
    truth[2:, 25:40, 40:60] = 2
    return frames, truth


def test_sam_sees_a_patch_and_its_points(sam, clip, monkeypatch):
    """Twenty points of each class of a patch, all in it; patches without a class stay empty."""
    frames, truth = clip
    model = Prompted(sam, "cpu")
    assert model.parameters > 1000
    given = []
    really = model._masks

    def masks(image, points):
        given.append((image.shape[:2], points))
        logits = really(image, points)
        assert logits.shape == (len(points), *image.shape[:2])
        assert np.isfinite(logits).all()
        return np.where([[[True]]], logits + 1e6 * (1 + np.arange(len(points)))[:, None, None], 0)

    monkeypatch.setattr(model, "_masks", masks)
    labels = model.picture(frames[3], truth[3], (32, 48), seed=0)
    assert [shape for shape, _ in given] == [(32, 48), (32, 22), (18, 48), (18, 22)]
    assert [len(points) for _, points in given] == [2, 1, 1, 1]
    (first, second) = given[0][1]
    assert first.shape == (prompted.POINTS, 2)
    assert all(truth[3, int(y), int(x)] == 1 for x, y in first)
    assert all(truth[3, int(y), int(x)] == 2 for x, y in second)
    assert (labels == 2).all()  # its logits are the larger ones wherever it is

    given.clear()
    assert not model.picture(frames[0], np.zeros(CLIP[1:], np.uint8), (32, 48), 0).any()
    assert not given


def test_sam_repeats_itself(sam, clip):
    frames, truth = clip
    first, again = (Prompted(sam, "cpu").picture(frames[0], truth[0], (64, 64), 3) for _ in "ab")
    assert np.array_equal(first, again)
    assert set(np.unique(first)) <= {0, 1}


def test_sam2_follows_a_point_from_its_first_frame(sam2, clip):
    frames, truth = clip
    model = Prompted(sam2, "cpu")
    followed = dict(model._followed(frames, 2, np.array([[50.0, 30.0]])))
    assert sorted(followed) == [2, 3]
    assert all(mask.shape == CLIP[1:] and np.isfinite(mask).all() for mask in followed.values())
    labels = model.clip(frames, truth, seed=0)
    assert labels.shape == CLIP
    assert not (labels[:2] == 2).any()  # class 2 is not there yet
    assert set(np.unique(labels)) <= {0, 1, 2}


def test_images_become_pictures():
    colours = np.arange(3 * 2 * 2, dtype=np.float32).reshape(3, 1, 2, 2) * 20
    assert np.array_equal(as_pictures(colours), np.moveaxis(colours.astype(np.uint8), 0, -1))
    grey = as_pictures(np.array([[[[-1000.0, 1000.0]]]], np.float32))
    assert grey.tolist() == [[[[0, 0, 0], [255, 255, 255]]]]


SAM, SAM2 = find_methods(["SAM"]), find_methods(["sam2"])


@pytest.mark.parametrize(
    ("methods", "content", "patch", "dataset", "sentence"),
    [
        (SAM, None, (32, 32), {}, "SAM needs trained weights, which this program never downloads"),
        (SAM, "{", (32, 32), {}, "has no config.json of a transformers checkpoint"),
        (SAM, '{"model_type": "bert"}', (32, 32), {}, "of the type 'bert'"),
        (SAM, '{"model_type": "sam2"}', (32, 32), {}, "SAM needs trained weights"),
        (SAM, '{"model_type": "sam"}', (8, 32, 32), {}, "on 2-D configurations, and this has 3"),
        (SAM2, '{"model_type": "sam2_video"}', (32, 32), {}, "on 3-D configurations"),
        (SAM, '{"model_type": "sam"}', (32, 32), {"regions_class_order": [1]}, "not regions"),
        ([], '{"model_type": "sam"}', (32, 32), {}, "which --methods does not name"),
    ],
)
def test_what_is_refused(tmp_path, methods, content, patch, dataset, sentence):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    folders = [] if content is None else [str(tmp_path)]
    with pytest.raises(InputError, match=sentence):
        find_checkpoints(methods, folders, patch, dataset)


def test_a_damaged_checkpoint(sam, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "config.json").write_text((sam / "config.json").read_text())
    assert checkpoint_method(folder) == "SAM"
    with pytest.raises(InputError, match="cannot be loaded"):
        Prompted(folder, "cpu")
    assert "20 random points" in note("SAM")
    assert json.loads((sam / "config.json").read_text())["model_type"] == "sam"
