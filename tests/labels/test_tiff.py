from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from helpers.label_maps import blobs, noise

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels import tiff as module
from nnunet_octreenca.labels.palette import PALETTE
from nnunet_octreenca.labels.tiff import write_label_tiff

NAMES = {0: "background", 1: "tümor <1>", 2: "stroma"}
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def levels(path):
    with tifffile.TiffFile(path) as file:
        return [level.asarray() for level in file.series[0].levels]


@pytest.mark.parametrize(
    ("shape", "tile", "count"), [((300, 517), 64, 5), ((64, 64), 64, 1), ((1, 1), 16, 1)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_all_levels_hold_each_second_pixel(tmp_path, shape, tile, count, dtype):
    labels = noise(*shape, dtype=dtype)
    write_label_tiff(labels, tmp_path / "a.ome.tif", names=NAMES, mpp=0.5, tile=tile)
    found = levels(tmp_path / "a.ome.tif")
    assert len(found) == count
    for number, level in enumerate(found):
        np.testing.assert_array_equal(level, labels[:: 2**number, :: 2**number])
        assert level.dtype == np.uint8


def test_planes(tmp_path):
    labels = noise(5, 70, 101, classes=300, dtype=np.int16)
    write_label_tiff(labels, tmp_path / "a.ome.tif", names=NAMES, mpp=(3, 0.5, 0.25), tile=32)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        series = file.series[0]
        assert series.axes == "ZYX"
        assert series.dtype == np.uint16
        for number, level in enumerate(series.levels):
            np.testing.assert_array_equal(level.asarray(), labels[:, :: 2**number, :: 2**number])
        pixels = ElementTree.fromstring(file.ome_metadata).find(f".//{OME}Pixels")
    assert [float(pixels.get(f"PhysicalSize{axis}")) for axis in "ZYX"] == [3, 0.5, 0.25]


def test_frames(tmp_path):
    labels = noise(4, 20, 30)
    write_label_tiff(labels, tmp_path / "a.ome.tif", names=NAMES, axes="TYX")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert file.series[0].axes == "TYX"
        np.testing.assert_array_equal(file.asarray(), labels)
        assert "PhysicalSize" not in file.ome_metadata


def test_what_the_file_says(tmp_path):
    write_label_tiff(blobs(50, 60), tmp_path / "a.ome.tif", names=NAMES, mpp=(0.5, 0.25), tile=32)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert not file.is_bigtiff
        root = ElementTree.fromstring(file.ome_metadata)
        np.testing.assert_array_equal(file.pages[0].colormap, PALETTE.T.astype(int) * 257)
        tags = file.pages[0].tags
        assert tags["Compression"].value == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER
        assert [tags[f"{axis}Resolution"].value[0] for axis in "XY"] == [40_000, 20_000]
        small = file.series[0].levels[1].keyframe.tags
        assert [small[f"{axis}Resolution"].value[0] for axis in "XY"] == [20_000, 10_000]
    pixels = root.find(f".//{OME}Pixels")
    assert (pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit")) == ("0.25", "µm")
    assert pixels.get("PhysicalSizeY") == "0.5"
    classes = {m.get("K"): m.text for m in root.iter(f"{OME}M")}
    assert classes == {"0": "background", "1": "tümor <1>", "2": "stroma"}


def test_openslide_shows_the_colours(tmp_path):
    openslide = pytest.importorskip("openslide")
    labels = blobs(100, 130)
    write_label_tiff(labels, tmp_path / "a.ome.tif", names=NAMES, mpp=0.5, tile=64)
    with openslide.OpenSlide(tmp_path / "a.ome.tif") as slide:
        assert slide.dimensions == (130, 100)
        assert float(slide.properties["openslide.mpp-x"]) == 0.5
        picture = np.asarray(slide.read_region((0, 0), 0, (130, 100)).convert("RGB"))
    np.testing.assert_array_equal(picture, PALETTE[labels])


def test_large_files_are_bigtiff(tmp_path, monkeypatch):
    labels = blobs(100, 130)
    # Level 0 and half, quarter and eighth size: what is compared with the limit.
    size = 100 * 130 * (1 + 1 / 4 + 1 / 16 + 1 / 64)
    for limit, big in ((size * 1.01, False), (size * 0.99, True)):
        monkeypatch.setattr(module, "_CLASSIC_BYTES", limit)
        write_label_tiff(labels, tmp_path / "a.ome.tif", names=NAMES, tile=16)
        with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
            assert file.is_bigtiff == big
            np.testing.assert_array_equal(file.asarray(), labels)


def test_labels_that_do_not_fit(tmp_path):
    with pytest.raises(OutputError, match="labels from -1 to 0"):
        write_label_tiff(np.array([[0, -1]], np.int16), tmp_path / "a.ome.tif", names=NAMES)
    with pytest.raises(OutputError, match="2 or 3 axes"):
        write_label_tiff(np.zeros(3, np.uint8), tmp_path / "a.ome.tif", names=NAMES)
    assert not list(tmp_path.iterdir())
