"""The `octreenca` block of a configuration: all settings of training and inference.

nnU-Net carries unknown keys of a plans file through training, export and import, so a model
always knows how it was made.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.files import JsonMapping, JsonObject
from nnunet_octreenca.octree import Crop
from nnunet_octreenca.planning.value_rules import short

BLOCK = "octreenca"
LR_SCHEDULES = ("poly", "exponential")
OPTIMIZERS = ("adam", "soap")


@dataclass(frozen=True)
class Settings:
    """Training and inference settings; the defaults are the paper's unless said otherwise.

    Attributes:
        crop_shape: cells per axis that the finest levels are trained on; None for all.
        crop_levels: how many of the finest levels are cropped.
        steps_per_context: training steps that use a batch of contexts, each with other crops; for
            contexts that take longer to load and augment than to train on.
        shift: contexts are moved along every axis by up to this part of it in training; 0 leaves
            them where they are (the paper).
        optimizer: "adam" (the paper's) or "soap", Adam in a basis that follows the gradients
            (`training.soap`).
        initial_lr: the optimizer's learning rate at the start.
        betas: the optimizer's.
        weight_decay: the optimizer's.
        lr_schedule: "poly" falls to 0 at the end of num_epochs (nnU-Net's); "exponential"
            multiplies by `lr_decay` after every epoch (the paper's).
        warm_up: part of the training in which the learning rate rises from 0.
        poly_exponent: of "poly".
        lr_decay: of "exponential".
        gradient_clip: the gradients' norm is cut to this; None leaves it (the paper).
        ema_decay: of the weights' average, which is validated, saved and predicted with.
        dice_weight: lambda in (2 - lambda) BCE + lambda Dice.
        loss_on_levels: weight of each coarser level's loss relative to the next finer level's; 0
            has a loss on the finest level alone (the paper).
        num_epochs: length of the training.
        num_iterations_per_epoch: training steps of an epoch.
        num_val_iterations_per_epoch: validation steps of an epoch.
        oversample_foreground_percent: part of a batch whose patch must hold foreground.
        max_skipped_steps: training stops after so many non-finite steps in a row.
        seed: of the weights' start, of all fire draws, and of the batches: which patches are drawn
            and how they are augmented. None draws batches afresh in every training; the rest is
            then seeded with 0.
    """

    crop_shape: tuple[int, ...] | None = None
    crop_levels: int = 0
    steps_per_context: int = 1
    shift: float = 0.0
    optimizer: str = "adam"
    initial_lr: float = 1.6e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    lr_schedule: str = "poly"
    warm_up: float = 0.0
    poly_exponent: float = 0.9
    lr_decay: float = 0.9992
    gradient_clip: float | None = 1.0
    ema_decay: float = 0.99
    dice_weight: float = 1.0
    loss_on_levels: float = 0.0
    num_epochs: int = 1000
    num_iterations_per_epoch: int = 250
    num_val_iterations_per_epoch: int = 50
    oversample_foreground_percent: float = 0.33
    max_skipped_steps: int = 20
    seed: int | None = 0

    @property
    def crop(self) -> Crop | None:
        """The training crop, None where whole contexts are trained on."""
        if self.crop_shape is None or self.crop_levels == 0:
            return None
        return Crop(self.crop_shape, self.crop_levels)

    def to_plans(self) -> JsonObject:
        """The block as it stands in a plans file."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_plans(cls, block: JsonMapping) -> "Settings":
        """Read the block; keys left out take their defaults.

        Raises:
            PlansError: an unknown key or a value out of range.

        >>> Settings.from_plans({"num_epochs": 5}).initial_lr
        0.0016
        """
        if not isinstance(block, Mapping):
            raise PlansError(f"the plans' {BLOCK!r} block is {short(block)}, but must be an object")
        known = {field.name for field in fields(cls)}
        unknown = sorted(
            key if str(key).isidentifier() else short(key) for key in set(block) - known
        )
        if unknown:
            raise PlansError(
                f"the plans' {BLOCK!r} block has unknown keys: {', '.join(unknown)}; "
                f"it supports {', '.join(sorted(known))}"
            )
        values: JsonObject = {
            key: tuple(value) if isinstance(value, list) else value for key, value in block.items()
        }
        settings = cls(**values)
        for key, value in values.items():
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, bool) or (isinstance(part, float) and not isfinite(part)):
                    raise PlansError(
                        f"the plans' {BLOCK}.{key} is {short(value)}, but must be finite numbers"
                    )
        for key, (is_good, wanted) in RANGES.items():
            value = getattr(settings, key)
            try:
                good = is_good(value)
            except TypeError:
                good = False
            if not good:
                raise PlansError(
                    f"the plans' {BLOCK}.{key} is {short(value)}, but must be {wanted}"
                )
        return settings


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 31


# What a value must fulfil; a TypeError, such as that of "fast" > 0, is a no.
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "crop_shape": (
        lambda value: value is None or (len(value) in (2, 3) and all(map(_whole, value))),
        "null or two or three whole numbers above 0",
    ),
    "crop_levels": (lambda value: value == 0 or _whole(value), "a whole number, at least 0"),
    "steps_per_context": (_whole, "a whole number above 0, at most 2^31"),
    "shift": (lambda value: 0 <= value < 1, "within [0, 1)"),
    "optimizer": (lambda value: value in OPTIMIZERS, f"one of {OPTIMIZERS}"),
    "initial_lr": (lambda value: value > 0, "above 0"),
    "betas": (
        lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value),
        "two numbers within [0, 1)",
    ),
    "weight_decay": (lambda value: value >= 0, "at least 0"),
    "lr_schedule": (lambda value: value in LR_SCHEDULES, f"one of {LR_SCHEDULES}"),
    "warm_up": (lambda value: 0 <= value < 1, "within [0, 1)"),
    "poly_exponent": (lambda value: value > 0, "above 0"),
    "lr_decay": (lambda value: 0 < value <= 1, "within (0, 1]"),
    "gradient_clip": (lambda value: value is None or value > 0, "null or above 0"),
    "ema_decay": (lambda value: 0 <= value < 1, "within [0, 1)"),
    "dice_weight": (lambda value: 0 <= value <= 2, "within [0, 2]"),
    "loss_on_levels": (lambda value: 0 <= value <= 1, "within [0, 1]"),
    "num_epochs": (_whole, "a whole number above 0, at most 2^31"),
    "num_iterations_per_epoch": (_whole, "a whole number above 0, at most 2^31"),
    "num_val_iterations_per_epoch": (_whole, "a whole number above 0, at most 2^31"),
    "oversample_foreground_percent": (lambda value: 0 <= value <= 1, "within [0, 1]"),
    "max_skipped_steps": (_whole, "a whole number above 0, at most 2^31"),
    "seed": (
        lambda value: value is None or (isinstance(value, int) and abs(value) < 1 << 63),
        "null or a whole number of 64 bits",
    ),
}
