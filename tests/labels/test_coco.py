import json

import numpy as np
import pytest
from helpers.label_maps import blobs

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels.coco import write_coco_rle
from nnunet_octreenca.labels.palette import colour

NAMES = {0: "background", 1: "tümor", 2: "stroma", 3: "unseen"}


def opened(path, capsys):
    from pycocotools.coco import COCO

    coco = COCO(str(path))
    capsys.readouterr()  # it prints
    return coco


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_the_masks_are_the_labels(tmp_path, capsys, dtype):
    labels = blobs(5, 20, 31, dtype=dtype)
    labels[3] = 0
    write_coco_rle(
        labels, tmp_path / "a.json", names=NAMES, file_names=[f"{n}.png" for n in "vwxyz"]
    )
    coco = opened(tmp_path / "a.json", capsys)
    found = np.zeros_like(labels)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation).astype(bool)
        found[annotation["image_id"] - 1][mask] = annotation["category_id"]
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert annotation["bbox"] == box
        assert annotation["area"] == mask.sum()
        assert isinstance(annotation["segmentation"]["counts"], str)
    np.testing.assert_array_equal(found, labels)
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [
        f"{stem}.png" for stem in "vwxyz"
    ]
    assert {(image["height"], image["width"]) for image in coco.imgs.values()} == {(20, 31)}


def test_categories(tmp_path, capsys):
    labels = np.full((4, 5), 5, np.uint8)
    write_coco_rle(labels, tmp_path / "a.json", names=NAMES, file_names=["picture.jpg"])
    coco = opened(tmp_path / "a.json", capsys)
    expected = {1: "tümor", 2: "stroma", 3: "unseen", 4: "label 4", 5: "label 5"}
    assert {n: category["name"] for n, category in coco.cats.items()} == expected
    assert coco.cats[2]["color"] == list(colour(2))
    assert coco.imgs[1]["file_name"] == "picture.jpg"
    np.testing.assert_array_equal(coco.annToMask(coco.anns[1]), labels == 5)


def test_nothing_but_background(tmp_path):
    write_coco_rle(np.zeros((2, 4, 5), np.uint8), tmp_path / "a.json", names=NAMES)
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["annotations"] == []
    assert len(content["images"]) == 2


def test_file_names_must_name_the_frames(tmp_path):
    with pytest.raises(OutputError, match="needs 3 file names of frames; got 1"):
        write_coco_rle(blobs(3, 4, 5), tmp_path / "a.json", names=NAMES, file_names=["a.png"])
