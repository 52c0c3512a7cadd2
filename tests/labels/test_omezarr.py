import json

import numpy as np
import pytest
import zarr
from helpers.label_maps import noise

from nnunet_octreenca.labels import omezarr as module
from nnunet_octreenca.labels.omezarr import write_label_zarr
from nnunet_octreenca.labels.palette import colour

NAMES = {0: "background", 1: "tümor", 2: "stroma"}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", {2: (64, 64), 3: (4, 64, 64)})


@pytest.mark.parametrize(
    ("shape", "dtype", "classes"),
    [((150, 190), np.uint8, 3), ((9, 70, 101), np.int16, 300), ((1, 1), np.uint8, 2)],
)
def test_all_levels_hold_each_second_pixel(tmp_path, shape, dtype, classes):
    labels = noise(*shape, classes=classes, dtype=dtype)
    write_label_zarr(labels, tmp_path / "a.ome.zarr", names=NAMES, mpp=0.5)
    root = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    image = root["labels/segmentation"]
    for group in (root, image):
        (multiscale,) = group.attrs["multiscales"]
        assert multiscale["version"] == "0.4"
        assert [axis["name"] for axis in multiscale["axes"]] == list("zyx"[-len(shape) :])
        assert {axis["unit"] for axis in multiscale["axes"]} == {"micrometer"}
        for number, dataset in enumerate(multiscale["datasets"]):
            step = 2**number
            level = labels[..., ::step, ::step]
            np.testing.assert_array_equal(group[dataset["path"]][...], level)
            assert dataset["coordinateTransformations"] == [
                {
                    "type": "scale",
                    "scale": [0.5] * (len(shape) - 2) + [0.5 * step, 0.5 * step],
                }
            ]
        assert max(level.shape[-2:]) <= 64
    assert image["0"].dtype == (np.uint16 if classes > 256 else np.uint8)


def test_ome_zarrs_own_reader_finds_names_and_colours(tmp_path):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    labels = noise(150, 190, classes=3)
    write_label_zarr(labels, tmp_path / "a.ome.zarr", names=NAMES, mpp=(0.5, 0.25))
    nodes = list(Reader(parse_url(str(tmp_path / "a.ome.zarr")))())
    image, label_image = nodes[0], nodes[-1]
    np.testing.assert_array_equal(image.data[0].compute(), labels)
    np.testing.assert_array_equal(label_image.data[1].compute(), labels[::2, ::2])
    assert label_image.metadata["properties"] == {n: {"class": NAMES[n]} for n in NAMES}
    for n in NAMES:
        rgba = [*colour(n), 255 if n else 0]
        np.testing.assert_allclose(label_image.metadata["color"][n], np.array(rgba) / 255)


def test_the_metadata_follow_the_specification(tmp_path):
    models = pytest.importorskip("ome_zarr_models.v04")
    write_label_zarr(noise(20, 30), tmp_path / "a.ome.zarr", names=NAMES, mpp=0.5)
    root = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    models.Image.from_zarr(root)
    models.Labels.from_zarr(root["labels"])
    assert models.ImageLabel.from_zarr(root["labels/segmentation"]).attributes.image_label


def test_frames_and_unknown_sizes_have_no_unit(tmp_path):
    write_label_zarr(noise(3, 20, 30), tmp_path / "a.ome.zarr", names=NAMES, axes="tyx")
    attributes = json.loads((tmp_path / "a.ome.zarr" / ".zattrs").read_text())
    assert attributes["multiscales"][0]["axes"] == [
        {"name": "t", "type": "time"},
        {"name": "y", "type": "space"},
        {"name": "x", "type": "space"},
    ]


def test_background_takes_no_space(tmp_path):
    labels = np.zeros((256, 256), np.uint8)
    labels[70, 200] = 1
    write_label_zarr(labels, tmp_path / "a.ome.zarr", names=NAMES)
    level = tmp_path / "a.ome.zarr" / "labels" / "segmentation" / "0"
    chunks = [path for path in level.rglob("*") if path.is_file() and path.name[0] != "."]
    assert chunks == [level / "1" / "3"]


def test_the_image_it_belongs_to_is_named(tmp_path):
    image = tmp_path / "in" / "slide.ome.zarr"
    for name, expected in (("slide.svs", None), ("slide.ome.zarr", image)):
        path = tmp_path / "out" / f"{name}.ome.zarr"
        path.parent.mkdir(exist_ok=True)
        image.mkdir(parents=True, exist_ok=True)
        (image / ".zattrs").write_text("{}")
        write_label_zarr(noise(5, 5), path, names=NAMES, image_path=image.parent / name)
        here = path / "labels" / "segmentation"
        source = json.loads((here / ".zattrs").read_text())["image-label"].get("source")
        found = None if source is None else (here / source["image"]).resolve()
        assert found == expected
