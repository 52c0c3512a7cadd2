import json
import uuid

import numpy as np
import pytest
from label_maps import blobs, noise
from rasterio.features import rasterize
from scipy import ndimage
from shapely.geometry import shape as to_shapely

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.io.palette import colour
from nnunet_octreenca.io.write_geojson import write_geojson

NAMES = {0: "background", 1: 'tümor "A"', 2: "stroma", 3: "necrosis"}
EXACT = {"simplify": 0, "min_area": 0}


def features(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    return content["features"]


def polygons(path):
    return [to_shapely(feature["geometry"]) for feature in features(path)]


def labels_of(found):
    numbers = {name: label for label, name in NAMES.items()}
    return [numbers[feature["properties"]["classification"]["name"]] for feature in found]


def regions(labels):
    """4-connected regions and their areas, counted by scipy."""
    areas = []
    for label in range(1, labels.max() + 1):
        found, count = ndimage.label(labels == label)
        areas += np.bincount(found.ravel())[1:].tolist()
        assert len(np.unique(found)) == count + 1
    return sorted(areas)


@pytest.mark.parametrize("band_rows", [1, 7, 31, 100])
@pytest.mark.parametrize(
    "labels",
    [
        noise(31, 29, classes=2),
        noise(31, 29, classes=4, dtype=np.int16),
        blobs(31, 47, classes=4),
        np.eye(31, 47, dtype=np.uint8),
    ],
    ids=["noise2", "noise4", "blobs", "diagonal"],
)
def test_exact_polygons_are_the_labels_whatever_the_bands(tmp_path, labels, band_rows):
    path = tmp_path / "a.geojson"
    written, left_out = write_geojson(labels, path, names=NAMES, band_rows=band_rows, **EXACT)
    found = features(path)
    shapes = [to_shapely(feature["geometry"]) for feature in found]
    drawn = rasterize(zip(shapes, labels_of(found), strict=True), labels.shape, dtype="uint8")
    np.testing.assert_array_equal(drawn, labels)
    assert sorted(shape.area for shape in shapes) == regions(labels)
    assert all(shape.is_valid and shape.geom_type == "Polygon" for shape in shapes)
    assert (written, left_out) == (len(shapes), 0)


def test_holes_stay_holes(tmp_path):
    labels = np.full((9, 9), 2, np.uint8)
    labels[3:6, 3:6] = 1
    labels[4, 4] = 0
    write_geojson(labels, tmp_path / "a.geojson", names=NAMES, band_rows=2, **EXACT)
    outer, ring = sorted(polygons(tmp_path / "a.geojson"), key=lambda shape: -shape.area)
    assert [hole.bounds for hole in outer.interiors] == [(3, 3, 6, 6)]
    assert [hole.bounds for hole in ring.interiors] == [(4, 4, 5, 5)]


def test_what_qupath_reads(tmp_path):
    write_geojson(blobs(40, 50), tmp_path / "a.geojson", names=NAMES)
    found = features(tmp_path / "a.geojson")
    assert {feature["type"] for feature in found} == {"Feature"}
    assert {feature["properties"]["objectType"] for feature in found} == {"annotation"}
    classes = {json.dumps(feature["properties"]["classification"]) for feature in found}
    assert classes == {
        json.dumps({"name": NAMES[label], "color": list(colour(label))}) for label in (1, 2)
    }
    ids = [uuid.UUID(feature["id"]) for feature in found]
    assert len(set(ids)) == len(ids)


def test_simplified_outlines_stay_within_the_tolerance(tmp_path):
    labels = blobs(80, 70, classes=4)
    write_geojson(labels, tmp_path / "a.geojson", names=NAMES, band_rows=31, **EXACT)
    exact = polygons(tmp_path / "a.geojson")
    write_geojson(
        labels, tmp_path / "a.geojson", names=NAMES, band_rows=31, simplify=1.5, min_area=0
    )
    simple = polygons(tmp_path / "a.geojson")
    assert len(simple) == len(exact)
    assert all(shape.is_valid and shape.area > 0 for shape in simple)
    moved = [
        before.boundary.hausdorff_distance(after.boundary)
        for before, after in zip(exact, simple, strict=True)
    ]
    # The point at which a ring begins is dropped after the others, so that it may move twice.
    assert max(moved) <= 2 * 1.5
    assert np.mean(np.array(moved) <= 1.5) > 0.9
    points = [sum(len(shape.exterior.coords) for shape in shapes) for shapes in (simple, exact)]
    assert points[0] < points[1] / 2


def test_small_regions_are_left_out_and_counted(tmp_path):
    labels = blobs(80, 70, classes=4)
    areas = np.array(regions(labels))
    assert (areas < 10).any()
    counts = write_geojson(
        labels, tmp_path / "a.geojson", names=NAMES, simplify=0, min_area=10, band_rows=50
    )
    assert counts == ((areas >= 10).sum(), (areas < 10).sum())
    assert sorted(shape.area for shape in polygons(tmp_path / "a.geojson")) == sorted(
        areas[areas >= 10].tolist()
    )


def test_coordinates_of_the_slides_level_0(tmp_path):
    labels = np.zeros((6, 8), np.uint8)
    labels[1:3, 2:5] = 1
    for scale in (4.0, (4.0, 2.0)):
        write_geojson(
            labels, tmp_path / "a.geojson", names=NAMES, scale=scale, offset=(100, 7), simplify=0
        )
        (polygon,) = polygons(tmp_path / "a.geojson")
        y = scale if isinstance(scale, float) else scale[1]
        assert polygon.bounds == (108, 7 + y, 120, 7 + 3 * y)


def test_nothing_but_background(tmp_path):
    assert write_geojson(np.zeros((5, 6), np.uint8), tmp_path / "a.geojson", names=NAMES) == (0, 0)
    assert features(tmp_path / "a.geojson") == []


def test_volumes_have_no_polygons(tmp_path):
    with pytest.raises(OutputError, match=r"shape \(2, 3, 4\): it takes 2 axes"):
        write_geojson(np.zeros((2, 3, 4), np.uint8), tmp_path / "a.geojson", names=NAMES)
