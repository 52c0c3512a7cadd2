"""Labels of slides from masks of any resolution and from polygons."""

import json

import numpy as np
import pytest
import tifffile
from helpers.tiny_slides import write_pyramid

from nnunet_octreenca.datasets import slide_labels
from nnunet_octreenca.datasets.classes import Classes
from nnunet_octreenca.datasets.slide_labels import (
    label_bands,
    open_labels,
    sample_locations,
    write_labels,
)
from nnunet_octreenca.errors import InputError

CLASSES = Classes({"gland": (2,), "vessel": (5,)}, background=(0, 1))
SHAPE = (300, 221)


def mask(shape=SHAPE, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    blocks = generator.choice([0, 1, 2, 5], (-(-shape[0] // 8), -(-shape[1] // 8)))
    return np.kron(blocks, np.ones((8, 8))).astype(np.uint8)[: shape[0], : shape[1]]


def expected(values: np.ndarray) -> np.ndarray:
    return np.select([values == 2, values == 5], [1, 2]).astype(np.uint8)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_finer_masks(tmp_path, factor):
    """A mask at the slide's full resolution, or a pyramid that has the wanted level."""
    values = mask()
    fine = np.kron(values, np.ones((factor, factor), np.uint8))
    write_pyramid(tmp_path / "m.tif", [fine[: fine.shape[0] - (factor > 1)]])
    labels = open_labels(tmp_path / "m.tif", SHAPE, 1.0, CLASSES)
    assert np.array_equal(labels.window(13, 40, 200, 170), expected(values)[13:213, 40:210])
    write_pyramid(tmp_path / "p.tif", [np.kron(fine, np.ones((2, 2), np.uint8)), fine, values])
    labels = open_labels(tmp_path / "p.tif", SHAPE, 1.0, CLASSES)
    assert labels.own == SHAPE
    assert np.array_equal(labels.window(0, 0, *SHAPE), expected(values))


def test_coarser_masks(tmp_path):
    values = mask((75, 56))
    write_pyramid(tmp_path / "m.tif", [values])
    labels = open_labels(tmp_path / "m.tif", SHAPE, 1.0, CLASSES)
    big = np.kron(expected(values), np.ones((4, 4), np.uint8))
    window = labels.window(100, 100, 120, 110)
    assert np.array_equal(window, big[100:220, 100:210])
    # 56 x 4 is more than 221: the mask's last column is cut.
    assert np.array_equal(labels.window(0, 0, *SHAPE), big[:300, :221])


def test_bands_are_the_whole(tmp_path):
    values = mask()
    write_pyramid(tmp_path / "m.tif", [values])
    labels = open_labels(tmp_path / "m.tif", SHAPE, 1.0, CLASSES)
    parts = list(label_bands(labels))
    assert [first for first, _ in parts] == [0, 256]
    assert np.array_equal(np.concatenate([band for _, band in parts]), expected(values))
    write_labels(tmp_path / "out.tif", labels)
    written = tifffile.TiffFile(tmp_path / "out.tif")
    assert written.pages[0].is_tiled
    assert np.array_equal(written.asarray(), expected(values))
    written.close()


def test_locations_are_spread_over_each_class(tmp_path, monkeypatch):
    values = np.zeros((600, 100), np.uint8)
    values[10:20], values[290:300], values[300:590], values[0, 99] = 2, 2, 1, 5
    write_pyramid(tmp_path / "m.tif", [values])
    labels = open_labels(tmp_path / "m.tif", values.shape, 1.0, CLASSES)
    found = sample_locations(labels, [1, 2], np.random.default_rng(0))
    assert sorted(found) == [1, 2]
    assert {tuple(place) for place in found[2].tolist()} == {(0, 99)}
    y, x = found[1].T
    assert len(y) == slide_labels.LOCATIONS
    assert (values[y, x] == 2).all()
    assert 0.45 < (y < 100).mean() < 0.55  # both bands have as many
    assert len(np.unique(x)) > 80
    again = sample_locations(labels, [1, 2], np.random.default_rng(0))
    assert np.array_equal(again[1], found[1])


def geojson(path, features: list, bare: bool = False) -> None:
    content = features if bare else {"type": "FeatureCollection", "features": features}
    path.write_text(json.dumps(content))


def box(x0, y0, x1, y1, name: str | None) -> dict:
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    properties = {"classification": {"name": name}} if name else {}
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def test_polygons_of_qupath(tmp_path):
    """Coordinates are the finest level's; here four of its pixels are one."""
    features = [
        box(40, 80, 400, 600, "gland"),
        box(200, 200, 300, 320, "vessel"),
        box(0, 0, 8, 8, "background"),
    ]
    hole = [[60, 100], [100, 100], [100, 140], [60, 140], [60, 100]]
    features[0]["geometry"]["coordinates"].append(hole)
    for bare in (False, True):
        geojson(tmp_path / "m.geojson", features, bare)
        labels = open_labels(tmp_path / "m.geojson", SHAPE, 4.0, CLASSES)
        wanted = np.zeros(SHAPE, np.uint8)
        wanted[20:150, 10:100] = 1
        wanted[25:35, 15:25] = 0
        wanted[50:80, 50:75] = 2
        assert np.array_equal(labels.window(0, 0, *SHAPE), wanted)
        assert np.array_equal(labels.window(60, 40, 100, 70), wanted[60:160, 40:110])
        assert np.array_equal(labels.window(200, 150, 50, 50), wanted[200:250, 150:200])


def test_polygons_without_a_class(tmp_path):
    geojson(tmp_path / "m.geojson", [box(0, 0, 10, 10, None)])
    one = open_labels(tmp_path / "m.geojson", SHAPE, 1.0, Classes({"gland": (2,)}))
    assert one.window(0, 0, 20, 20).sum() == 100
    with pytest.raises(
        InputError, match=r"m\.geojson holds 1 region\(s\), none of which has a class"
    ):
        open_labels(tmp_path / "m.geojson", SHAPE, 1.0, CLASSES).window(0, 0, 20, 20)
    geojson(tmp_path / "m.geojson", [box(0, 0, 10, 10, "tumour")])
    with pytest.raises(InputError, match="'tumour'; declared are background, gland"):
        open_labels(tmp_path / "m.geojson", SHAPE, 1.0, CLASSES).window(0, 0, 20, 20)
    (tmp_path / "m.geojson").write_text('{"features": [{"geometry": 3}]}')
    with pytest.raises(InputError, match="is not a GeoJSON"):
        open_labels(tmp_path / "m.geojson", SHAPE, 1.0, CLASSES).window(0, 0, 20, 20)


def test_bad_masks(tmp_path):
    write_pyramid(tmp_path / "m.tif", [mask((200, 221))])
    with pytest.raises(InputError, match=r"m\.tif has 200 x 221 pixels; that does not fit the 300"):
        open_labels(tmp_path / "m.tif", SHAPE, 1.0, CLASSES)
    values = mask()
    values[299, 220] = 9
    write_pyramid(tmp_path / "n.tif", [values])
    labels = open_labels(tmp_path / "n.tif", SHAPE, 1.0, CLASSES)
    with pytest.raises(InputError, match=r"n\.tif holds the value\(s\) 9"):
        write_labels(tmp_path / "out.tif", labels)
