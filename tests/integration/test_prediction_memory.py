"""nnU-Net's prediction with the lean parts against the same without them: the same files.

The matrix runs in this process: workers are called as functions, what goes to them is pickled
and back. One slow test runs the command.
"""

import json
import pickle

import numpy as np
import prediction_memory
import pytest
import SimpleITK as sitk
import torch
from helpers.stock_prediction import PicklingPool, workers_here
from nnunetv2.inference import export_prediction
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from PIL import Image

from nnunet_octreenca import OctreeNCA
from nnunet_octreenca.integration.configuration_manager import (
    OctreeNCAConfigurationManager,
    use_own_preprocessor,
)
from nnunet_octreenca.integration.preprocessor import OctreeNCAPreprocessor
from nnunet_octreenca.planning import extend_plans

BINARY = {"background": 0, "vessel": 1}
RANDOM = np.random.default_rng(11)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """nnU-Net's workers as threads of this process."""
    workers_here(monkeypatch)


@pytest.fixture
def model(stock_plans, tmp_path):
    """A folder that nnU-Net's commands take: plans, data set, folds with random weights."""

    def make(shape=(16, 16), labels=BINARY, regions=None, channels=3, folds=1, **changes):
        stock = stock_plans(shape, channels)
        foreground = {v for v in labels.values() if isinstance(v, int)} - {0, labels.get("ignore")}
        classes = len(regions) if regions else len(foreground) + 1
        natural = len(shape) == 2
        (configuration,) = stock["configurations"].values()
        configuration["normalization_schemes"] = ["RGBTo01Normalization"] * channels
        configuration.update(changes)
        stock["image_reader_writer"] = "NaturalImage2DIO" if natural else "SimpleITKIO"
        plans = extend_plans(
            stock,
            input_channels=channels,
            num_classes=classes,
            foreground_labels=len(foreground),
            has_regions=regions is not None,
        )
        name, configuration = next(iter(plans["configurations"].items()))
        folder = tmp_path / "model"
        for fold in range(folds):
            (folder / f"fold_{fold}").mkdir(parents=True)
            torch.manual_seed(fold)
            cascaded = len(foreground) if configuration.get("previous_stage") else 0
            arguments = configuration["architecture"]["arch_kwargs"]
            network = OctreeNCA(channels + cascaded, classes, **arguments)
            for level in network.levels:
                level.update.weight.data.normal_(0, 0.05)
            checkpoint = {
                "trainer_name": "OctreeNCATrainer",
                "init_args": {"configuration": name},
                "inference_allowed_mirroring_axes": tuple(range(len(shape))),
                "network_weights": network.state_dict(),
            }
            torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
        description = {
            "channel_names": {str(c): f"channel {c}" for c in range(channels)},
            "labels": labels,
            "numTraining": 1,
            "file_ending": ".png" if natural else ".nii.gz",
        } | ({"regions_class_order": regions} if regions else {})
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(description))
        return folder

    return make


def predictor_of(model, lean=True, folds=(0,), use_mirroring=False, **options):
    predictor = nnUNetPredictor(
        use_mirroring=use_mirroring, device=torch.device("cpu"), allow_tqdm=False, **options
    )
    predictor.initialize_from_trained_model_folder(str(model), folds)
    assert type(predictor.configuration_manager) is OctreeNCAConfigurationManager
    if not lean:
        predictor.configuration_manager.__class__ = ConfigurationManager
    return predictor


@pytest.fixture
def photographs(tmp_path):
    """Two RGB images, one amid black."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, shape, margin in (("a", (37, 50, 3), 0), ("b", (33, 41, 3), 5)):
        pixels = RANDOM.integers(1, 255, shape).astype(np.uint8)
        framed = np.zeros_like(pixels)
        inside = (slice(margin, shape[0] - margin), slice(margin, shape[1]))
        framed[inside] = pixels[inside]
        Image.fromarray(framed).save(folder / f"{name}_0000.png")
    return folder


@pytest.fixture
def volume(tmp_path):
    """One volume, and labels of the stage before."""
    (tmp_path / "in").mkdir()
    (tmp_path / "before").mkdir()
    image = sitk.GetImageFromArray(RANDOM.integers(1, 255, (9, 20, 17)).astype(np.float32))
    image.SetSpacing((1.0, 1.0, 1.0))
    sitk.WriteImage(image, str(tmp_path / "in" / "a_0000.nii.gz"))
    labels = sitk.GetImageFromArray(RANDOM.integers(0, 3, (9, 20, 17)).astype(np.uint8))
    sitk.WriteImage(labels, str(tmp_path / "before" / "a.nii.gz"))
    return tmp_path / "in"


def predicted(predictor, images, out, sequential=False, **options):
    """Label maps by name, as written. Lists of files: nnU-Net lists a folder in 12 processes."""
    out.mkdir(exist_ok=True)
    ending = predictor.dataset_json["file_ending"]
    files = sorted(images.glob(f"*_0000{ending}"))
    cases = [[str(file)] for file in files]
    names = [str(out / file.name.removesuffix(f"_0000{ending}")) for file in files]
    if sequential:
        predictor.predict_from_files_sequential(cases, names, **options)
    else:
        predictor.predict_from_files(
            cases,
            names,
            num_processes_preprocessing=1,
            num_processes_segmentation_export=1,
            **options,
        )
    return {file.name: read(file) for file in sorted(out.glob(f"*{ending}"))}


def read(file):
    if file.suffix == ".png":
        return np.asarray(Image.open(file))
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def same(found, expected, classes=2):
    """Equal files, and at least so many labels in them."""
    assert list(found) == list(expected)
    for name, labels in expected.items():
        assert found[name].dtype == labels.dtype
        np.testing.assert_array_equal(found[name], labels)
    assert len({int(n) for labels in expected.values() for n in np.unique(labels)}) >= classes


FIVE = {"background": 0, **{str(n): n for n in range(1, 5)}}


@pytest.mark.parametrize(
    ("description", "options", "classes"),
    [
        ({}, {}, 2),
        ({}, {"use_mirroring": True}, 2),
        ({"folds": 2}, {"folds": (0, 1)}, 2),
        ({"labels": FIVE, "folds": 2}, {"folds": (0, 1), "use_mirroring": True}, 3),
        ({"labels": {**BINARY, "ignore": 2}}, {}, 2),
        ({"use_mask_for_norm": [True] * 3}, {}, 2),
    ],
    ids=["plain", "tta", "folds", "5 classes, folds, tta", "ignore", "masked"],
)
def test_labels_travel_and_are_the_same(
    model, photographs, tmp_path, description, options, classes
):
    folder = model(**description)
    found = predicted(predictor_of(folder, **options), photographs, tmp_path / "lean")
    lean = PicklingPool.sent
    PicklingPool.sent = []
    expected = predicted(predictor_of(folder, False, **options), photographs, tmp_path / "stock")
    same(found, expected, classes)
    heads = len(description.get("labels", BINARY)) - ("ignore" in description.get("labels", ()))
    saved = PicklingPool.sent[0] - lean[0]  # float32 logits against a byte
    assert saved == pytest.approx((4 * heads - 1) * found["a.png"].size, rel=0.05)


def test_nothing_of_the_labels_is_left_behind(model, photographs, tmp_path):
    """The same predictor gives logits again to whoever asks for them."""
    predictor = predictor_of(model())
    image = torch.rand(3, 1, 37, 50)
    before = predictor.predict_logits_from_preprocessed_data(image)
    predicted(predictor, photographs, tmp_path / "out")
    after = predictor.predict_logits_from_preprocessed_data(image)
    assert torch.equal(before, after)


def test_returned_instead_of_written(model, photographs):
    """Without an output folder nnU-Net returns label maps."""
    folder = model(labels=FIVE)
    results = []
    for lean in (True, False):
        predictor = predictor_of(folder, lean)
        cases = [[str(file)] for file in sorted(photographs.glob("*.png"))]
        results.append(predictor.predict_from_files(cases, None))
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_probabilities(model, photographs, tmp_path):
    """They need the logits, which then go nnU-Net's way."""
    folder = model()
    for lean in (True, False):
        out = tmp_path / str(lean)
        labels = predicted(predictor_of(folder, lean), photographs, out, save_probabilities=True)
        if lean:
            found, kept = labels, [np.load(f)["probabilities"] for f in sorted(out.glob("*.npz"))]
    same(found, labels, 2)
    for mine, file in zip(kept, sorted(out.glob("*.npz")), strict=True):
        np.testing.assert_array_equal(mine, np.load(file)["probabilities"])
        assert mine.dtype == np.float32


@pytest.mark.parametrize("sequential", [True, False])
def test_regions(model, photographs, tmp_path, sequential):
    folder = model(labels={"background": 0, "whole": [1, 2], "core": [2]}, regions=[1, 2])
    both = [
        predicted(predictor_of(folder, lean), photographs, tmp_path / str(lean), sequential)
        for lean in (True, False)
    ]
    same(*both, 3)


def test_sequential_mode(model, photographs, tmp_path):
    folder = model()
    expected = predicted(predictor_of(folder, False), photographs, tmp_path / "stock")
    same(predicted(predictor_of(folder), photographs, tmp_path / "lean", sequential=True), expected)


def test_continued(model, photographs, tmp_path):
    """What is there is kept, the rest is predicted."""
    folder, out = model(), tmp_path / "out"
    expected = predicted(predictor_of(folder, False), photographs, tmp_path / "stock")
    out.mkdir()
    Image.fromarray(np.full((2, 2), 77, np.uint8)).save(out / "a.png")
    found = predicted(predictor_of(folder), photographs, out, overwrite=False)
    assert found.pop("a.png").max() == 77
    np.testing.assert_array_equal(found["b.png"], expected["b.png"])


@pytest.mark.parametrize("spacing", [1.0, 1.6])
def test_volumes(model, volume, tmp_path, spacing):
    """Downsampled logits are resampled by nnU-Net; a label map is not."""
    folder = model(
        (8, 16, 16), {"background": 0, "a": 1, "b": 2}, channels=1, spacing=[spacing] * 3
    )
    both = [
        predicted(predictor_of(folder, lean), volume, tmp_path / str(lean))
        for lean in (True, False)
    ]
    same(*both)
    sent_lean, sent_stock = PicklingPool.sent
    assert (sent_lean < 0.5 * sent_stock) == (spacing == 1.0)


def test_cascade(model, volume, tmp_path):
    """The labels of the stage before are cropped and stacked as nnU-Net does."""
    labels = {"background": 0, "a": 1, "b": 2}
    folder = model((8, 16, 16), labels, channels=1, previous_stage="3d_lowres")
    both = []
    for lean in (True, False):
        predictor, out = predictor_of(folder, lean), tmp_path / str(lean)
        before = str(volume.parent / "before")
        both.append(predicted(predictor, volume, out, folder_with_segs_from_prev_stage=before))
    same(*both, 3)


def test_validation_during_training(model, volume, tmp_path):
    """The trainer's way: logits and managers go to a worker; so does what a next stage gets."""
    folder = model((8, 16, 16), {"background": 0, "a": 1, "b": 2}, channels=1)
    for lean in (True, False):
        predictor = predictor_of(folder, lean)
        manager = pickle.loads(pickle.dumps(predictor.configuration_manager))
        assert type(manager) is (OctreeNCAConfigurationManager if lean else ConfigurationManager)
        files = ([str(volume / "a_0000.nii.gz")], None)
        both = (predictor.plans_manager, manager, predictor.dataset_json)
        data, _, properties = manager.preprocessor_class(verbose=False).run_case(*files, *both)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data)).cpu()
        export_prediction.export_prediction_from_logits(
            logits, properties, manager, both[0], both[2], str(tmp_path / f"{lean}"), True
        )
        export_prediction.resample_and_save(
            *(logits, [5, 11, 9], str(tmp_path / f"next_{lean}"), both[0], manager),
            *(properties, both[2], 1, nnUNetDatasetNumpy),
        )
    for name in ("{}.nii.gz", "{}.npz", "next_{}.npz"):
        one, other = (tmp_path / name.format(lean) for lean in (True, False))
        if name.endswith(".npz"):
            (one,), (other,) = (list(np.load(file).values()) for file in (one, other))
            np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_array_equal(read(one), read(other))


def test_only_nnunets_own_parts_are_replaced(model):
    predictor = predictor_of(model())
    manager = predictor.configuration_manager
    assert manager.preprocessor_class is OctreeNCAPreprocessor
    manager.configuration["preprocessor_name"] = "OctreeNCAPreprocessor"  # registered or not
    assert manager.preprocessor_class is OctreeNCAPreprocessor
    manager.configuration["preprocessor_name"] = "SomebodyElses"
    assert manager.preprocessor_class is None  # as nnU-Net answers

    class SomebodyElses(ConfigurationManager):
        pass

    foreign = SomebodyElses(manager.configuration)
    use_own_preprocessor(foreign)
    assert type(foreign) is SomebodyElses


def test_benchmarks_model_and_image(tmp_path):
    prediction_memory.make_model(tmp_path / "model", 1)
    prediction_memory.make_image(tmp_path / "in" / "case_0000.png", 70)
    predictor = predictor_of(tmp_path / "model")
    (labels,) = predicted(predictor, tmp_path / "in", tmp_path / "out").values()
    assert labels.shape == (70, 70)


@pytest.mark.slow
def test_command_predicts_what_pillow_refuses(
    model, photographs, tmp_path, new_nnunet, pillow_limit
):
    """Stock's workers would refuse both images."""
    folder, out = model(folds=2), tmp_path / "out"
    expected = predicted(predictor_of(folder, False, (0, 1)), photographs, tmp_path / "stock")
    nnunet = new_nnunet(tmp_path / "nnunet")
    nnunet.run(
        "nnUNetv2_predict_from_modelfolder",
        *("-i", photographs, "-o", out, "-m", folder, "-f", 0, 1, "--disable_tta"),
        *("-device", "cpu", "-npp", 1, "-nps", 1),
        environment={**nnunet.environment, **pillow_limit},
    )
    same({file.name: read(file) for file in sorted(out.glob("*.png"))}, expected, 2)
