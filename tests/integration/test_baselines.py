"""The rivals as nnU-Net trainers: from stock plans, on noise, in this process."""

import numpy as np
import pytest
import torch

from nnunet_octreenca import baselines
from nnunet_octreenca.comparison.trained.methods import METHODS
from nnunet_octreenca.errors import EnvironmentMismatchError, PlansError
from nnunet_octreenca.integration import time_budget
from nnunet_octreenca.integration.predictor import is_ours

SHAPES = {2: (48, 40), 3: (12, 20, 20)}


@pytest.fixture
def trainer_of(make_trainer, stock_plans, monkeypatch):
    """Makes a baseline's trainer from stock plans."""

    def make(name, shape, **options):
        monkeypatch.setitem(time_budget.TRAINERS, name, baselines.trainer_class(name))
        plans = stock_plans(shape, options.get("channels", 1))
        return make_trainer(shape=shape, trainer=name, plans=plans, **options)

    return make


@pytest.mark.parametrize(
    ("name", "axes", "parameters"),
    [("MedNCATrainer", 2, 6336), ("M3DNCATrainer", 3, 7040)],
)
def test_two_levels(trainer_of, batch, name, axes, parameters):
    """Two automata four cells apart; the fine one learns on patches, the coarse one on all."""
    trainer = trainer_of(name, SHAPES[axes], channels=1 if axes == 3 else 2)
    trainer.initialize()
    network = trainer.network
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert is_ours(network)
    assert network.steps[1:-1] == (0,)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for _ in range(3):
        loss = trainer.train_step(batch(trainer))["loss"]
    assert np.isfinite(loss)
    for level in (0, len(network.levels) - 1):
        key = f"levels.{level}.update.weight"
        assert not torch.equal(before[key], network.state_dict()[key])
    assert trainer.plans_manager.plans_name == "nnUNetPlans"
    assert trainer.settings.crop.shape == {2: (16, 16), 3: (12, 16, 16)}[axes]


def test_published_numbers_of_parameters():
    """What the docstring says is missing adds up to the published numbers."""
    from nnunet_octreenca.integration.two_level_trainer import TwoLevelNCA

    def count(dimension):
        rows = [[2] * dimension] * 2
        network = TwoLevelNCA(1, 2, dimension=dimension, factors=rows, steps=[1, 0, 1])
        return sum(p.numel() for p in network.parameters())

    kernel = {axes: 16 * (7**axes - 3**axes) for axes in (2, 3)}
    normalisation, image_channel = 2 * 2 * 64, 2 * 64
    assert count(2) + kernel[2] + normalisation + image_channel == 7488
    assert count(3) + kernel[3] + normalisation + image_channel == 12480


def test_a_checkpoint_predicts_what_was_trained(trainer_of, batch, tmp_path):
    trainer = trainer_of("M3DNCATrainer", SHAPES[3])
    trainer.initialize()
    trainer.train_step(batch(trainer))
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    second = trainer_of("M3DNCATrainer", SHAPES[3])
    second.load_checkpoint(str(tmp_path / "c.pth"))
    image = torch.randn(1, 1, 12, 20, 20)
    trainer._carry_average()
    second._carry_average()
    assert torch.equal(trainer.network.infer(image, 1), second.network.infer(image, 1))


@pytest.mark.parametrize("shape", [(48, 40), (45, 35), (12, 20, 20), (1, 33, 40)])
def test_a_tiny_unet(trainer_of, batch, shape):
    trainer = trainer_of("TinyUNetTrainer", shape, channels=2)
    trainer.initialize()
    assert 20_000 <= sum(p.numel() for p in trainer.network.parameters()) <= 50_000
    patch = trainer.configuration_manager.patch_size
    assert all(a <= b < a + 8 for a, b in zip(shape, patch, strict=True))
    losses = [float(trainer.train_step(batch(trainer))["loss"]) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert trainer.fitted(patch, "again") == tuple(patch)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("MedNCATrainer", (12, 20, 20), "is for 2-D images.* -tr M3DNCATrainer"),
        ("M3DNCATrainer", (32, 32), "is for 3-D images.* -tr MedNCATrainer"),
        ("MedNCATrainer", (8, 8), r"\(8, 8\) cells are too small for the two levels"),
    ],
)
def test_images_that_do_not_fit(trainer_of, tmp_path, name, shape, message):
    with pytest.raises(PlansError, match=message):
        trainer_of(name, shape)
    assert not list((tmp_path / "results").iterdir())


LIBRARIES = {
    method.trainer: method.needs
    for method in METHODS.values()
    if method.trainer in baselines.MODULES
}


@pytest.mark.parametrize("name", [name for name, needs in LIBRARIES.items() if needs])
def test_networks_of_libraries(name):
    """Patches are rounded to what the network divides, and every head has every cell."""
    trainer = baselines.trainer_class(name)
    for module in LIBRARIES[name]:
        pytest.importorskip(module)
    shape = (33, 20) if trainer.dimensions == (2,) else (20, 9, 32)
    patch = trainer.fitted(shape, "this")
    assert patch == ((64, 32) if trainer.dimensions == (2,) else (32, 32, 64))
    assert trainer.fitted(patch, "this") == patch
    network = trainer.make_network(patch, 2, 3)
    heads = network(torch.randn(1 if len(patch) == 3 else 2, 2, *patch))
    assert heads.shape[1:] == (3, *patch)
    assert torch.isfinite(heads).all()
    heads.square().mean().backward()
    used = [p for p in network.parameters() if p.grad is not None and bool(p.grad.any())]
    assert len(used) > 0.8 * len(list(network.parameters()))
    with pytest.raises(PlansError, match=f"{name} is for"):
        trainer.fitted((32,) * (5 - len(patch)), "this")


def test_the_transformer_mixes_far_pixels():
    """What TransUNet has beyond a U-Net: a corner reaches the other one, past every kernel."""
    pytest.importorskip("segmentation_models_pytorch")
    pytest.importorskip("monai")
    torch.manual_seed(0)
    network = baselines.trainer_class("TransUNetTrainer").make_network((512, 64), 1, 2).eval()
    image = torch.randn(1, 1, 512, 64, requires_grad=True)
    network(image)[..., -1, -1].sum().backward()
    assert bool(image.grad[..., :16, :16].any())
    without = baselines.trainer_class("UNetResNet18Trainer").make_network((512, 64), 1, 2).eval()
    image.grad = None
    without(image)[..., -1, -1].sum().backward()
    assert not bool(image.grad[..., :16, :16].any())
    assert 95e6 < sum(p.numel() for p in network.parameters()) < 105e6  # ViT-B alone has 85


def test_a_library_that_is_missing(trainer_of, monkeypatch):
    """One sentence names the command, before anything is trained."""
    from nnunet_octreenca.baselines import libraries

    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    trainer = trainer_of("SegFormerTrainer", (64, 64))
    monkeypatch.setattr(libraries, "import_module", missing)
    with pytest.raises(EnvironmentMismatchError, match=r"segmentation_models_pytorch.*\[baselines"):
        trainer.initialize()


def test_every_name_is_registered():
    """The shim names what the package has, and finds it."""
    from helpers.shims import load_shim

    shim = load_shim()
    assert set(shim.BASELINES) == set(baselines.MODULES)
    for name in ("MedNCATrainer", "TinyUNetTrainer"):
        assert getattr(shim, name) is baselines.trainer_class(name)
    assert not hasattr(shim, "OtherTrainer")
