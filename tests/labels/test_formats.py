"""Every format through the one function that writes any of them."""

import errno
import json
import tracemalloc
from importlib import import_module
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from helpers.label_maps import blobs, noise
from PIL import Image

from nnunet_octreenca.errors import EnvironmentMismatchError, OutputError
from nnunet_octreenca.labels import formats as module
from nnunet_octreenca.labels.formats import (
    FORMATS,
    LabelInfo,
    check_formats,
    check_labels,
    default_formats,
    output_path,
    write,
)
from nnunet_octreenca.labels.palette import PALETTE, colour

NAMES = {0: "background", 1: "tümor", 2: "stroma"}
EVERY = [(name, kind) for name, form in FORMATS.items() for kind in form.kinds]


def information(kind, labels):
    shape = labels.shape
    extra = {}
    if kind == "video":
        extra = {"frames": lambda: iter(np.zeros((*shape, 3), np.uint8)), "fps": 10}
    if kind == "volume":
        extra = {"spacing": (0.5, 0.75, 2), "origin": (1, 2, 3)}
    if kind == "slide":
        extra = {"mpp": 0.5}
    return LabelInfo(names=NAMES, kind=kind, **extra)


def shape_of(kind):
    return (4, 40, 50) if kind in ("video", "volume") else (80, 90)


def read_back(name, path, shape):
    """The labels by a reader that is not ours; None for a video to look at."""
    if name == "ome.tif":
        return import_module("tifffile").imread(path)
    if name == "ome.zarr":
        return import_module("zarr").open_group(path, mode="r")["labels/segmentation/0"][...]
    if name == "dcm":
        found = import_module("highdicom").seg.segread(path)
        if len(shape) == 2:
            return found.get_total_pixel_matrix(combine_segments=True)
        # Axes like the patient's: highdicom gives the planes from the last to the first.
        return found.get_volume(combine_segments=True).array[::-1]
    if name in ("png", "plain.png"):
        with Image.open(path) as picture:
            return np.asarray(picture)
    if name == "frames":
        return np.stack([np.asarray(Image.open(file)) for file in sorted(path.iterdir())])
    if name == "coco.json":
        mask = import_module("pycocotools.mask")
        found = np.zeros((-1 % 2 if len(shape) == 2 else shape[0], *shape[-2:]), np.uint8)
        for annotation in json.loads(path.read_text())["annotations"]:
            where = mask.decode(annotation["segmentation"]).astype(bool)
            found[annotation["image_id"] - 1][where] = annotation["category_id"]
        return found.reshape(shape)
    if name in ("nii.gz", "nii", "nrrd", "mha"):
        sitk = import_module("SimpleITK")
        image = sitk.ReadImage(path)
        assert image.GetSpacing() == (0.5, 0.75, 2)
        assert image.GetOrigin() == (1, 2, 3)
        return sitk.GetArrayFromImage(image)
    return None


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_format_gives_the_labels_back(tmp_path, name, kind):
    labels = blobs(*shape_of(kind), dtype=np.int16 if kind in ("volume", "picture") else np.uint8)
    path = write(name, labels, tmp_path / "case.7", information(kind, labels))
    assert path == output_path(name, tmp_path / "case.7")
    assert list(tmp_path.iterdir()) == [path]
    found = read_back(name, path, labels.shape)
    if found is not None:
        np.testing.assert_array_equal(found, labels)


def test_polygons_of_a_coarse_level_lie_on_level_0(tmp_path):
    labels = np.zeros((8, 9), np.uint8)
    labels[2:4, 3:6] = 1
    info = LabelInfo(names=NAMES, kind="slide", scale=8, offset=(100, 200))
    path = write("geojson", labels, tmp_path / "slide", info)
    (feature,) = json.loads(path.read_text())["features"]
    xs, ys = zip(*feature["geometry"]["coordinates"][0], strict=True)
    assert (min(xs), max(xs), min(ys), max(ys)) == (124, 148, 216, 232)


@pytest.mark.parametrize("bounds", [None, (0, 0, 90, 60), (64, 20, 90, 60)])
def test_polygons_begin_at_the_bounds_of_what_was_scanned(tmp_path, bounds):
    """As in QuPath, which cuts a slide to them; the OME-TIFF, of the whole slide, names them."""
    tifffile = pytest.importorskip("tifffile")
    labels = np.zeros((60, 90), np.uint8)
    labels[20:40, 30:70] = 1
    info = LabelInfo(names=NAMES, kind="slide", scale=(4.0, 2.0), offset=(8.0, 0.0), bounds=bounds)
    path = write("geojson", labels, tmp_path / "slide", info)
    (feature,) = json.loads(path.read_text())["features"]
    x, y = np.array(feature["geometry"]["coordinates"][0]).T
    left, top = bounds[:2] if bounds else (0, 0)
    assert (x.min(), x.max()) == (128 - left, 288 - left)
    assert (y.min(), y.max()) == (40 - top, 80 - top)
    with tifffile.TiffFile(write("ome.tif", labels, tmp_path / "slide", info)) as file:
        assert file.series[0].shape == (60, 90)
        text = file.ome_metadata
    assert all(name in text for name in NAMES.values())
    keys = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
    if bounds is None:
        assert "openslide" not in text
    else:
        told = zip(keys, bounds, strict=True)
        assert all(f'<M K="{key}">{value}</M>' in text for key, value in told)


def test_single_pixels_that_are_left_out_of_polygons_are_counted(tmp_path):
    labels = np.zeros((30, 40), np.uint8)
    labels[3:9, 3:9], labels[20, 20], labels[20, 30], labels[25, 5:7] = 1, 2, 1, 2
    said: list[str] = []
    info = LabelInfo(names=NAMES, kind="slide")
    path = write("geojson", labels, tmp_path / "slide", info, tell=said.append)
    assert len(json.loads(path.read_text())["features"]) == 2
    assert said == ["slide.geojson: 2 region(s) of fewer than 2 pixels are left out"]
    labels[20] = 0
    write("geojson", labels, tmp_path / "slide", info, tell=said.append)
    assert len(said) == 1


def test_sizes_of_voxels_reach_the_microscopists_formats(tmp_path):
    tifffile, zarr = pytest.importorskip("tifffile"), pytest.importorskip("zarr")
    labels = blobs(4, 20, 30)
    info = information("volume", labels)
    with tifffile.TiffFile(write("ome.tif", labels, tmp_path / "a", info)) as file:
        for text in ('SizeX="500.0"', 'SizeY="750.0"', 'SizeZ="2000.0"'):
            assert f"Physical{text}" in file.ome_metadata
    group = zarr.open_group(write("ome.zarr", labels, tmp_path / "a", info), mode="r")
    (level,) = group.attrs["multiscales"][0]["datasets"]
    assert level["coordinateTransformations"][0]["scale"] == [2000, 750, 500]


@pytest.mark.parametrize(
    ("kind", "path", "expected"),
    [
        ("slide", "a.svs", ("ome.tif",)),
        ("picture", "a.jpg", ("png",)),
        ("video", "a.mp4", ("frames", "mp4")),
        ("volume", "a.b.nii.gz", ("nii.gz",)),
        ("volume", "a.NII", ("nii",)),
        ("volume", "a.nhdr", ("nrrd",)),
        ("volume", "a.mhd", ("mha",)),
        ("volume", "a.dcm", ("dcm",)),
        ("volume", "a.unknown", ("nii.gz",)),
    ],
)
def test_default_formats(kind, path, expected):
    assert default_formats(kind, path) == expected
    check_formats(expected, kind)


def test_a_folder_is_a_dicom_series(tmp_path):
    assert default_formats("volume", tmp_path) == ("dcm",)


def test_formats_are_refused_before_anything_is_computed(monkeypatch):
    with pytest.raises(OutputError, match=r"geojson is not a format for a volume; choose from ome"):
        check_formats(["nii.gz", "geojson"], "volume")
    with pytest.raises(OutputError, match="bmp is not a format for a picture"):
        check_formats(["bmp"], "picture")
    with pytest.raises(OutputError, match=r"png and plain\.png write to the same file name"):
        check_formats(["png", "plain.png"], "picture")
    monkeypatch.setitem(
        FORMATS, "ome.tif", module.Format(".x", ("slide",), write, ("no_such",), "slides")
    )
    with pytest.raises(EnvironmentMismatchError, match=r"nnunet-octreenca\[slides\]"):
        check_formats(["ome.tif"], "slide")


def test_a_video_overlay_needs_frames(tmp_path):
    with pytest.raises(OutputError, match="needs the video's frames"):
        write("mp4", blobs(2, 20, 30), tmp_path / "a", LabelInfo(names=NAMES, kind="video"))


# What each writer calls again and again while its file grows, and the call that fails.
STEPS = {
    "ome.tif": ("nnunet_octreenca.labels.tiff", "_tile", 2),
    "ome.zarr": ("nnunet_octreenca.labels.omezarr", "_write_level", 1),
    "geojson": ("nnunet_octreenca.labels.geojson", "_feature", 2),
    "dcm": ("pydicom.filewriter", "write_data_element", 20),
    "png": ("PIL.ImageFile", "_save", 1),
    "plain.png": ("PIL.ImageFile", "_save", 1),
    "frames": ("nnunet_octreenca.labels.png", "_write_png", 2),
    "coco.json": ("nnunet_octreenca.labels.coco", "_encoded", 2),
    "mp4": ("nnunet_octreenca.labels.overlay_video", "blend", 2),
    "nii.gz": ("SimpleITK", "WriteImage", 1),
    "nii": ("SimpleITK", "WriteImage", 1),
    "nrrd": ("SimpleITK", "WriteImage", 1),
    "mha": ("SimpleITK", "WriteImage", 1),
}


@pytest.mark.parametrize(
    ("error", "before"),
    [(KeyboardInterrupt(), False), (OSError(errno.ENOSPC, "full"), True)],
    ids=["Ctrl-C", "full disk"],
)
@pytest.mark.parametrize("name", FORMATS)
def test_a_failure_halfway_leaves_what_was_there(tmp_path, monkeypatch, name, error, before):
    kind = FORMATS[name].kinds[-1]
    labels = blobs(*shape_of(kind))
    info = information(kind, labels)
    if before:
        path = write(name, labels, tmp_path / "case", info)
        contents = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    owner, step, failing_call = STEPS[name]
    original, calls = getattr(import_module(owner), step), count(1)

    def failing(*arguments, **options):
        call = next(calls)
        done = original(*arguments, **options)
        if call == failing_call:
            raise error
        return done

    monkeypatch.setattr(import_module(owner), step, failing)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError
    with pytest.raises(expected, match="the disk is full" if expected is OutputError else None):
        write(name, 2 - labels, tmp_path / "case", info)
    if before:
        assert list(tmp_path.iterdir()) == [path]
        assert contents == {
            file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()
        }
    else:
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["the end", "most"])
@pytest.mark.parametrize("name", FORMATS)
def test_no_room_on_the_disk(tmp_path, name, missing):
    """The system itself refuses to let a file grow, as a full disk does."""
    resource = pytest.importorskip("resource")
    kind = FORMATS[name].kinds[-1]
    labels = noise(*shape_of(kind))[..., :40, :40]
    info = information(kind, labels)
    (tmp_path / "whole").mkdir()
    write(name, labels, tmp_path / "whole" / "case", info)
    size = max(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    # Identifiers in a DICOM file differ in length from one file to the next.
    enough = size - 64 if missing == "the end" else size // 4
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (enough, hard))
    try:
        with pytest.raises(
            OutputError, match=r"cannot be written.*(disk may be full|disk is full|File too large)"
        ):
            write(name, labels, tmp_path / "case", info)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_that_is_not_there(tmp_path, name):
    kind = FORMATS[name].kinds[-1]
    labels = blobs(*shape_of(kind))
    with pytest.raises(OutputError, match=r"case.* cannot be written"):
        write(name, labels, tmp_path / "nowhere" / "case", information(kind, labels))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "shape", "share"),
    [
        ("ome.tif", (4096, 2048), 0.5),
        ("ome.zarr", (8192, 1024), 0.8),
        ("png", (4096, 2048), 0.1),
        ("geojson", (8192, 512), 0.6),
    ],
)
def test_labels_are_not_copied_whole(tmp_path, monkeypatch, name, shape, share):
    monkeypatch.setattr("nnunet_octreenca.labels.tiff._BUFFER", 2**20)
    labels = np.zeros(shape, np.uint8)
    labels[1000:4000, 100:500] = 1
    info = information("slide", labels)
    write(name, labels[:64, :64], tmp_path / "imports", info)
    tracemalloc.start()
    try:
        write(name, labels, tmp_path / "case", info)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < share * labels.nbytes


def test_colours_are_stable_and_all_different():
    assert len(np.unique(PALETTE, axis=0)) == 256
    assert [colour(n) for n in range(4)] == [
        (0, 0, 0),
        (86, 180, 233),
        (230, 159, 0),
        (0, 158, 115),
    ]
    assert colour(255) == tuple(PALETTE[255])
    assert colour(256) == colour(1)


def test_the_first_colours_are_told_apart_by_the_colour_blind():
    # Machado, Oliveira and Fernandes (2009), full severity, on linear RGB.
    seen_by = {
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        "normal": np.eye(3),
    }
    rgb2lab = pytest.importorskip("skimage.color").rgb2lab
    encoded = PALETTE[1:8] / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    for matrix in seen_by.values():
        seen = np.clip(linear @ np.transpose(matrix), 0, 1)
        seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
        lab = rgb2lab(seen[None])[0]
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
        assert apart[~np.eye(len(lab), dtype=bool)].min() > 10


@pytest.mark.parametrize(
    ("kind", "shape", "extra", "expected"),
    [
        ("picture", (4, 5), {"image_path": Path("in/photo.JPG")}, ["photo.JPG"]),
        ("picture", (4, 5), {"image_path": Path("bär [1].v2.bmp")}, ["bär [1].v2.bmp"]),
        (
            "video",
            (3, 4, 5),
            {"image_path": Path("clip"), "file_names": ["f_1.jpeg", "f_2.PNG", "f.3.tif"]},
            ["f_1.jpeg", "f_2.PNG", "f.3.tif"],
        ),
        (
            "video",
            (2, 4, 5),
            {"image_path": Path("clip.mp4")},
            ["000000.png", "000001.png"],
        ),
    ],
)
def test_coco_names_the_files_that_were_segmented(tmp_path, kind, shape, extra, expected):
    info = LabelInfo(names=NAMES, kind=kind, **extra)
    path = write("coco.json", blobs(*shape), tmp_path / "a", info)
    images = json.loads(path.read_text())["images"]
    assert [image["file_name"] for image in images] == expected


def test_frames_that_would_become_one_file_are_refused_first(tmp_path):
    info = LabelInfo(names=NAMES, kind="video", file_names=["1.png", "2.png", "1.jpg"])
    with pytest.raises(OutputError, match=r"1\.png and 1\.jpg would both become 1\.png"):
        check_labels(["frames"], (3, 4, 5), tmp_path / "a", info)
    check_labels(["coco.json"], (3, 4, 5), tmp_path / "a", info)
