"""The public API: what `from nnunet_octreenca import ...` gives, on small files made here."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from untrained_model import model_folder, stock_plans

import nnunet_octreenca
from nnunet_octreenca import (
    ArraySource,
    Ensemble,
    extend_plans,
    load_model,
    predict,
    segment_file,
)
from nnunet_octreenca.errors import CheckpointError, InputError, OutOfMemoryError, OutputError
from nnunet_octreenca.ops.native import cpu_module


@pytest.fixture(scope="module")
def rgb(tmp_path_factory):
    """A 2-D model of two folds."""
    return model_folder(tmp_path_factory.mktemp("models") / "rgb", folds=("0", "1"))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """A 3-D model of two channels."""
    return model_folder(
        tmp_path_factory.mktemp("models") / "volumes",
        patch=(8, 16, 16),
        channels=2,
        ending=".nii.gz",
    )


def picture(path, shape=(61, 45), seed=0):
    pixels = np.random.default_rng(seed).integers(1, 255, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def given_to_the_network(pixels):
    return np.moveaxis(pixels, -1, 0).astype(np.float32) / 255


def whole(network, pixels, seed=0):
    """Labels of the whole image at once."""
    image = torch.from_numpy(given_to_the_network(pixels))[None]
    return network.segment(image, seed=seed)[0].numpy()


@pytest.mark.parametrize("band_rows", [None, 16])
def test_a_model_whose_levels_differ_in_channels(tmp_path, band_rows):
    folder = model_folder(tmp_path / "model", cells=(16, 24, 20))
    pixels = picture(tmp_path / "a.png")
    model = load_model(folder)
    assert model.networks[0].level_channels == (16, 24, 20)
    labels = segment_file(tmp_path / "a.png", model, mirror=False, band_rows=band_rows)
    assert np.array_equal(labels, whole(model.networks[0], pixels))
    assert len(np.unique(labels)) > 1


def test_importing_does_not_import_torch():
    code = "import sys, nnunet_octreenca; dir(nnunet_octreenca); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names():
    assert set(nnunet_octreenca.__all__) <= set(dir(nnunet_octreenca))
    for name in nnunet_octreenca.__all__:
        thing = getattr(nnunet_octreenca, name)
        if name != "__version__":
            assert thing.__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Octree'"):
        _ = nnunet_octreenca.Octree


@pytest.mark.parametrize("band_rows", [None, 16])
def test_a_file_gives_its_labels(rgb, tmp_path, band_rows):
    pixels = picture(tmp_path / "a.png")
    model = load_model(rgb, folds=["0"])
    labels = segment_file(tmp_path / "a.png", model, mirror=False, band_rows=band_rows)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, whole(model.networks[0], pixels))
    assert len(np.unique(labels)) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_seeds_and_folds_are_those_of_the_ensemble(rgb, tmp_path):
    pixels = picture(tmp_path / "a.png")
    model = load_model(rgb)
    labels = segment_file(str(tmp_path / "a.png"), model, seeds=[3, 4], band_rows=16)
    ensemble = Ensemble(
        [(network, seed) for network in model.networks for seed in (3, 4)],
        mirror_axes=(0, 1),
        band_rows=16,
    )
    assert ensemble.passes == 16
    image = ArraySource(given_to_the_network(pixels))
    parts = [part for _, part in ensemble.segment(image)]
    assert np.array_equal(labels, np.concatenate(parts))
    logits = np.concatenate([part for _, part in ensemble.logits(image)], 1)
    assert logits.shape == (3, 61, 45)
    assert np.array_equal(labels, logits.argmax(0))
    assert not np.array_equal(labels, segment_file(tmp_path / "a.png", model, seeds=[5]))


def test_progress_counts_every_row(rgb, tmp_path):
    picture(tmp_path / "a.png")
    seen = {"total": 0, "read": 0, "segment": 0}

    def progress(stage, rows):
        seen[stage] += rows

    segment_file(tmp_path / "a.png", rgb, mirror=False, progress=progress)
    assert seen == {"total": 61, "read": 61, "segment": 61}


def test_files_of_several_channels(volumes, tmp_path):
    import SimpleITK

    rng = np.random.default_rng(0)
    files = [tmp_path / f"v_{channel:04d}.nii.gz" for channel in range(2)]
    for file in files:
        voxels = rng.normal(50, 30, (11, 20, 18)).astype(np.float32)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(file))
    labels = segment_file(files, volumes, mirror=False)
    assert labels.shape == (11, 20, 18)
    assert len(np.unique(labels)) > 1
    # The first channel's name stands for the case.
    assert np.array_equal(labels, segment_file(files[0], volumes, mirror=False))
    assert not np.array_equal(labels, segment_file(files[::-1], volumes, mirror=False))
    # So does the folder that holds nothing else.
    assert np.array_equal(labels, segment_file(tmp_path, volumes, mirror=False))


def test_tissue_leaves_glass_out(rgb, tmp_path):
    pixels = np.full((200, 40, 3), 230, np.uint8)
    pixels[100:120, 5:30] = (180, 60, 150)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = load_model(rgb, folds=["0"])
    every, some = (
        segment_file(tmp_path / "a.png", model, mirror=False, band_rows=16, tissue=tissue)
        for tissue in (False, True)
    )
    assert np.array_equal(some[96:128], every[96:128])
    assert not some[:96].any()
    assert every[:96].any()


@pytest.mark.skipif(cpu_module() is None, reason="the C++ engine is not built")
def test_float16_states(rgb, tmp_path):
    pixels = picture(tmp_path / "a.png", (300, 200))
    model = load_model(rgb, folds=["0"])
    half = segment_file(tmp_path / "a.png", model, mirror=False, float16=True)
    image = torch.from_numpy(given_to_the_network(pixels))[None]
    expected = model.networks[0].segment(image, state="float16")[0].numpy()
    assert np.array_equal(half, expected)
    assert 0.97 < (half == whole(model.networks[0], pixels)).mean() < 1


def test_a_slide_at_a_resolution(rgb, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 255, (96, 64, 3), np.uint8)
    per_cm = 1e4 / 0.25
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", tile=(32, 32),
        resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
    )  # fmt: skip
    assert segment_file(tmp_path / "a.tif", rgb, mirror=False).shape == (96, 64)
    assert segment_file(tmp_path / "a.tif", rgb, mirror=False, mpp=0.5).shape == (48, 32)
    run = predict(
        tmp_path / "a.tif", tmp_path / "out", rgb, mirror=False, mpp=0.5, formats=["ome.tif"]
    )
    with tifffile.TiffFile(tmp_path / "out" / "a.ome.tif") as written:
        assert written.pages[0].shape == (48, 32)
        assert 'PhysicalSizeX="0.5"' in written.ome_metadata
    assert run.done[0].kind == "slide"


def test_a_folder_is_written(rgb, tmp_path):
    images, out = tmp_path / "in", tmp_path / "out"
    images.mkdir()
    pixels = {name: picture(images / f"{name}.png", seed=n) for n, name in enumerate("abc")}
    data = (images / "b.png").read_bytes()
    (images / "b.png").write_bytes(data[: len(data) // 2])
    model, told = load_model(rgb, folds=["0"]), []
    run = predict(images, out, model, mirror=False, tell=told.append)
    assert [case.case for case in run.done] == ["a", "c"]
    assert [(failure.case, failure.error) for failure in run.failed] == [("b", "InputError")]
    assert "truncated" in run.failed[0].sentence
    assert told[0] == f"{images}: 3 cases"
    assert [line.split(",")[0] for line in told[1:]] == ["a: 61 x 45", "c: 61 x 45"]
    for case in run.done:
        labels = np.asarray(Image.open(case.outputs[0]))
        expected = whole(model.networks[0], pixels[case.case])
        assert np.array_equal(labels, expected)
        assert case.shares["first"] == pytest.approx((expected == 1).mean())
        assert (case.kind, case.shape, case.passes) == ("picture", [61, 45], 1)
    (images / "b.png").write_bytes(data)
    again = predict(images, out, model, mirror=False, resume=True)
    assert again.left_out == ["a", "c"]
    assert [case.case for case in again.done] == ["b"]


def test_a_single_case_raises(rgb, tmp_path):
    picture(tmp_path / "a.png")
    options = {"mirror": False, "band_rows": 16}
    predict(tmp_path / "a.png", tmp_path / "out", rgb, **options)
    with pytest.raises(OutputError, match=r"a\.png exists already"):
        predict(tmp_path / "a.png", tmp_path / "out", rgb, **options)
    run = predict(tmp_path / "a.png", tmp_path / "out", rgb, **options, overwrite=True)
    assert (run.done[0].bands_of, run.done[0].whole) == (16, False)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"band_rows": 0}, InputError, r"band_rows \(0\) must be at least 1"),
        ({"memory": 0}, InputError, r"memory \(0\) must be at least 1"),
        ({"memory": 1000}, OutOfMemoryError, "may be used"),
        ({"mpp": -1.0}, InputError, r"mpp \(-1\.0\) must be above 0"),
        ({"mpp": 0.5}, InputError, "does not say its microns per pixel"),
        ({"seeds": []}, InputError, "seeds are empty"),
    ],
)
def test_options_that_cannot_be_used(rgb, tmp_path, options, error, sentence):
    picture(tmp_path / "a.png")
    with pytest.raises(error, match=sentence):
        segment_file(tmp_path / "a.png", rgb, **options)
    with pytest.raises(error, match=sentence):
        predict(tmp_path / "a.png", tmp_path / "out", rgb, **options)


def test_what_is_no_image_or_no_model(rgb, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        segment_file(tmp_path / "none.png", rgb)
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    with pytest.raises(InputError, match="holds 2 cases"):
        segment_file(tmp_path, rgb)
    with pytest.raises(InputError, match=r"dataset\.json"):
        segment_file(tmp_path / "a.png", tmp_path)
    model = model_folder(tmp_path / "model")
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(model)


def test_load_model(rgb):
    model = load_model(rgb)
    assert model.folds == ("0", "1")
    assert model.names == {0: "background", 1: "first", 2: "second"}
    assert (model.channels, model.mirror_axes, model.configuration) == (3, (0, 1), "2d")
    assert model.device == torch.device("cpu")
    assert not any(network.training for network in model.networks)
    with pytest.raises(InputError, match="fold_7"):
        load_model(rgb, folds=["7"])


def test_extend_plans_of_a_stock_file():
    stock = stock_plans((320, 320), 3)
    plans = extend_plans(
        stock, input_channels=3, num_classes=2, foreground_labels=1, has_regions=False
    )
    assert plans["plans_name"] == "nnUNetOctreeNCAPlans"
    configuration = plans["configurations"]["2d"]
    assert configuration["patch_size"] == [320, 320]
    assert configuration["architecture"]["arch_kwargs"]["channels"] == 16
    assert configuration["data_identifier"] == "nnUNetPlans_2d"
    assert stock["plans_name"] == "nnUNetPlans", "the given plans stay as they are"


@pytest.mark.parametrize(
    ("shape", "spacing", "sentence"),
    [((4, 6), None, "not an image"), ((1, 4, 6), (1.0,), "must have 2 numbers")],
)
def test_arrays_that_are_no_images(shape, spacing, sentence):
    with pytest.raises(InputError, match=sentence):
        ArraySource(np.zeros(shape), spacing)
