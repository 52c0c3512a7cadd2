"""The lean preprocessor against nnU-Net's: the same bits of everything that is looked at."""

import json
import os
import pickle
import tracemalloc

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from PIL import Image, ImageOps

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.integration.planner import OctreeNCAPlanner
from nnunet_octreenca.integration.preprocessor import OctreeNCAPreprocessor
from nnunet_octreenca.integration.register import CLASS_SHIMS

RANDOM = np.random.default_rng(5)
LABELS = {"background": 0, "first": 1, "second": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


@pytest.fixture
def managers(stock_plans):
    """Plans and configuration of one data set; keyword arguments change them."""

    def make(shape, channels, reader, scheme="ZScoreNormalization", masked=False, **changes):
        plans = stock_plans(shape, channels)
        plans["image_reader_writer"] = reader
        plans["transpose_forward"] = changes.pop("transpose", [0, 1, 2])
        intensities = {"mean": 90.0, "std": 40.0, "percentile_00_5": 5.0, "percentile_99_5": 190.0}
        plans["foreground_intensity_properties_per_channel"] = {
            str(channel): intensities for channel in range(channels)
        }
        (configuration,) = plans["configurations"].values()
        configuration.update(
            normalization_schemes=[scheme] * channels, use_mask_for_norm=[masked] * channels
        )
        configuration.update(changes)
        return PlansManager(plans), ConfigurationManager(configuration)

    return make


def blob(shape, high=200):
    """Random numbers amid zeros, with zeros inside."""
    image = np.zeros(shape)
    inside = tuple(slice(1 + n // 8, n - n // 5) if n > 2 else slice(None) for n in shape[:3])
    image[inside] = RANDOM.integers(0, high, image[inside].shape)
    hole = tuple(slice(n // 3, n // 2) if n > 2 else slice(None) for n in shape[:3])
    image[hole] = 0
    return image


def png(folder, name, pixels):
    path = folder / f"{name}.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return str(path)


def nifti(folder, name, volume, spacing=(1.0, 1.0, 1.0)):
    path = folder / f"{name}.nii.gz"
    image = sitk.GetImageFromArray(volume.astype(np.float32))
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return str(path)


def compare(files, seg, plans, configuration, labels=LABELS, **description):
    description = {"labels": labels, **description}
    arguments = (files, seg, plans, configuration, description)
    expected = DefaultPreprocessor(verbose=False).run_case(*arguments)
    found = OctreeNCAPreprocessor(verbose=False).run_case(*arguments)
    assert found[0].dtype == expected[0].dtype
    np.testing.assert_array_equal(found[0], expected[0])
    if seg is not None or any(configuration.use_mask_for_norm):
        np.testing.assert_array_equal(found[1], expected[1])
    else:
        assert not found[1].any()
    assert (found[1].dtype, found[1].shape) == (expected[1].dtype, expected[1].shape)
    locations = [properties.pop("class_locations", {}) for properties in (found[2], expected[2])]
    assert found[2] == expected[2]
    assert list(locations[0]) == list(locations[1])
    for key in locations[0]:
        np.testing.assert_array_equal(locations[0][key], locations[1][key])
    return found


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "scheme",
    [
        "RGBTo01Normalization",
        "ZScoreNormalization",
        "RescaleTo01Normalization",
        "CTNormalization",
        "NoNormalization",
    ],
)
@pytest.mark.parametrize("labelled", [False, True])
def test_rgb(managers, tmp_path, scheme, masked, labelled):
    files = [png(tmp_path, "a_0000", blob((43, 57, 3)))]
    seg = png(tmp_path, "a", blob((43, 57), 3)) if labelled else None
    plans, configuration = managers((32, 32), 3, "NaturalImage2DIO", scheme, masked)
    data, _, properties = compare(files, seg, plans, configuration)
    assert properties["bbox_used_for_cropping"] != [[0, 1], [0, 43], [0, 57]]
    assert data.shape == (3, *properties["shape_after_cropping_and_before_resampling"])


@pytest.mark.parametrize("pixels", [np.zeros((9, 14, 3)), np.full((9, 14, 3), 7), np.eye(9, 14)])
def test_where_there_is_nothing_to_crop(managers, tmp_path, pixels):
    channels = 3 if pixels.ndim == 3 else 1
    plans, configuration = managers((8, 8), channels, "NaturalImage2DIO", "NoNormalization")
    compare([png(tmp_path, "a_0000", pixels)], None, plans, configuration)


@pytest.mark.parametrize("depth", [1, 2, 3, 12])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_volumes_with_holes(managers, tmp_path, depth, masked, labelled):
    """A hole in the nonzero region is no outside; axes of one or two cells have none."""
    shape = (depth, 21, 18)
    files = [nifti(tmp_path, f"a_000{n}", blob(shape)) for n in range(2)]
    seg = nifti(tmp_path, "a", blob(shape, 3)) if labelled else None
    plans, configuration = managers((8, 16, 16), 2, "SimpleITKIO", masked=masked)
    compare(files, seg, plans, configuration)


@pytest.mark.parametrize("labelled", [False, True])
def test_resampled_and_transposed(managers, tmp_path, labelled):
    shape, spacing = (12, 21, 18), (0.7, 1.5, 1.0)  # x, y, z as SimpleITK counts
    files = [nifti(tmp_path, "a_0000", blob(shape), spacing)]
    seg = nifti(tmp_path, "a", blob(shape, 3), spacing) if labelled else None
    plans, configuration = managers((8, 16, 16), 1, "SimpleITKIO", transpose=[2, 0, 1])
    data, _, _ = compare(files, seg, plans, configuration)
    assert data.shape[1:] != tuple(shape[axis] for axis in (2, 0, 1))


def test_2d_keeps_the_distance_of_planes(managers, tmp_path):
    files = [nifti(tmp_path, "a_0000", blob((5, 21, 18)), (0.8, 0.8, 3.0))]
    plans, configuration = managers((16, 16), 1, "SimpleITKIO")
    data, _, _ = compare(files, None, plans, configuration)
    assert data.shape[1] < 6


@pytest.mark.parametrize(
    "description",
    [
        {"labels": REGIONS, "regions_class_order": [1, 2]},
        {"labels": {**LABELS, "ignore": 3}},
        {"labels": {"background": 0, **{str(n): n for n in range(1, 140)}}},
    ],
    ids=["regions", "ignore", "139 labels"],
)
def test_kinds_of_labels(managers, tmp_path, description):
    highest = 139 if len(description["labels"]) > 10 else 3
    files = [nifti(tmp_path, "a_0000", blob((6, 15, 14)))]
    seg = nifti(tmp_path, "a", blob((6, 15, 14), highest + 1))
    plans, configuration = managers((8, 16, 16), 1, "SimpleITKIO")
    _, found, _ = compare(files, seg, plans, configuration, **description)
    assert found.dtype == (np.int16 if highest > 127 else np.int8)


def test_image_and_segmentation_that_do_not_fit(managers, tmp_path):
    """nnU-Net's own sentence."""
    files = [png(tmp_path, "a_0000", blob((20, 20, 3)))]
    seg = png(tmp_path, "a", blob((20, 21), 3))
    plans, configuration = managers((16, 16), 3, "NaturalImage2DIO", "RGBTo01Normalization")
    with pytest.raises(AssertionError, match="Shape mismatch"):
        compare(files, seg, plans, configuration)
    with pytest.raises(AssertionError, match="Shape mismatch"):
        OctreeNCAPreprocessor().run_case(files, seg, plans, configuration, {"labels": LABELS})


def test_larger_than_pillow_allows(managers, tmp_path, monkeypatch):
    """Image and segmentation, whichever way they are read."""
    files = [png(tmp_path, "a_0000", blob((40, 40, 3)))]
    seg = png(tmp_path, "a", blob((40, 40), 3))
    for scheme in ("RGBTo01Normalization", "ZScoreNormalization"):
        plans, configuration = managers((16, 16), 3, "NaturalImage2DIO", scheme)
        expected = compare(files, seg, plans, configuration)
        arguments = (files, seg, plans, configuration, {"labels": LABELS})
        with monkeypatch.context() as limited:
            limited.setattr(Image, "MAX_IMAGE_PIXELS", 100)
            with pytest.raises(Image.DecompressionBombError):
                DefaultPreprocessor(verbose=False).run_case(*arguments)
            found = OctreeNCAPreprocessor(verbose=False).run_case(*arguments)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_truncated_image(managers, tmp_path):
    path = png(tmp_path, "a_0000", RANDOM.integers(0, 255, (64, 64, 3)))
    os.truncate(path, 4000)
    plans, configuration = managers((16, 16), 3, "NaturalImage2DIO", "RGBTo01Normalization")
    with pytest.raises(InputError, match=r"a_0000\.png cannot be decoded .* truncated"):
        OctreeNCAPreprocessor().run_case([path], None, plans, configuration, {"labels": LABELS})


@pytest.mark.parametrize("scheme", ["RGBTo01Normalization", "ZScoreNormalization"])
@pytest.mark.parametrize("code", [2, 3, 6, 8])
@pytest.mark.parametrize("tagged", [True, False])
def test_pictures_are_seen_as_viewers_show_them(managers, tmp_path, scheme, code, tagged):
    """The mask lies on the shown picture, or is stored and tagged as the picture is."""
    tags = Image.Exif()
    tags[0x0112] = code
    results = []
    stored = [RANDOM.integers(1, 255, (20, 27, 3)), blob((20, 27), 3)]
    plans, configuration = managers((16, 16), 3, "NaturalImage2DIO", scheme)
    for turned in (False, True):
        paths = []
        for name, pixels in zip(("a_0000", "a"), stored, strict=True):
            image = Image.fromarray(pixels.astype(np.uint8))
            image.getexif()[0x0112] = code
            path = tmp_path / f"{name}.png"
            if turned and (tagged or name != "a"):
                Image.fromarray(pixels.astype(np.uint8)).save(path, exif=tags)
            else:
                ImageOps.exif_transpose(image).save(path)
            paths.append(str(path))
        results.append(
            OctreeNCAPreprocessor(verbose=False).run_case(
                paths[:1], paths[1], plans, configuration, {"labels": LABELS}
            )
        )
    np.testing.assert_allclose(results[1][0], results[0][0], atol=1e-5)
    np.testing.assert_array_equal(results[1][1], results[0][1])


def test_description_in_a_file(managers, tmp_path):
    """nnU-Net allows the path of dataset.json."""
    files, seg = [png(tmp_path, "a_0000", blob((20, 20, 3)))], png(tmp_path, "a", blob((20, 20), 3))
    plans, configuration = managers((16, 16), 3, "NaturalImage2DIO", "RGBTo01Normalization")
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": LABELS}))
    _, _, properties = OctreeNCAPreprocessor(verbose=False).run_case(
        files, seg, plans, configuration, str(path)
    )
    assert list(properties["class_locations"]) == [1, 2]


def test_memory_per_pixel(managers, tmp_path):
    """nnU-Net makes a copy and a mask with its holes filled; ours is as large as it must be.

    Both count 12 bytes a pixel of an array that nnU-Net's resampling asks for and never touches.
    """
    size = 700
    files = [png(tmp_path, "a_0000", RANDOM.integers(1, 255, (size, size, 3)))]
    plans, configuration = managers((16, 16), 3, "NaturalImage2DIO", "RGBTo01Normalization")
    peaks = []
    for preprocessor in (OctreeNCAPreprocessor, DefaultPreprocessor):
        arguments = (files, None, plans, configuration, {"labels": LABELS})
        preprocessor(verbose=False).run_case(*arguments)  # what is imported late
        tracemalloc.start()
        preprocessor(verbose=False).run_case(*arguments)
        peaks.append(tracemalloc.get_traced_memory()[1] / size**2)
        tracemalloc.stop()
    assert peaks[0] < 12 + 12 + 2
    assert peaks[1] > 12 + 24


def test_what_is_saved_for_training(managers, tmp_path):
    """`nnUNetv2_preprocess` writes the same files."""
    files, seg = [png(tmp_path, "a_0000", blob((40, 50, 3)))], png(tmp_path, "a", blob((40, 50), 3))
    plans, configuration = managers((16, 16), 3, "NaturalImage2DIO", "RGBTo01Normalization")
    saved = []
    for preprocessor in (OctreeNCAPreprocessor, DefaultPreprocessor):
        target = tmp_path / preprocessor.__name__
        preprocessor(verbose=False).run_case_save(
            str(target), files, seg, plans, configuration, {"labels": LABELS}
        )
        arrays = [blosc2.open(f"{target}{part}.b2nd")[:] for part in ("", "_seg")]
        saved.append((*arrays, pickle.loads(target.with_suffix(".pkl").read_bytes())))
    for one, other in zip(saved[0][:2], saved[1][:2], strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    locations = [entry[2].pop("class_locations") for entry in saved]
    for label in (1, 2):
        np.testing.assert_array_equal(locations[0][label], locations[1][label])
    assert saved[0][2] == saved[1][2]


def test_found_by_name():
    """As nnU-Net looks for preprocessors, in the folder of our shim."""
    folder = str(CLASS_SHIMS)
    assert recursive_find_python_class(folder, "OctreeNCAPreprocessor", None) is (
        OctreeNCAPreprocessor
    )
    assert recursive_find_python_class(folder, "DefaultPreprocessor", None) is None


def test_planner_knows_that_the_data_are_the_same(monkeypatch):
    monkeypatch.setattr(ExperimentPlanner, "__init__", lambda *_, **__: None)
    planner = OctreeNCAPlanner(5, preprocessor_name="OctreeNCAPreprocessor")
    assert planner.generate_data_identifier("2d") == "nnUNetPlans_2d"
    planner = OctreeNCAPlanner(
        5, preprocessor_name="OctreeNCAPreprocessor", suppress_transpose=True
    )
    planner.plans_identifier = "Own"
    assert planner.generate_data_identifier("2d") == "Own_2d"


def test_verbose(managers, tmp_path, capsys):
    files = [png(tmp_path, "a_0000", blob((20, 20, 3)))]
    plans, configuration = managers((16, 16), 3, "NaturalImage2DIO", "RGBTo01Normalization")
    OctreeNCAPreprocessor().run_case(files, None, plans, configuration, {"labels": LABELS})
    assert "old shape: (1, 13, 13), new_shape: [ 1 13 13]" in capsys.readouterr().out


@pytest.mark.parametrize("scheme", ["CTNormalization", "ZScoreNormalization"])
@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd"])
@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
def test_voxels_that_are_no_numbers_are_refused(managers, tmp_path, scheme, ending, bad):
    """SimpleITK reads them as 0 from NIfTI; CT's clipping would make a number of infinity."""
    plans, configuration = managers((8, 8, 8), 2, "SimpleITKIO", scheme)
    files = [tmp_path / f"a_000{channel}.{ending}" for channel in range(2)]
    volume = blob((9, 8, 7)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(files[0]))
    volume[3, 4, 5] = bad
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(files[1]))
    with pytest.raises(InputError, match=r"a_0001.*: 1 voxel is NaN or infinite.* x 5, y 4, z 3"):
        OctreeNCAPreprocessor(verbose=False).run_case(
            [*map(str, files)], None, plans, configuration, {"labels": LABELS}
        )
