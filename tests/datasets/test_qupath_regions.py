"""Regions of GeoJSON files as QuPath's versions write them."""

import json

import numpy as np
import pytest

from nnunet_octreenca.datasets.classes import Classes
from nnunet_octreenca.datasets.qupath_regions import read_regions
from nnunet_octreenca.datasets.slide_labels import open_labels
from nnunet_octreenca.errors import InputError

pytest.importorskip("shapely")

TWO = Classes({"Tumor": (1,), "Stroma": (2,)})
ONE = Classes({"Tumor": (1,)})
SHAPE = (60, 80)


def ring(x0, y0, x1, y1) -> list:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def polygon(*box) -> dict:
    return {"type": "Polygon", "coordinates": [ring(*box)]}


def feature(geometry, classification=None, **properties) -> dict:
    properties = {"objectType": "annotation", **properties}
    if classification is not None:
        properties["classification"] = classification
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties}


def classed(name) -> dict:
    key = "names" if isinstance(name, list) else "name"
    return {key: name, "color": [200, 0, 0]}


@pytest.fixture
def labels(tmp_path):
    """(label map, notes) of features."""

    def drawn(features, classes=TWO, content=None, **options):
        file = tmp_path / "m.geojson"
        content = content or {"type": "FeatureCollection", "features": features}
        file.write_text(json.dumps(content), encoding="utf-8")
        opened = open_labels(file, SHAPE, 1.0, classes, **options)
        return opened.window(0, 0, *SHAPE), opened.notes

    return drawn


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Tumor", 1),
        (["Tumor"], 1),
        ("Stroma", 2),
        ("Tumor: Positive", 3),
        (["Tumor", "Positive"], 3),
        ("Tumor:Positive", 3),
        (["Stroma", "Positive"], 2),
        ("Stroma: Positive: 1+", 2),
        (["Tumor", "Positive", "1+"], 3),
        ("Background", 0),
        ("background", 0),
        ("Ignore*", 4),
        ("ignore", 4),
    ],
)
def test_names_of_classes(labels, name, label):
    classes = Classes(
        {"Tumor": (1,), "Stroma": (2,), "Tumor: Positive": (3,)}, background=(0,), ignore=(9,)
    )
    drawn, notes = labels([feature(polygon(10, 20, 30, 50), classed(name))], classes)
    expected = np.zeros(SHAPE, np.uint8)
    expected[20:50, 10:30] = label
    assert np.array_equal(drawn, expected)
    shown = ": ".join(name) if isinstance(name, list) else name
    parts = [part.strip() for part in shown.split(":")]
    if list(classes.labels)[label].split(": ") != parts:
        assert notes == (
            f"1 region(s) of the class {shown!r} count as {list(classes.labels)[label]!r}",
        )
    else:
        assert notes == ()


def test_a_class_named_in_both_ways(labels):
    """Version 0.6 writes `names`, and some programs keep `name` beside it."""
    both = {"name": "Positive", "names": ["Tumor", "Positive"]}
    drawn, _ = labels([feature(polygon(0, 0, 9, 9), both)], Classes({"Tumor: Positive": (1,)}))
    assert drawn.sum() == 81


@pytest.mark.parametrize("name", ["tumor", "Positive", "Positive: Tumor", "Tumors", "Other"])
def test_undeclared_classes_are_refused(labels, name):
    with pytest.raises(InputError, match=rf"class '{name}'; declared are background, Tumor, Str"):
        labels([feature(polygon(0, 0, 9, 9), classed(name))])


def test_what_is_not_annotated_needs_a_value(labels):
    with pytest.raises(InputError, match=r"class 'Ignore\*'; declare a value .* --ignore VALUE"):
        labels([feature(polygon(0, 0, 9, 9), classed("Ignore*"))])


@pytest.mark.parametrize("classes", [ONE, TWO])
@pytest.mark.parametrize("first", [True, False])
def test_unclassified_and_ignored_regions_are_left_out(labels, classes, first):
    rest = [
        feature(polygon(0, 0, 70, 60)),
        feature(polygon(0, 0, 70, 60), {}),
        feature(polygon(0, 0, 70, 60), classed("Region*")),
    ]
    tumour = [feature(polygon(10, 10, 30, 20), classed("Tumor"))]
    drawn, notes = labels(rest + tumour if first else tumour + rest, classes)
    expected = np.zeros(SHAPE, np.uint8)
    expected[10:20, 10:30] = 1
    assert np.array_equal(drawn, expected)
    assert sorted(notes) == [
        "1 region(s) of the class 'Region*' left out",
        "2 region(s) without a class left out",
    ]


def test_a_single_class_needs_no_names(labels):
    drawn, notes = labels([feature(polygon(0, 0, 9, 9))], ONE)
    assert drawn.sum() == 81
    assert notes == ("1 region(s) without a class count as 'Tumor'",)
    with pytest.raises(InputError, match="none of which has a class; declared are"):
        labels([feature(polygon(0, 0, 9, 9))], TWO)


@pytest.mark.parametrize(
    "properties",
    [
        {"isLocked": True},
        {"isLocked": True, "name": "7", "isMissing": False, "measurements": {"Area": 3.5}},
        {"objectType": "detection"},
        {"object_type": "cell", "nucleusGeometry": polygon(12, 12, 14, 14)},
    ],
)
def test_other_properties_change_nothing(labels, properties):
    drawn, notes = labels([feature(polygon(10, 10, 30, 20), classed("Tumor"), **properties)])
    assert drawn.sum() == 200
    assert notes == ()


@pytest.mark.parametrize("corners", [4, 100])
def test_ellipses_fill_their_box(labels, corners):
    """QuPath writes an outline and `isEllipse`, and reads the outline's box alone."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    outline = [[40 + 20 * np.cos(a), 30 + 10 * np.sin(a)] for a in angles]
    geometry = {"type": "Polygon", "coordinates": [[*outline, outline[0]]], "isEllipse": True}
    drawn, _ = labels([feature(geometry, classed("Stroma"))])
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    expected = ((x - 40) / 20) ** 2 + ((y - 30) / 10) ** 2 < 1
    assert ((drawn == 2) != expected).mean() < 0.001


def test_points_lines_and_nothing_are_counted(labels):
    flat = [
        {"type": "Point", "coordinates": [5, 5]},
        {"type": "MultiPoint", "coordinates": [[5, 5], [7, 7]]},
        {"type": "LineString", "coordinates": [[0, 0], [70, 50]]},
        None,
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [[[1, 1], [9, 9], [1, 1], [1, 1]]]},
    ]
    features = [feature(geometry, classed("of no class")) for geometry in flat]
    drawn, notes = labels([*features, feature(polygon(0, 0, 9, 9), classed("Tumor"))])
    assert drawn.sum() == 81
    assert notes == ("6 point(s), line(s) or empty region(s) left out",)


def test_shapes_of_several_parts(labels):
    parts = {"type": "MultiPolygon", "coordinates": [[ring(0, 0, 9, 9)], [ring(20, 0, 30, 10)]]}
    drawn, _ = labels([feature(parts, classed("Tumor"))])
    assert drawn.sum() == 181
    line = {"type": "LineString", "coordinates": [[0, 50], [70, 50]]}
    mixed = {"type": "GeometryCollection", "geometries": [polygon(0, 0, 9, 9), line]}
    drawn, _ = labels([feature(mixed, classed("Tumor"))])
    assert drawn.sum() == 81
    hole = {"type": "Polygon", "coordinates": [ring(0, 0, 50, 50), ring(10, 10, 30, 30)]}
    drawn, _ = labels([feature(hole, classed("Tumor"))])
    assert drawn.sum() == 2500 - 400


def test_an_outline_that_crosses_itself(labels):
    """Its two halves turn in opposite ways: their areas' sum is 0."""
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [40, 40], [40, 0], [0, 40], [0, 0]]]}
    drawn, _ = labels([feature(bow, classed("Tumor"))])
    assert 700 < drawn.sum() < 900


@pytest.mark.parametrize(
    ("corner", "factor"), [((0, 0), 1), ((7, 5), 1), ((0, 0), 2), ((6, 4), 2), ((30, 20), 2)]
)
def test_coordinates_begin_at_the_bounds(tmp_path, corner, factor):
    file = tmp_path / "m.geojson"
    file.write_text(json.dumps([feature(polygon(-4, 10, 26, 40), classed("Tumor"))]))
    opened = open_labels(file, SHAPE, factor, TWO, corner=corner)
    fine = np.zeros((120, 160), np.uint8)
    fine[10 + corner[1] : 40 + corner[1], max(corner[0] - 4, 0) : 26 + corner[0]] = 1
    drawn = opened.window(0, 0, *SHAPE)
    assert np.array_equal(drawn, fine[::factor, ::factor][: SHAPE[0], : SHAPE[1]])
    assert np.array_equal(opened.window(11, 13, 30, 40), drawn[11:41, 13:53])


def test_layouts_of_the_file(labels, tmp_path):
    one = feature(polygon(0, 0, 9, 9), classed("Tumor"))
    for content in ([one], one, {"features": [one]}):
        assert labels(None, content=content)[0].sum() == 81
    file = tmp_path / "bom.geojson"
    file.write_text("\ufeff" + json.dumps([one]), encoding="utf-8")
    assert len(read_regions(file, TWO.labels).polygons) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "3",
        '{"features": 3}',
        '[{"type": "Feature", "geometry": {"type": "Polygon"}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}]',
        '[{"geometry": {"type": "Blob", "coordinates": [[[0, 0], [1, 1]]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[["a", 0], [1, 1], [2, 0]]]}}]',
    ],
)
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "m.geojson").write_text(text)
    with pytest.raises(InputError, match=r"m\.geojson (is not a GeoJSON|holds a geometry)"):
        read_regions(tmp_path / "m.geojson", TWO.labels)
