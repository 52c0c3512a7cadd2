"""Slides to patches and whole test slides; PESO's layout; training in place."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers.tiny_slides import halved, picture, write_leica, write_pyramid
from PIL import Image

from nnunet_octreenca.datasets.classes import Classes
from nnunet_octreenca.datasets.peso import OPTIONS, convert_peso
from nnunet_octreenca.datasets.raw_dataset import Converted
from nnunet_octreenca.datasets.slides import SlideOptions, convert_slides, find_pairs, place
from nnunet_octreenca.errors import EnvironmentMismatchError, InputError, PlansError
from nnunet_octreenca.preprocessing.slide_windows import SlideCase

SHAPE = (360, 440)  # of level 0; level 1 is half of it
TUMOUR = Classes({"tumour": (2,), "stroma": (3,)}, background=(0, 1))


def truth(shape, seed: int, values=(0, 1, 2)) -> np.ndarray:
    """A mask with some discs of foreground."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = np.full(shape, values[1], np.uint8)
    for value in (*values[2:], *values[2:]):
        centre = generator.uniform(0.1, 0.9, 2) * shape
        mask[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 900] = value
    mask[:10] = values[0]
    return mask


@pytest.fixture
def peso(tmp_path) -> Path:
    """Five slides with masks at level 1's resolution, and one of the test set without."""
    folder = tmp_path / "PESO"
    for number in (1, 2, 7, 10, 31):
        image = picture(*SHAPE, seed=number)
        write_pyramid(folder / f"slides/pds_{number}_HE.tif", [image, halved(image)], mpp=0.24)
        write_pyramid(
            folder / f"masks/pds_{number}_HE_training_mask.tif", [truth((180, 220), number)]
        )
    image = picture(*SHAPE, seed=40)
    write_pyramid(folder / "slides/pds_40_HE.tif", [image, halved(image)], mpp=0.24)
    return folder


def peso_data(folder: Path, target: Path, **options: Any) -> Converted:
    """PESO with other options than the paper's."""
    return convert_peso(folder, target, replace(OPTIONS, **options))


def slide_data(folder: Path, target: Path, **options: Any) -> Converted:
    return convert_slides(folder, target, TUMOUR, SlideOptions(**options))


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_peso_becomes_patches_and_whole_slides(peso, tmp_path):
    target = tmp_path / "Dataset106_PESO"
    done = peso_data(peso, target, patch_size=64, patches=6)
    assert (done.training, done.test, done.configuration) == (24, 2, "2d")
    content = json.loads((target / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "epithelium": 1}
    assert content["file_ending"] == ".png"
    tested = {path.stem.removesuffix("_0000") for path in (target / "imagesTs").iterdir()}
    assert "pds_40" in tested
    for path in (target / "labelsTr").iterdir():
        name, _, y, x = path.stem.rsplit("_", 3)
        assert name not in tested
        y, x = int(y[1:]), int(x[1:])
        seed = int(name.split("_")[1])
        mask = truth((180, 220), seed)[y : y + 64, x : x + 64] == 2
        assert mask.any()
        assert np.array_equal(read(path), mask)
        image = halved(picture(*SHAPE, seed=seed))[y : y + 64, x : x + 64]
        assert np.array_equal(read(target / f"imagesTr/{path.stem}_0000.png"), image)
    (labelled,) = (target / "labelsTs").iterdir()
    expected = truth((180, 220), int(labelled.stem.split("_")[1])) == 2
    assert np.array_equal(tifffile.imread(labelled), expected)
    for path in (target / "imagesTs").iterdir():
        assert path.is_symlink()
        assert np.array_equal(
            tifffile.imread(path), picture(*SHAPE, seed=int(path.stem.split("_")[1]))
        )
    splits = json.loads((target / "splits_final.json").read_text())
    assert len(splits) == 4
    for split in splits:
        slides = [{case.rsplit("_", 3)[0] for case in split[part]} for part in ("train", "val")]
        assert slides[0].isdisjoint(slides[1])
        assert len(slides[1]) == 1


def test_the_same_seed_cuts_the_same_patches(peso, tmp_path):
    def names(folder: str, seed: int) -> list[str]:
        peso_data(peso, tmp_path / folder, patch_size=32, patches=3, seed=seed, test=0)
        return sorted(path.name for path in (tmp_path / folder / "labelsTr").iterdir())

    assert names("a", 1) == names("b", 1)
    assert names("c", 2) != names("a2", 1)
    # The places in a slide do not depend on which other slides there are.
    (peso / "slides/pds_1_HE.tif").unlink()
    assert names("d", 1) == [name for name in names("b2", 1) if not name.startswith("pds_1_")]
    assert names("d2", 1) == [
        n
        for n in sorted(p.name for p in (tmp_path / "a/labelsTr").iterdir())
        if not n.startswith("pds_1_")
    ]


def test_peso_at_micrometres_a_pixel(peso, tmp_path):
    done = peso_data(peso, tmp_path / "a", level=None, mpp=0.5, patch_size=64, patches=2)
    assert done.training == 8
    path = next((tmp_path / "a/imagesTr").iterdir())
    assert read(path).shape == (64, 64, 3)
    with pytest.raises(InputError, match=r"has 0\.24, 0\.48 microns per pixel; 0\.36"):
        peso_data(peso, tmp_path / "b", level=None, mpp=0.36)
    with pytest.raises(InputError, match="not both"):
        peso_data(peso, tmp_path / "b", mpp=0.5)


def test_peso_that_is_wrong(peso, tmp_path):
    mask = peso / "masks/pds_7_HE_training_mask.tif"
    mask.rename(mask.with_name("pds_7_HE_training_mask_corrected.tif"))
    assert peso_data(peso, tmp_path / "a", patch_size=32, patches=1).training == 4
    write_pyramid(mask, [truth((180, 220), 7)])
    with pytest.raises(InputError, match=r"pds_7_HE\.tif has 2 masks"):
        peso_data(peso, tmp_path / "b")
    mask.with_name("pds_7_HE_training_mask_corrected.tif").unlink()
    write_pyramid(mask, [truth((150, 220), 7)])
    with pytest.raises(InputError, match=r"pds_7_HE_training_mask\.tif has 150 x 220"):
        peso_data(peso, tmp_path / "b", patch_size=32, patches=1)
    write_pyramid(mask, [truth((180, 220), 7) + 1])
    with pytest.raises(InputError, match=r"pds_7_HE_training_mask\.tif holds the value\(s\) 3"):
        peso_data(peso, tmp_path / "b", patch_size=32, patches=1)
    with pytest.raises(InputError, match="less than a patch of 320"):
        peso_data(peso, tmp_path / "c")
    with pytest.raises(InputError, match="has no level 2; it has 0 to 1"):
        peso_data(peso, tmp_path / "c", level=2)
    for path in (peso / "masks").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"holds no pds_N_HE_training_mask\.tif"):
        peso_data(peso, tmp_path / "d")


@pytest.fixture
def generic(tmp_path) -> Path:
    """Slides with masks as TIFF at full resolution, PNG at a quarter, and none of one class."""
    folder = tmp_path / "generic"
    for number, name in enumerate("abcd"):
        image = picture(*SHAPE, seed=number)
        write_pyramid(folder / f"images/{name}.tif", [image, halved(image)], mpp=0.25)
        mask = truth(SHAPE, number, (0, 1, 2, 3))
        if name == "b":
            Image.fromarray(mask[2::4, 2::4]).save(folder / "masks/b.png")
        else:
            write_pyramid(
                folder / f"masks/{name}.tif", [np.zeros_like(mask) if name == "d" else mask]
            )
    return folder


def test_generic_slides(generic, tmp_path):
    target = tmp_path / "Dataset108_S"
    done = slide_data(generic, target, level=1, patch_size=48, patches=10, test=0.0)
    assert (done.training, done.test) == (30, 0)
    assert any(note.startswith("d has no foreground") for note in done.notes)
    per_slide = {name: [0, 0] for name in "abc"}
    for path in (target / "labelsTr").iterdir():
        name, number, y, x = path.stem.split("_")
        y, x = int(y[1:]), int(x[1:])
        labels = read(path)
        # The classes in turn.
        assert (labels == 1 + int(number) % 2).any()
        per_slide[name][int(number) % 2] += 1
        if name != "b":
            full = truth(SHAPE, "abcd".index(name), (0, 1, 2, 3))[1::2, 1::2]
            expected = np.where(full > 1, full - 1, 0)[y : y + 48, x : x + 48]
            assert np.array_equal(labels, expected)
    assert per_slide == {name: [5, 5] for name in "abc"}


def test_copies_instead_of_links(generic, tmp_path):
    slide_data(generic, tmp_path / "o", patch_size=48, patches=1, test=0.5, link="copy")
    paths = list((tmp_path / "o/imagesTs").iterdir())
    assert len(paths) == 2
    for path in paths:
        assert not path.is_symlink()
        assert path.read_bytes() == (generic / f"images/{path.name[0]}.tif").read_bytes()
    # A slide whose pixels are a folder.
    (tmp_path / "x").mkdir()
    (tmp_path / "x/data").write_text("pixels")
    for link in ("symlink", "copy"):
        place(tmp_path / "x", tmp_path / link, link)
        assert (tmp_path / link / "data").read_text() == "pixels"


def test_in_place(generic, tmp_path, monkeypatch):
    """Nothing is cut: JSON files that say where the slides lie, and all that training reads."""
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    target = tmp_path / "raw/Dataset108_S"
    options = {"level": 1, "patch_size": 80, "in_place": True, "test": 0.25, "seed": 4}
    with pytest.raises(EnvironmentMismatchError, match="nnUNet_preprocessed is not set"):
        slide_data(generic, target, **options)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    with pytest.raises(InputError, match="must be named DatasetXXX_Name"):
        slide_data(generic, tmp_path / "raw/slides", **options)
    with pytest.raises(PlansError, match="no_such_key"):
        slide_data(generic, target, **options, settings={"no_such_key": 1})
    done = slide_data(generic, target, **options, settings={"num_epochs": 7})
    assert (done.training, done.test, done.in_place) == (3, 1, True)
    pre = tmp_path / "pre/Dataset108_S"
    plans = json.loads((pre / "nnUNetOctreeNCAPlans.json").read_text())
    configuration = plans["configurations"]["2d"]
    assert configuration["patch_size"] == [80, 80]
    assert configuration["median_image_size_in_voxels"] == [180, 220]
    assert configuration["normalization_schemes"] == ["RGBTo01Normalization"] * 3
    assert configuration["architecture"]["arch_kwargs"]["factors"] == [[2, 2]] * 4
    assert configuration["octreenca"]["num_epochs"] == 7
    assert configuration["octreenca"]["crop_shape"] is None
    paths = sorted((pre / configuration["data_identifier"]).iterdir())
    assert len(paths) == 3
    colours = []
    for path in paths:
        case = SlideCase.load(path)
        assert SlideCase.load(target / f"imagesTr/{case.name}_0000.json") == case
        assert case.image == (generic / f"images/{case.name}.tif").resolve()
        assert (case.shape, case.downsample) == ((180, 220), 2.0)
        labels = tifffile.imread(case.label)
        if case.name in "ac":
            full = truth(SHAPE, "abcd".index(case.name), (0, 1, 2, 3))[1::2, 1::2]
            assert np.array_equal(labels, np.where(full > 1, full - 1, 0))
        for label, places in case.locations.items():
            y, x = np.array(places).T
            assert (labels[y, x] == label).all()
        half = halved(picture(*SHAPE, seed="abcd".index(case.name)))
        colours.append(half[labels > 0])
    values = np.concatenate(colours)
    found = plans["foreground_intensity_properties_per_channel"]
    for channel in range(3):
        assert found[str(channel)]["mean"] == pytest.approx(values[:, channel].mean(), abs=12)
        assert found[str(channel)]["percentile_99_5"] > found[str(channel)]["mean"]
    for name in ("dataset_fingerprint.json", "dataset.json", "splits_final.json"):
        assert (pre / name).is_file()
    splits = json.loads((pre / "splits_final.json").read_text())
    assert sorted(case for split in splits for case in split["val"]) == [p.stem for p in paths]


def test_slides_that_are_wrong(generic, tmp_path):
    target = tmp_path / "out"
    small = {"patch_size": 48, "patches": 1}
    for options, message in (
        ({"patch_size": 8}, r"patch size \(8\)"),
        ({"link": "hard"}, "'hard'"),
        ({"mpp": 0.1}, "is not a multiple"),
        ({"level": -1}, "no level -1"),
        ({"test": 1.5}, r"1\.5"),
    ):
        with pytest.raises(InputError, match=message):
            slide_data(generic, tmp_path / message[:3], **options)
    (generic / "masks/b.png").rename(generic / "masks/e.png")
    with pytest.raises(InputError, match=r"b\.tif has no mask"):
        slide_data(generic, target, **small)
    write_pyramid(generic / "images/b.tif", [picture(*SHAPE)[..., 0]])
    (generic / "masks/e.png").rename(generic / "masks/b.png")
    with pytest.raises(InputError, match=r"b\.tif has 1 channel\(s\) of uint8"):
        slide_data(generic, target, **small)
    (generic / "images/b.tif").write_bytes((generic / "images/a.tif").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"b\.tif is truncated"):
        slide_data(generic, target, **small)
    (generic / "masks/b.tif").write_bytes(b"")
    with pytest.raises(InputError, match="the name 'b' occurs twice"):
        slide_data(generic, target, **small)
    with pytest.raises(InputError, match="a folder images and a folder masks"):
        slide_data(tmp_path / "none", target)
    only = tmp_path / "only"
    write_pyramid(only / "images/d.tif", [picture(*SHAPE)])
    write_pyramid(only / "masks/d.tif", [np.zeros(SHAPE, np.uint8)])
    with pytest.raises(InputError, match="no slide with foreground"):
        slide_data(only, tmp_path / "other", **small)


def test_polygons_of_a_slide_that_qupath_cuts(tmp_path):
    """QuPath's coordinates begin where the scan does; what is left out is told."""
    pytest.importorskip("openslide")
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    write_leica(tmp_path / "images" / "a.scn", picture(256, 256), (64, 96), (480, 448))
    ring = [[10, 20], [110, 20], [110, 90], [10, 90], [10, 20]]
    features = [
        {"geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
        for properties in ({}, {"classification": {"names": ["tumour", "Positive"]}})
    ]
    (tmp_path / "masks" / "a.geojson").write_text(json.dumps(features))
    options = SlideOptions(patch_size=448, patches=1)
    done = convert_slides(tmp_path, tmp_path / "Dataset001_a", TUMOUR, options)
    (file,) = (done.folder / "labelsTr").iterdir()
    x = int(file.stem.rpartition("_x")[2])
    expected = np.zeros((448, 480), np.uint8)
    expected[116:186, 74:174] = 1
    assert np.array_equal(np.asarray(Image.open(file)), expected[:, x : x + 448])
    assert "a: 1 region(s) without a class left out." in done.notes
    assert "a: 1 region(s) of the class 'tumour: Positive' count as 'tumour'." in done.notes


@pytest.mark.parametrize("code", [2, 3, 6, 8])
@pytest.mark.parametrize("ending", ["tif", "jpg"])
@pytest.mark.parametrize("polygons", [True, False])
def test_masks_lie_on_the_slide_as_it_is_shown(tmp_path, code, ending, polygons):
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    pixels = picture(64, 96)
    if ending == "jpg":
        tags = Image.Exif()
        tags[0x0112] = code
        Image.fromarray(pixels).save(tmp_path / "images" / "a.jpg", exif=tags, quality=100)
    else:
        tags = [(0x0112, "H", 1, code, True)]
        write_pyramid(tmp_path / "images" / "a.tif", [pixels], extratags=tags)
    shape = (96, 64) if code > 4 else (64, 96)
    mask = np.zeros(shape, np.uint8)
    mask[10:20, 30:50] = 2
    if polygons:
        ring = [[30, 10], [50, 10], [50, 20], [30, 20], [30, 10]]
        properties = {"classification": {"name": "tumour"}}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        content = json.dumps([{"geometry": geometry, "properties": properties}])
        (tmp_path / "masks" / "a.geojson").write_text(content)
    else:
        Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    options = SlideOptions(patch_size=48, patches=1)
    done = convert_slides(tmp_path, tmp_path / "Dataset001_a", TUMOUR, options)
    (file,) = (done.folder / "labelsTr").iterdir()
    y, x = (int(part[1:]) for part in file.stem.split("_")[-2:])
    np.testing.assert_array_equal(np.asarray(Image.open(file)), mask[y : y + 48, x : x + 48] // 2)
    turned = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        6: np.rot90(pixels, -1),
        8: np.rot90(pixels),
    }
    patch = np.asarray(Image.open(done.folder / "imagesTr" / f"{file.stem}_0000.png"))
    difference = turned[code][y : y + 48, x : x + 48] - patch.astype(float)
    assert np.abs(difference).mean() < (20 if ending == "jpg" else 1e-9)
    assert sum(f"orientation {code} says" in note for note in done.notes) == 1


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("slide [1].png", "slide [1].png"),
        ("slide [!a]*?.tif", "slide [!a]*?.geojson"),
        ("b\u00e4r 3.1.png", "ba\u0308r 3.1.png"),
        ("ba\u0308r.svs", "b\u00e4r.tif"),
        ("a.b.ome.tif", "a.b.png"),
        ("a.OME.TIF", "a.ome.tif"),
        ("\u0645\u0631\u062d\u0628\u0627.png", "\u0645\u0631\u062d\u0628\u0627.PNG"),
    ],
)
def test_slides_and_masks_pair_by_name(tmp_path, image, mask):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name in (image, "other.png"):
        (tmp_path / "images" / name).touch()
    for name in (mask, "other.png", f".{mask}", "notes.txt"):
        (tmp_path / "masks" / name).touch()
    pairs = {pair.image.name: pair for pair in find_pairs(tmp_path)}
    assert pairs[image].mask == tmp_path / "masks" / mask
    assert pairs["other.png"].mask == tmp_path / "masks" / "other.png"


def test_names_that_only_their_bytes_tell_apart_are_refused(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in ("b\u00e4r.png", "ba\u0308r.png"):
            (tmp_path / folder / name).touch()
    with pytest.raises(InputError, match=r"occurs twice .*; keep one of each"):
        find_pairs(tmp_path)
