"""A real whole-slide image, from the file to every format, opened by other readers."""

import json

import numpy as np
import pytest
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.cli.main import main

FORMATS = ("ome.tif", "ome.zarr", "geojson", "dcm", "png")


@pytest.fixture(scope="module")
def results(tmp_path_factory, data_folder):
    """The slide predicted with an untrained network; (folder, name)."""
    (slide,) = data_folder("wsi_unlabelled").glob("*.svs")
    folder = tmp_path_factory.mktemp("slide")
    model = model_folder(folder / "model", patch=(320, 320))
    code = main(
        ["predict", "-m", str(model), "-i", str(slide), "-o", str(folder / "out"), "-device", "cpu",
         "--disable_tta", "--formats", *FORMATS, "--band", "512", "--report",
         str(folder / "run.json")]
    )  # fmt: skip
    assert code == 0
    return folder, slide


@pytest.fixture(scope="module")
def labels(results):
    """Read by tifffile."""
    import tifffile

    folder, slide = results
    return tifffile.imread(folder / "out" / f"{slide.stem}.ome.tif")


@pytest.mark.slow
def test_the_pyramid(results, labels):
    import tifffile

    folder, slide = results
    with tifffile.TiffFile(slide) as source:
        assert labels.shape == source.pages[0].shape[:2]
    assert set(np.unique(labels)) == {0, 1, 2}
    with tifffile.TiffFile(folder / "out" / f"{slide.stem}.ome.tif") as written:
        levels = written.series[0].levels
        assert np.array_equal(levels[1].asarray(), labels[::2, ::2])
        assert max(levels[-1].shape) <= 512
        assert 'PhysicalSizeX="0.499' in written.ome_metadata


@pytest.mark.slow
def test_another_band_and_the_network_itself_give_the_same(results, labels):
    import tifffile
    import torch

    from nnunet_octreenca.integration.model import load_model

    folder, slide = results
    pixels = np.moveaxis(tifffile.imread(slide, series=0, level=0), -1, 0)
    network = load_model(folder / "model").networks[0]
    image = torch.from_numpy(pixels.astype(np.float32) / np.float32(255))[None]
    assert np.array_equal(network.segment(image)[0].numpy(), labels)


@pytest.mark.slow
def test_zarr_png_and_dicom_hold_the_same_labels(results, labels):
    import highdicom
    import pydicom
    import zarr

    folder, slide = results
    group = zarr.open_group(folder / "out" / f"{slide.stem}.ome.zarr", mode="r")
    found = group["labels/segmentation/0"][:]
    assert np.array_equal(np.squeeze(found), labels)
    assert np.array_equal(Image.open(folder / "out" / f"{slide.stem}.png"), labels)
    segmentation = highdicom.seg.segread(folder / "out" / f"{slide.stem}.dcm")
    assert isinstance(segmentation, pydicom.Dataset)
    matrix = segmentation.get_total_pixel_matrix(combine_segments=True)
    assert np.array_equal(matrix, labels)


@pytest.mark.slow
def test_polygons_cover_their_class(results, labels):
    """Outlines move by a pixel at most, which costs the strings of an untrained network a tenth."""
    from rasterio.features import rasterize
    from scipy.ndimage import label as connected
    from shapely.geometry import shape

    folder, slide = results
    content = json.loads((folder / "out" / f"{slide.stem}.geojson").read_text())
    numbers = {"first": 1, "second": 2}
    shapes = []
    for feature in content["features"]:
        polygon = shape(feature["geometry"])
        assert polygon.is_valid
        shapes.append((polygon, numbers[feature["properties"]["classification"]["name"]]))
    drawn = rasterize(shapes, out_shape=labels.shape, fill=0, dtype=np.uint8)
    for value in {number for _, number in shapes}:
        regions, _ = connected(labels == value)
        large = np.bincount(regions.ravel()) >= 64
        large[0] = False
        wanted = large[regions]
        assert (drawn[wanted] == value).mean() > 0.8


@pytest.mark.slow
def test_the_picture_and_the_report(results):
    folder, slide = results
    with Image.open(folder / "out" / "overlays" / f"{slide.stem}_overlay.png") as picture:
        assert min(picture.size) >= 480
        assert max(picture.size) <= 2000
    (case,) = json.loads((folder / "run.json").read_text())["cases"]
    assert case["kind"] == "slide"
    assert len(case["outputs"]) == len(FORMATS) + 1
