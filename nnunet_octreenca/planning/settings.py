"""The `octreenca` block of a configuration: all that training and inference can be told.

nnU-Net carries unknown keys of a plans file through training, export and import, so a model
always knows how it was made.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.octree import Crop

BLOCK = "octreenca"
LR_SCHEDULES = ("poly", "exponential")


@dataclass(frozen=True)
class Settings:
    """Training and inference settings; the defaults are the paper's unless said otherwise.

    Attributes:
        crop_shape: cells per axis that the finest levels are trained on; None for all.
        crop_levels: how many of the finest levels are cropped.
        initial_lr: learning rate of Adam at the start.
        betas: Adam's.
        weight_decay: Adam's.
        lr_schedule: "poly" falls to 0 at the end of num_epochs (nnU-Net's); "exponential"
            multiplies by `lr_decay` after every epoch (the paper's).
        poly_exponent: of "poly".
        lr_decay: of "exponential".
        gradient_clip: the gradients' norm is cut to this; None leaves it (the paper).
        ema_decay: of the weights' average, which is validated, saved and predicted with.
        dice_weight: lambda in (2 - lambda) BCE + lambda Dice.
        num_epochs: length of the training.
        num_iterations_per_epoch: training steps of an epoch.
        num_val_iterations_per_epoch: validation steps of an epoch.
        oversample_foreground_percent: part of a batch whose patch must hold foreground.
        max_skipped_steps: training stops after so many non-finite steps in a row.
        seed: of the weights' start and of all fire draws.
    """

    crop_shape: tuple[int, ...] | None = None
    crop_levels: int = 0
    initial_lr: float = 1.6e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    lr_schedule: str = "poly"
    poly_exponent: float = 0.9
    lr_decay: float = 0.9992
    gradient_clip: float | None = 1.0
    ema_decay: float = 0.99
    dice_weight: float = 1.0
    num_epochs: int = 1000
    num_iterations_per_epoch: int = 250
    num_val_iterations_per_epoch: int = 50
    oversample_foreground_percent: float = 0.33
    max_skipped_steps: int = 20
    seed: int = 0

    @property
    def crop(self) -> Crop | None:
        """The training crop, None where whole contexts are trained on."""
        if self.crop_shape is None or self.crop_levels == 0:
            return None
        return Crop(self.crop_shape, self.crop_levels)

    def to_plans(self) -> dict[str, Any]:
        """The block as it stands in a plans file."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_plans(cls, block: Mapping[str, Any]) -> "Settings":
        """Read the block; keys left out take their defaults.

        Raises:
            PlansError: an unknown key or a value out of range.

        >>> Settings.from_plans({"num_epochs": 5}).initial_lr
        0.0016
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(block) - known)
        if unknown:
            raise PlansError(
                f"the plans' {BLOCK!r} block does not know {', '.join(unknown)}; "
                f"it knows {', '.join(sorted(known))}"
            )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in block.items()
        }
        try:
            settings = cls(**values)
            settings._check()
        except TypeError as error:
            raise PlansError(f"the plans' {BLOCK!r} block holds a wrong type: {error}") from error
        return settings

    def _check(self) -> None:
        ranges = {
            "initial_lr": (self.initial_lr > 0, "above 0"),
            "betas": (
                len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
                "two numbers within [0, 1)",
            ),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "lr_schedule": (self.lr_schedule in LR_SCHEDULES, f"one of {LR_SCHEDULES}"),
            "poly_exponent": (self.poly_exponent > 0, "above 0"),
            "lr_decay": (0 < self.lr_decay <= 1, "within (0, 1]"),
            "gradient_clip": (
                self.gradient_clip is None or self.gradient_clip > 0,
                "null or above 0",
            ),
            "ema_decay": (0 <= self.ema_decay < 1, "within [0, 1)"),
            "dice_weight": (0 <= self.dice_weight <= 2, "within [0, 2]"),
            "num_epochs": (_whole(self.num_epochs), "a whole number above 0"),
            "num_iterations_per_epoch": (
                _whole(self.num_iterations_per_epoch),
                "a whole number above 0",
            ),
            "num_val_iterations_per_epoch": (
                _whole(self.num_val_iterations_per_epoch),
                "a whole number above 0",
            ),
            "oversample_foreground_percent": (
                0 <= self.oversample_foreground_percent <= 1,
                "within [0, 1]",
            ),
            "max_skipped_steps": (_whole(self.max_skipped_steps), "a whole number above 0"),
            "seed": (isinstance(self.seed, int), "a whole number"),
            "crop_levels": (
                isinstance(self.crop_levels, int) and self.crop_levels >= 0,
                "a whole number",
            ),
            "crop_shape": (
                self.crop_shape is None or all(_whole(n) for n in self.crop_shape),
                "null or whole numbers above 0",
            ),
        }
        for key, (good, wanted) in ranges.items():
            if not good:
                raise PlansError(
                    f"the plans' {BLOCK}.{key} is {getattr(self, key)!r}, but must be {wanted}"
                )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
