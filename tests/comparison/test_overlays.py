"""Overlays: what each pixel is, which planes are shown, and which way up."""

import base64
import io

import numpy as np
import pytest
from helpers.predicted_folders import make_folders, save
from PIL import Image

from nnunet_octreenca.comparison.inputs import find_inputs
from nnunet_octreenca.comparison.overlays import (
    MISSED,
    OUTCOMES,
    RIGHT,
    TOO_MUCH,
    draw_case,
    load_case,
)


def pixels(panel) -> np.ndarray:
    kind, _, data = panel.picture.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def one_case(folder, truth, prediction, image, **options):
    for name, labels in (("t", truth), ("p", prediction), ("i", image)):
        (folder / name).mkdir()
        save(labels, folder / name / "a.nii.gz", **options)
    return find_inputs(folder / "t", {"P": folder / "p"}, images=folder / "i")


@pytest.mark.parametrize("turned", [False, True])
def test_colours_planes_and_directions(tmp_path, turned):
    """A foot of the truth in the lowest plane, and too much at the patient's left (x highest)."""
    truth, prediction = np.zeros((2, 30, 40, 50), np.uint8)
    truth[5:25, 10:30, 10:40] = 1
    truth[2:5, 10:15, 10:40] = 1
    prediction[5:25, 10:30, 10:45] = 1
    image = np.zeros((30, 40, 50), np.int16)
    image[0, 0, 0] = 1
    direction = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    if turned:  # the same patient, stored from the other end of every axis
        truth, prediction, image = (a[::-1, ::-1, ::-1] for a in (truth, prediction, image))
        direction = (-1, 0, 0, 0, -1, 0, 0, 0, -1)
    inputs = one_case(tmp_path, truth, prediction, image, spacing=(1, 1, 2), direction=direction)
    loaded = load_case(inputs, 0)
    counts = np.bincount(loaded.outcomes["P"].ravel(), minlength=5)
    assert counts[RIGHT] == 20 * 20 * 30
    assert counts[TOO_MUCH] == 20 * 20 * 5
    assert counts[MISSED] == 3 * 5 * 30
    drawn = draw_case(loaded)
    assert [row[0].title.split(", ")[1][0] for row in drawn.rows] == ["z", "y", "x"]
    assert [panel.title for panel in drawn.rows[0]][1:] == ["truth", "P"]
    coronal = pixels(drawn.rows[1][2]).astype(int)
    half = {n: tuple(c // 2 for c in colour) for n, (_, colour) in OUTCOMES.items()}

    def place(outcome):
        found = (np.abs(coronal - half[outcome]) <= 2).all(-1)
        return np.argwhere(found).mean(0) / coronal.shape[:2]

    assert place(TOO_MUCH)[1] > 0.8 > place(RIGHT)[1]  # the patient's left at the right
    assert place(MISSED)[0] > 0.8 > place(RIGHT)[0]  # the head up, the foot below
    height, width = coronal.shape[:2]
    box = loaded.truth.shape
    assert height / width == pytest.approx(2 * box[0] / box[2], rel=0.02)


def test_pictures_in_colour_and_ignored_pixels(tmp_path):
    from nnunet_octreenca.files import write_json

    labels = np.zeros((40, 60), np.uint8)
    labels[10:20, 10:20], labels[30:, 30:] = 1, 2
    for name, array in (
        ("t", labels), ("p", np.minimum(labels, 1)),
        ("i", np.full((40, 60, 3), (200, 100, 50), np.uint8)),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        Image.fromarray(array).save(tmp_path / name / "a.png")
    write_json(
        tmp_path / "d.json",
        {"channel_names": {"0": "R"}, "labels": {"background": 0, "cell": 1, "ignore": 2}},
    )
    inputs = find_inputs(
        tmp_path / "t", {"P": tmp_path / "p"}, images=tmp_path / "i", labels=tmp_path / "d.json"
    )
    loaded = load_case(inputs, 0)
    assert set(np.unique(loaded.outcomes["P"])) == {0, RIGHT}
    ((image, truth, _),) = draw_case(loaded).rows
    assert image.title == "image"
    assert (pixels(image) == (200, 100, 50)).all()
    assert {tuple(p) for p in pixels(truth).reshape(-1, 3)} == {(200, 100, 50), (100, 134, 78)}


def test_a_case_without_foreground_is_shown_whole(tmp_path):
    truth, methods = make_folders(tmp_path, cases=2, methods=("A",), images=True)
    for folder in (truth, methods["A"]):
        save(np.zeros((8, 24, 22), np.uint8), folder / "case_0.nii.gz")
    loaded = load_case(find_inputs(truth, methods, images=tmp_path / "images"), 0)
    assert loaded.truth.shape == (8, 24, 22)
    assert len(draw_case(loaded).rows) == 3


def test_frames_of_a_video(tmp_path):
    clip = np.zeros((12, 20, 30), np.uint8)
    clip[:, 5:9, 6:12] = 1
    inputs = find_inputs(
        *(lambda i: (i.truth[0].parent, {"P": i.predictions["P"][0].parent}))(
            one_case(tmp_path, clip, clip, clip.astype(np.int16))
        ),
        images=tmp_path / "i",
        video=True,
    )
    drawn = draw_case(load_case(inputs, 0))
    assert [row[0].title for row in drawn.rows] == [f"image, frame {n}" for n in (2, 6, 10)]
