"""Training straight from slides: loaders, steps on windows, validation of whole slides."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from helpers.tiny_slides import halved, picture, write_pyramid

from nnunet_octreenca.datasets.classes import Classes
from nnunet_octreenca.datasets.slides import SlideOptions, convert_slides
from nnunet_octreenca.errors import InputError, NotFiniteError, PlansError
from nnunet_octreenca.octree import Crop, windows
from nnunet_octreenca.preprocessing.slide_windows import SlideCase
from nnunet_octreenca.training import WeightAverage

DATASET = "Dataset903_Slides"
CLASSES = Classes({"bright": (3,)}, background=(0,), ignore=(9,))
NAMES = "abcd"


def make_slide(folder: Path, name: str, number: int) -> None:
    """A slide of two pyramid levels whose bright discs are to be found; a corner is ignored."""
    rows, columns = 230 + 10 * number, 300
    generator = np.random.default_rng(number)
    image = picture(rows, columns, seed=number) // 3
    mask = np.zeros((rows, columns), np.uint8)
    y, x = np.mgrid[:rows, :columns]
    for _ in range(6):
        disc = (y - generator.integers(rows)) ** 2 + (x - generator.integers(columns)) ** 2 < 1200
        image[disc] += 150
        mask[disc] = 3
    mask[-20:, -20:] = 9
    levels = [image, halved(image, 2)]
    write_pyramid(folder / f"images/{name}.tif", levels, compression="zlib")
    write_pyramid(folder / f"masks/{name}.tif", [mask], compression="zlib")


def make_dataset(folder: Path, raw: Path, **settings) -> None:
    """Needs nnU-Net's variables in the environment."""
    for number, name in enumerate(NAMES):
        make_slide(folder, name, number)
    settings = {
        "num_epochs": 2,
        "num_iterations_per_epoch": 4,
        "num_val_iterations_per_epoch": 1,
        **settings,
    }
    options = SlideOptions(in_place=True, patch_size=48, settings=settings)
    convert_slides(folder, raw / DATASET, CLASSES, options)


@pytest.fixture
def make_trainer(tmp_path, monkeypatch):
    """A trainer on slides in this process."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def make(change=None, **settings):
        from nnunet_octreenca.integration.slide_training import OctreeNCASlideTrainer

        folder = tmp_path / "preprocessed" / DATASET
        if not folder.exists():
            make_dataset(tmp_path / "source", tmp_path / "raw", **settings)
        plans = json.loads((folder / "nnUNetOctreeNCAPlans.json").read_text())
        if change is not None:
            change(plans["configurations"]["2d"])
        return OctreeNCASlideTrainer(
            {**plans, "continue_training": False},
            "2d",
            0,
            json.loads((folder / "dataset.json").read_text()),
            torch.device("cpu"),
        )

    return make


def test_batches_are_windows_of_the_training_slides(make_trainer, tmp_path):
    np.random.seed(0)
    trainer = make_trainer()
    trainer.initialize()
    train, val = trainer.get_dataloaders()
    assert trainer.inference_allowed_mirroring_axes == (0, 1)
    splits = json.loads((tmp_path / f"preprocessed/{DATASET}/splits_final.json").read_text())
    for loader, part in ((train, "train"), (val, "val")):
        seen, foreground = set(), 0
        for _ in range(8):
            batch = next(loader)
            seen |= set(batch["keys"])
            assert batch["target"].shape == (3, 1, 48, 48)
            assert batch["target"].dtype == torch.int16
            foreground += bool((batch["target"][-1] == 1).any())
            # Slides of different heights are seen whole on level 3: parts of their own.
            assert sum(len(images[0]) for images, _ in batch["data"].parts) == 3
            for images, origins in batch["data"].parts:
                assert [tuple(one.shape[1:]) for one in images[:3]] == [(3, 48, 48)] * 3
                assert len(images) == len(origins) == 4
        assert seen == set(splits[0][part])
        assert foreground == 8  # the last sample of a batch is drawn around foreground


def test_same_seed_same_batches(make_trainer, monkeypatch):
    """In this process and from others, and from the second epoch on after a kill."""

    def drawn(epoch, seed, processes, count):
        monkeypatch.setenv("nnUNet_n_proc_DA", str(processes))
        trainer = make_trainer(lambda plans: plans["octreenca"].update(seed=seed))
        trainer.initialize()
        trainer.current_epoch = epoch
        train, val = trainer.get_dataloaders()
        batches = [next(train) for _ in range(count)]
        train.close(), val.close()
        return [
            [*(image for images, _ in batch["data"].parts for image in images), batch["target"]]
            for batch in batches
        ]

    def equal(first, second):
        return all(
            torch.equal(one, other)
            for pair in zip(first, second, strict=True)
            for one, other in zip(*pair, strict=True)
        )

    expected = drawn(0, 3, 0, 6)
    assert equal(drawn(0, 3, 2, 6), expected)
    assert equal(drawn(1, 3, 2, 2), expected[4:])  # an epoch has four iterations
    assert not torch.equal(drawn(0, 4, 0, 1)[0][-1], expected[0][-1])


def test_validation_batches_are_what_the_slide_holds(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[1])
    factors = trainer.configuration_manager.network_arch_init_kwargs["factors"]
    for sample, name in enumerate(batch["keys"]):
        image = tifffile.imread(tmp_path / f"source/images/{name}.tif")
        mask = tifffile.imread(tmp_path / f"source/masks/{name}.tif")
        ((images, origins),) = batch["data"].parts
        place = origins[0][sample]
        boxes = windows(image.shape[:2], factors, Crop((48, 48), 4), [place])
        assert [box.origins[0] for box in boxes] == [level[sample] for level in origins]
        y, x = place
        window = np.moveaxis(image[y : y + 48, x : x + 48], -1, 0) / np.float32(255)
        assert np.array_equal(images[0][sample].numpy(), window)
        truth = mask[y : y + 48, x : x + 48]
        expected = np.select([truth == 3, truth == 9], [1, 2])
        assert np.array_equal(batch["target"][sample, 0].numpy(), expected)


def test_training_on_windows_learns(make_trainer):
    np.random.seed(0)
    trainer = make_trainer(num_epochs=20)
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[0])
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(15)]
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.05
    # The first loss is that of an undecided network: log 2 beside the Dice of one half.
    kept = batch["target"] != 2
    wanted = ((batch["target"] == 1) & kept).float().flatten(1).sum(1)
    dice = (wanted + 1e-5) / (0.5 * kept.float().flatten(1).sum(1) + wanted + 1e-5)
    trainer = make_trainer()
    trainer.initialize()
    first = float(trainer.train_step(batch)["loss"])
    if trainer.configuration_manager.batch_dice:
        both = kept.float().sum() * 0.5 + wanted.sum()
        dice = (wanted.sum() + 1e-5) / (both + 1e-5)
    assert first == pytest.approx(math.log(2) + 1 - float(dice.mean()), abs=1e-4)


def draw_weights(network: torch.nn.Module) -> None:
    """Weights that find both labels; many others call everything one of them."""
    torch.manual_seed(4)
    torch.nn.init.normal_(network.levels[0].update.weight, std=0.3)


def test_a_validation_step_counts_what_the_windows_predict(make_trainer):
    np.random.seed(0)
    trainer = make_trainer()
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[1])
    draw_weights(trainer.network)
    ((images, origins),) = batch["data"].parts
    target = batch["target"][:, 0].clone()
    with torch.no_grad():
        predicted = trainer.network.forward_windows(images, origins).argmax(1)
        counted = trainer.validation_step(batch)
    kept = target != 2
    assert int(counted["tp_hard"][0]) == int(((predicted == 1) & (target == 1)).sum()) > 0
    assert int(counted["fp_hard"][0]) == int(((predicted == 1) & (target == 0) & kept).sum())
    assert int(counted["fn_hard"][0]) == int(((predicted == 0) & (target == 1)).sum())


def test_whole_slides_are_validated(make_trainer, tmp_path):
    """The summary is nnU-Net's own of the labels written, which are the whole slide's."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics

    from nnunet_octreenca.inference import predict_logits

    class Reader:
        def read_seg(self, file: str) -> tuple:
            return tifffile.imread(file)[None, None], {}

    trainer = make_trainer()
    trainer.initialize()
    trainer.get_dataloaders()
    draw_weights(trainer.network)
    trainer.average = WeightAverage(trainer.network, 0.99)
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder) / "validation"
    summary = json.loads((folder / "summary.json").read_text())
    names = json.loads((tmp_path / f"preprocessed/{DATASET}/splits_final.json").read_text())
    assert [Path(one["prediction_file"]).stem for one in summary["metric_per_case"]] == names[0][
        "val"
    ]
    dice = []
    for one in summary["metric_per_case"]:
        expected = compute_metrics(
            one["reference_file"], one["prediction_file"], Reader(), [1], ignore_label=2
        )
        assert one["metrics"]["1"] == pytest.approx(expected["metrics"][1])
        dice.append(one["metrics"]["1"]["Dice"])
        image = tifffile.imread(tmp_path / f"source/images/{Path(one['prediction_file']).name}")
        logits = predict_logits(
            trainer.network,
            torch.from_numpy(image).movedim(-1, 0)[:, None] / 255,
            mirror_axes=(0, 1),
            context=(48, 48),
        )
        written = tifffile.imread(one["prediction_file"])
        assert np.array_equal(written, logits[:, 0].argmax(0).numpy())
        assert 0 < written.mean() < 1
    assert summary["mean"]["1"]["Dice"] == pytest.approx(np.mean(dice))
    assert summary["foreground_mean"]["Dice"] == pytest.approx(np.mean(dice))


def test_a_lost_network_is_not_validated(make_trainer):
    trainer = make_trainer()
    trainer.initialize()
    trainer.get_dataloaders()
    for weight in trainer.network.parameters():
        weight.data.normal_(0, 20)
    trainer.average = WeightAverage(trainer.network, 0.99)
    with pytest.raises(NotFiniteError, match="no segmentation was written"):
        trainer.perform_actual_validation()
    assert not list((Path(trainer.output_folder) / "validation").glob("*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["octreenca"].update(crop_shape=[8, 8], crop_levels=1), "crop_shape"),
        (lambda c: c.update(normalization_schemes=["ZScoreNormalization"] * 3), "ZScore"),
        (
            lambda c: c["architecture"]["arch_kwargs"].update(factors=[[2, 2], [1, 2], [2, 2]]),
            "factors",
        ),
    ],
)
def test_plans_that_are_not_for_slides(make_trainer, change, message):
    with pytest.raises(PlansError, match=rf"{message}.*convert slides --in-place"):
        make_trainer(change)


def test_a_slide_that_was_moved_is_named(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.initialize()
    for path in (tmp_path / "source/images").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"the slide .*images/[a-d]\.tif does not exist"):
        next(trainer.get_dataloaders()[0])


@pytest.mark.slow
def test_by_nnunets_command(new_nnunet, tmp_path, monkeypatch):
    """Convert, train, resume validation: nothing but the commands a user types."""
    nnunet = new_nnunet(tmp_path / "nnunet")
    for name, folder in nnunet.folders.items():
        monkeypatch.setenv(name, folder)
    make_dataset(tmp_path / "source", nnunet.raw)
    words = [903, "2d", 0, "-tr", "OctreeNCASlideTrainer", "-p", "nnUNetOctreeNCAPlans"]
    nnunet.run("nnUNetv2_train", *words, "-device", "cpu")
    model = nnunet.results / DATASET / "OctreeNCASlideTrainer__nnUNetOctreeNCAPlans__2d"
    checkpoint = torch.load(model / "fold_0/checkpoint_final.pth", weights_only=False)
    assert checkpoint["current_epoch"] == 2
    assert checkpoint["inference_allowed_mirroring_axes"] == (0, 1)
    summary = json.loads((model / "fold_0/validation/summary.json").read_text())
    data = nnunet.preprocessed / DATASET / "nnUNetOctreeNCAPlans_2d"
    for one in summary["metric_per_case"]:
        case = SlideCase.load(data / f"{Path(one['prediction_file']).stem}.json")
        assert tifffile.imread(one["prediction_file"]).shape == case.shape
    assert (model / "plans.json").is_file()
    assert (model / "dataset_fingerprint.json").is_file()
