import json
import uuid

import numpy as np
import pytest
from helpers.label_maps import blobs, noise
from rasterio.features import rasterize
from scipy import ndimage
from shapely.geometry import shape as to_shapely

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels.geojson import write_geojson
from nnunet_octreenca.labels.palette import colour

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


def feature_text(feature):
    return json.dumps([feature["properties"], feature["geometry"]])


def drawn(path, shape):
    found = features(path)
    shapes = [to_shapely(feature["geometry"]) for feature in found]
    return rasterize(zip(shapes, labels_of(found), strict=True), shape, dtype="uint8")


def regions(labels):
    """4-connected regions and their areas, counted by scipy."""
    areas = []
    for label in range(1, labels.max() + 1):
        found, count = ndimage.label(labels == label)
        areas += np.bincount(found.ravel())[1:].tolist()
        assert len(np.unique(found)) == count + 1
    return sorted(areas)


def regions_and_holes(labels):
    """Areas of the 4-connected regions, each with the areas of its 4-connected holes."""
    for label in range(1, labels.max() + 1):
        found, count = ndimage.label(labels == label)
        for number in range(1, count + 1):
            outside = ndimage.label(np.pad(found != number, 1, constant_values=True))[0]
            yield (found == number).sum(), np.bincount(outside.ravel())[2:].tolist()


@pytest.mark.parametrize("tile", [2, 7, 31, 100])
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
def test_exact_polygons_are_the_labels_whatever_the_tiles(tmp_path, labels, tile):
    path = tmp_path / "a.geojson"
    counts = write_geojson(labels, path, names=NAMES, tile=tile, **EXACT)
    shapes = polygons(path)
    np.testing.assert_array_equal(drawn(path, labels.shape), labels)
    assert sorted(shape.area for shape in shapes) == regions(labels)
    assert all(shape.is_valid and shape.geom_type == "Polygon" for shape in shapes)
    assert counts == (len(shapes), 0, 0)


@pytest.mark.parametrize("options", [EXACT, {}, {"simplify": 2, "min_area": 9}])
@pytest.mark.parametrize("tile", [3, 13, 31])
def test_regions_do_not_depend_on_the_tiles(tmp_path, tile, options):
    labels = blobs(61, 83, classes=4)
    contents = []
    for side in (tile, 100):
        counts = write_geojson(labels, tmp_path / "a", names=NAMES, tile=side, **options)
        shapes = sorted(feature_text(feature) for feature in features(tmp_path / "a"))
        contents.append((counts, shapes))
    assert contents[0] == contents[1]


@pytest.mark.parametrize("limit", [{"corners": 3000}, {"holes": 500}])
def test_a_region_beyond_the_limits_is_cut_along_the_tiles(tmp_path, limit):
    labels = (noise(200, 240, classes=100) < 65).astype(np.uint8)
    found, count = ndimage.label(labels)
    areas = np.bincount(found.ravel())[1:]
    greatest = found == areas.argmax() + 1
    expected = areas[areas < areas.max()].tolist()
    for y in range(0, 200, 64):
        for x in range(0, 240, 64):
            pieces = ndimage.label(greatest[y : y + 64, x : x + 64])[0]
            expected += np.bincount(pieces.ravel())[1:].tolist()
    path = tmp_path / "a.geojson"
    assert write_geojson(labels, path, names=NAMES, tile=64, **limit, **EXACT) == (count, 0, 1)
    shapes = polygons(path)
    np.testing.assert_array_equal(drawn(path, labels.shape), labels)
    assert sorted(shape.area for shape in shapes) == sorted(expected)
    assert all(shape.is_valid for shape in shapes)

    counts = write_geojson(labels, path, names=NAMES, tile=64, **limit)
    assert counts == ((areas >= 2).sum(), (areas < 2).sum(), 1)
    simple = polygons(path)
    assert all(shape.is_valid and shape.area > 0 for shape in simple)
    # Simplified on their own, neighbours overlap by no more than their outlines moved.
    moved = rasterize(simple, labels.shape, dtype="uint8") != labels
    assert moved[ndimage.distance_transform_edt(labels) > 3].sum() == 0


@pytest.mark.parametrize("tile", [5, 16, 64])
def test_holes_count_wherever_they_lie(tmp_path, tile):
    labels = np.ones((50, 60), np.uint8)
    labels[3:43:6, 3:53:6] = 0
    labels[20:31, 20:31] = 1
    labels[22:29, 22:29] = 0
    holes = ndimage.label(labels == 0)[1]
    for limit, cut in ((holes, 0), (holes - 1, 1)):
        counts = write_geojson(labels, tmp_path / "a", names=NAMES, tile=tile, holes=limit, **EXACT)
        assert counts == (1, 0, cut and int(tile < 60))
        np.testing.assert_array_equal(drawn(tmp_path / "a", labels.shape), labels)


def test_small_holes_are_filled(tmp_path):
    labels = np.full((9, 20), 2, np.uint8)
    labels[3, 3:6] = 1  # 3 pixels
    labels[5, 8:12] = 0  # 4 pixels
    labels[2, 14], labels[3, 15] = 0, 0  # 1 pixel each, they meet in a point
    for tile in (4, 100):
        options = {"tile": tile, "simplify": 0, "min_area": 4}
        counts = write_geojson(labels, tmp_path / "a", names=NAMES, **options)
        assert counts == (1, 1, 0)
        (polygon,) = polygons(tmp_path / "a")
        assert [hole.bounds for hole in polygon.interiors] == [(8, 5, 12, 6)]


def test_holes_stay_holes(tmp_path):
    labels = np.full((9, 9), 2, np.uint8)
    labels[3:6, 3:6] = 1
    labels[4, 4] = 0
    write_geojson(labels, tmp_path / "a.geojson", names=NAMES, tile=2, **EXACT)
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
    write_geojson(labels, tmp_path / "a.geojson", names=NAMES, tile=31, **EXACT)
    exact = polygons(tmp_path / "a.geojson")
    write_geojson(labels, tmp_path / "a.geojson", names=NAMES, tile=31, simplify=1.5, min_area=0)
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
        labels, tmp_path / "a.geojson", names=NAMES, simplify=0, min_area=10, tile=50
    )
    assert counts == ((areas >= 10).sum(), (areas < 10).sum(), 0)
    found = sorted(shape.area for shape in polygons(tmp_path / "a.geojson"))
    expected = [
        area + sum(hole for hole in holes if hole < 10)
        for area, holes in regions_and_holes(labels)
        if area >= 10
    ]
    assert found == sorted(expected)
    assert sum(expected) > areas[areas >= 10].sum()


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
    assert write_geojson(np.zeros((5, 6), np.uint8), tmp_path / "a.geojson", names=NAMES) == (
        0,
        0,
        0,
    )
    assert features(tmp_path / "a.geojson") == []


def test_volumes_have_no_polygons(tmp_path):
    with pytest.raises(OutputError, match=r"shape \(2, 3, 4\): it takes 2 axes"):
        write_geojson(np.zeros((2, 3, 4), np.uint8), tmp_path / "a.geojson", names=NAMES)
