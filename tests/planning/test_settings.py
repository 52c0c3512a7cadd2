import json

import pytest

from nnunet_octreenca.cli.extend_plans import parse_settings
from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.octree import Crop
from nnunet_octreenca.planning.settings import Settings


def test_defaults_are_the_papers():
    """DESIGN section 3."""
    settings = Settings()
    assert (settings.initial_lr, settings.betas) == (1.6e-3, (0.9, 0.99))
    assert (settings.optimizer, settings.shift) == ("adam", 0.0)
    assert (settings.lr_decay, settings.ema_decay, settings.dice_weight) == (0.9992, 0.99, 1.0)
    assert (settings.gradient_clip, settings.lr_schedule) == (1.0, "poly")
    assert settings.crop is None


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(crop_shape=(6, 80, 80), crop_levels=2, gradient_clip=None, seed=-5),
        Settings(lr_schedule="exponential", betas=(0.0, 0.5), num_epochs=1),
    ],
)
def test_round_trip_through_a_plans_file(settings):
    block = json.loads(json.dumps(settings.to_plans()))
    assert Settings.from_plans(block) == settings
    assert set(block) == set(Settings.__dataclass_fields__)


def test_the_crop():
    assert Settings(crop_shape=(6, 80, 80), crop_levels=2).crop == Crop((6, 80, 80), 2)
    assert Settings(crop_shape=(6, 80, 80), crop_levels=0).crop is None


def test_unknown_keys_are_named():
    with pytest.raises(
        PlansError, match=r"has unknown keys: epochs, learning_rate; it supports .*num_ep"
    ):
        Settings.from_plans({"learning_rate": 1, "epochs": 3, "seed": 0})


BAD = [
    ("shift", 1),
    ("shift", -0.1),
    ("shift", "far"),
    ("optimizer", "sgd"),
    ("optimizer", None),
    ("optimizer", ["soap"]),
    ("initial_lr", 0),
    ("initial_lr", float("nan")),
    ("initial_lr", "fast"),
    ("initial_lr", None),
    ("betas", [0.9]),
    ("betas", [0.9, 1.0]),
    ("betas", 0.9),
    ("betas", ["a", "b"]),
    ("weight_decay", -1e-3),
    ("lr_schedule", "cosine"),
    ("poly_exponent", 0),
    ("lr_decay", 1.5),
    ("lr_decay", 0),
    ("gradient_clip", 0),
    ("gradient_clip", "no"),
    ("ema_decay", 1),
    ("ema_decay", -0.1),
    ("dice_weight", 2.5),
    ("num_epochs", 0),
    ("num_epochs", 2.5),
    ("num_epochs", True),
    ("num_epochs", "100"),
    ("num_iterations_per_epoch", -1),
    ("num_val_iterations_per_epoch", 0),
    ("oversample_foreground_percent", 33),
    ("max_skipped_steps", 0),
    ("seed", 1.5),
    ("seed", "seven"),
    ("crop_levels", -1),
    ("crop_levels", 1.5),
    ("crop_shape", [0, 80, 80]),
    ("crop_shape", [8.5, 80]),
    ("crop_shape", "80x80"),
    ("crop_shape", [80]),
    ("crop_shape", 80),
]


@pytest.mark.parametrize(("key", "value"), BAD, ids=str)
def test_a_bad_value_is_named_with_its_key(key, value):
    with pytest.raises(PlansError) as raised:
        Settings.from_plans({key: value})
    shown = repr(tuple(value) if isinstance(value, list) else value)
    assert f"octreenca.{key} is {shown}, but must be " in str(raised.value)


def test_settings_of_the_command_line():
    pairs = ["num_epochs=5", "gradient_clip=null", "lr_schedule=exponential", "betas=[0.5, 0.9]"]
    settings = Settings.from_plans(parse_settings(pairs))
    assert settings == Settings(
        num_epochs=5, gradient_clip=None, lr_schedule="exponential", betas=(0.5, 0.9)
    )
    with pytest.raises(PlansError, match="--set num_epochs must be KEY=VALUE"):
        parse_settings(["num_epochs"])
