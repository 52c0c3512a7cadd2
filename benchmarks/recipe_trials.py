"""Ways of training that were tried and are not part of the package, for recipes.py.

What paid is a key of the plans; the rest stays here so that its figures can be repeated. The
trials run on the package's own steps (`ops`), but level by level, and without the engines' whole
octree; they are for comparing accuracy, not speed on a GPU.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from scipy import ndimage
from skimage.morphology import skeletonize
from torch import Tensor, nn
from torch.nn import functional

from nnunet_octreenca.integration.trainer import OctreeNCATrainer
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.network.level import LevelNCA
from nnunet_octreenca.octree import Crop, Window, image_pyramid, upsample, windows
from nnunet_octreenca.ops import nca_steps_channels_last
from nnunet_octreenca.planning.settings import Settings
from nnunet_octreenca.training import SegmentationLoss, crop_origins

SMOOTH = 1e-5  # of the Dice quotient


@dataclass(frozen=True)
class Trial:
    """What is tried; the defaults change nothing.

    Attributes:
        softmax: cross-entropy and Dice of a softmax with the background's logit at 0, instead of
            sigmoids.
        optimizer: "adam" or "adamw".
        schedule: "plans" or "cosine".
        crops: of each sample, whose coarse levels they share.
        random_steps: steps of a level vary by up to so many in training.
        predict_fire_rate: of predictions, whose updates are scaled so that their expected sum
            stays; None for the training's.
        start_std: of the last layer's weights at the start.
        augmentation: "full" (nnU-Net's), "spatial" or "mirror".
        turned: probability with which contexts are turned, and with which they are scaled; None
            for nnU-Net's, 0.2.
        skeleton: weight of a skeleton recall beside the loss of the finest level.
    """

    softmax: bool = False
    optimizer: str = "adam"
    schedule: str = "plans"
    crops: int = 1
    random_steps: int = 0
    predict_fire_rate: float | None = None
    start_std: float = 0.0
    augmentation: str = "full"
    turned: float | None = None
    skeleton: float = 0.0

    @property
    def changes_network(self) -> bool:
        """Whether another network or loss than the package's is needed."""
        keeping = ("optimizer", "schedule", "augmentation", "turned", "skeleton")
        return replace(self, **{name: getattr(Trial, name) for name in keeping}) != Trial()


class TrialNetwork(OctreeNCA):
    """OctreeNCA with a trial's changes, level by level."""

    def __init__(self, *arguments: Any, trial: Trial, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.trial = trial
        if trial.start_std:
            for level in self.levels:
                assert isinstance(level, LevelNCA)
                nn.init.normal_(level.update.weight, std=trial.start_std)

    def _is_inference(self, image: Tensor) -> bool:
        return False

    def forward(
        self,
        image: Tensor,
        seed: int | None = None,
        crop: Crop | None = None,
        origins: Any = None,
        every_level: bool = False,
    ) -> Any:
        """OctreeNCA's, with several crops of a sample."""
        image = self.checked(image)
        seed = self.seed if seed is None else seed
        samples = len(image)
        origins = [(0,) * self.dimension] * samples if origins is None else origins
        repeats = len(origins) // samples
        self.boxes = windows(image.shape[2:], self.factors, crop, origins)
        images = image_pyramid(image, self.factors)
        for level in range(len(self.steps)):
            if crop is not None and level < crop.levels:
                images[level] = images[level].repeat_interleave(repeats, 0)
            else:  # one window for all crops of a sample
                whole = self.boxes[level]
                self.boxes[level] = Window(whole.shape, whole.origins[::repeats])
        heads = self._descend(images, self.boxes, seed, every_level=every_level)
        return heads if every_level else heads[0]

    def _descend(
        self,
        images: Any,
        boxes: Any,
        seed: int,
        *,
        every_level: bool = False,
        non_finite: Any = None,
    ) -> list[Tensor]:
        state, logits = None, []
        rate = self.trial.predict_fire_rate
        fire_rate = self.fire_rate if self.training or rate is None else rate
        for level in reversed(range(len(self.steps))):
            weights = self.level_weights(level)
            update = weights.update_weight * (self.fire_rate / fire_rate)
            state = nca_steps_channels_last(
                self.enter_level(level, images[level], boxes, state).contiguous(),
                weights._replace(update_weight=update),
                self._steps(level, seed),
                fire_rate=fire_rate,
                seed=seed,
                level=level,
                origin=boxes[level].origins,
            )
            if non_finite is not None:
                non_finite.add_state(level, state)
            if every_level or level == 0:
                logits.append(self._heads(state))
        return logits[::-1]

    def _steps(self, level: int, seed: int) -> int:
        spread = self.trial.random_steps
        if not (spread and self.training):
            return self.steps[level]
        draw = np.random.RandomState((seed + level) % (1 << 32)).randint(-spread, spread + 1)
        return max(1, self.steps[level] + int(draw))

    def enter_level(self, level: int, image: Tensor, boxes: Any, parent: Tensor | None) -> Tensor:
        """OctreeNCA's, with windows of several crops."""
        here, n = boxes[level], self.input_channels
        image = torch.cat(
            [
                image[_box(here, number, sample)][None]
                for number, sample in enumerate(_samples(len(here.origins), len(image)))
            ]
        ).movedim(1, -1)
        if parent is None:
            others = image.new_zeros((*image.shape[:-1], self.level_channels[level] - n))
            return torch.cat([image, others], -1)
        above = boxes[level + 1]
        handed = self._handed_down(level, parent[..., n:])
        others = torch.cat(
            [
                upsample(
                    handed[sample : sample + 1],
                    self.factors[level],
                    here.shape,
                    here.origins[number],
                    above.origins[sample],
                    first_axis=1,
                )
                for number, sample in enumerate(_samples(len(here.origins), len(handed)))
            ]
        )
        return torch.cat([image, others], -1)


def _samples(windows_: int, samples: int) -> list[int]:
    """The sample of each window."""
    return [number * samples // windows_ for number in range(windows_)]


def _box(window: Window, number: int, sample: int) -> Any:
    """Index of a sample's window in (N, channels, *spatial)."""
    origin = window.origins[number]
    box = (slice(o, o + n) for o, n in zip(origin, window.shape, strict=True))
    return (sample, slice(None), *box)


class TrialLoss(nn.Module):
    """Of label maps: sigmoids or a softmax, on the finest level or on all.

    Args:
        trial: what is tried.
        settings: the plans'.
        batch_dice: Dice over the whole batch.
    """

    def __init__(self, trial: Trial, settings: Settings, batch_dice: bool) -> None:
        super().__init__()
        self.trial, self.batch_dice = trial, batch_dice
        self.dice_weight, self.level_weight = settings.dice_weight, settings.loss_on_levels
        self.network: list[TrialNetwork] = []  # in a list, so that it is no part of the module

    def forward(self, heads: Any, target: Tensor) -> Tensor:
        """A scalar; `target` (N, 1, *context) is whole, `heads` those of `TrialNetwork`."""
        heads = heads if isinstance(heads, list) else [heads]
        network = self.network[0]
        classes = heads[0].shape[1]
        truth = functional.one_hot(target[:, 0].long().clamp_min(0), classes).movedim(-1, 1).float()
        total, weights = truth.new_zeros(()), 0.0
        pool = functional.avg_pool3d if target.ndim == 5 else functional.avg_pool2d
        for level, logits in enumerate(heads):
            if level:
                truth = pool(truth, network.factors[level - 1], ceil_mode=True)
            window = network.boxes[level]
            samples = _samples(len(window.origins), len(truth))
            cut = [truth[_box(window, number, sample)] for number, sample in enumerate(samples)]
            weight = self.level_weight**level
            total = total + weight * self._of_level(logits.float(), torch.stack(cut))
            weights += weight
        return total / weights

    def _of_level(self, logits: Tensor, truth: Tensor) -> Tensor:
        if self.trial.softmax:
            shares = logits.log_softmax(1)
            entropy = -(shares * truth).sum(1).mean()
            probability = shares.exp()[:, 1:]
        else:
            entropy = functional.binary_cross_entropy_with_logits(logits[:, 1:], truth[:, 1:])
            probability = logits[:, 1:].sigmoid()
        wanted = truth[:, 1:]
        axes = tuple(range(2, logits.ndim))
        overlap, both = (probability * wanted).sum(axes), (probability + wanted).sum(axes)
        if self.batch_dice:
            overlap, both = overlap.sum(0), both.sum(0)
        dice = ((2 * overlap + SMOOTH) / (both + SMOOTH)).mean()
        return (2 - self.dice_weight) * entropy + self.dice_weight * (1 - dice)


class SkeletonRecallLoss(SegmentationLoss):
    """The package's loss and, on the finest level, how much of each skeleton is left out.

    After skeleton recall (Kirchhoff et al., ECCV 2024): the truth's skeleton, two cells wider on
    every side and within the truth, and 1 minus the mean probability on it, class by class. Each
    window's skeleton is taken for itself.

    Args:
        plain: the package's, whose options are taken over.
        weight: of the term.
    """

    def __init__(self, plain: SegmentationLoss, weight: float) -> None:
        super().__init__(
            regions=plain.regions,
            ignore_label=plain.ignore_label,
            dice_weight=plain.dice_weight,
            batch_dice=plain.batch_dice,
            smooth=plain.smooth,
        )
        self.weight = weight

    def _loss(self, heads: Tensor, truth: Any) -> Tensor:
        loss = super()._loss(heads, truth)
        if not self._is_binary(truth.wanted):  # a coarse level: averaged truth
            return loss
        tube = skeleton_tubes(truth.wanted)
        axes = (0, *range(2, tube.ndim))
        found = (heads[:, -tube.shape[1] :].float().sigmoid() * tube).sum(axes)
        there = tube.sum(axes)
        recall = found[there > 0] / there[there > 0]
        return loss + self.weight * (1 - recall).sum() / tube.shape[1]

    @staticmethod
    def _is_binary(wanted: Tensor) -> bool:
        return bool(((wanted == 0) | (wanted == 1)).all())


def skeleton_tubes(wanted: Tensor) -> Tensor:
    """The skeleton of each class, two cells wider on every side, within the class.

    Args:
        wanted: (N, K, *spatial), 0 or 1.

    Returns:
        As `wanted`.
    """
    tubes = np.zeros(wanted.shape, dtype=np.float32)
    for index in np.ndindex(wanted.shape[:2]):
        mask = wanted[index].numpy() > 0
        if mask.any():
            wide = ndimage.binary_dilation(skeletonize(mask), iterations=2)
            tubes[index] = wide & mask
    return torch.from_numpy(tubes)


class TrialTrainer(OctreeNCATrainer):
    """OctreeNCATrainer with a trial's changes; set `trial` before it is made."""

    trial: ClassVar[Trial] = Trial()

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The package's network, or a `TrialNetwork`."""
        made = OctreeNCATrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels
        )
        trial = TrialTrainer.trial
        if not trial.changes_network:
            return made
        seed = configuration_manager.configuration["octreenca"]["seed"] or 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return TrialNetwork(
                num_input_channels,
                num_output_channels,
                trial=trial,
                **configuration_manager.network_arch_init_kwargs,
            )

    def _build_loss(self) -> nn.Module:
        if not self.trial.changes_network:
            plain = super()._build_loss()
            if not self.trial.skeleton:
                return plain
            assert isinstance(plain, SegmentationLoss)
            return SkeletonRecallLoss(plain, self.trial.skeleton)
        batch_dice = self.configuration_manager.batch_dice
        return TrialLoss(self.trial, self.settings, batch_dice)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Adam, or AdamW with the plans' weight decay."""
        optimizer, scheduler = super().configure_optimizers()
        if self.trial.optimizer == "adamw":
            settings = self.settings
            optimizer = torch.optim.AdamW(
                self.network.parameters(),
                self.initial_lr,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
            )
        return optimizer, scheduler

    def _learning_rate(self) -> float:
        warm_up, progress = self.settings.warm_up, self.progress
        if self.trial.schedule == "cosine" and progress >= warm_up:
            left = (progress - warm_up) / (1 - warm_up)
            return float(self.initial_lr * 0.5 * (1 + np.cos(np.pi * left)))
        return super()._learning_rate()

    def get_training_transforms(self, *arguments: Any, **options: Any) -> Any:
        """nnU-Net's, fewer of them, or likelier ones."""
        transforms = super().get_training_transforms(*arguments, **options)
        if self.trial.augmentation != "full":
            kept = ["Mirror", "Convert", "Remove", "Region", "Mask"]
            kept += ["Spatial"] if self.trial.augmentation == "spatial" else []
            transforms.transforms = [
                each
                for each in transforms.transforms
                if any(word in type(getattr(each, "transform", each)).__name__ for word in kept)
            ]
        if self.trial.turned is not None:
            for each in transforms.transforms:
                if isinstance(each, SpatialTransform):
                    each.p_rotation = each.p_scaling = self.trial.turned
        return transforms

    def train_step(self, batch: dict) -> dict:
        """OctreeNCATrainer's, but for trials that need several crops or levels of truth."""
        if not isinstance(self.bare_network, TrialNetwork):
            return super().train_step(batch)
        seed = self._iteration_seed()
        generator = torch.Generator().manual_seed(seed)
        data, target = self._shifted(batch["data"], batch["target"], generator)
        crop, origins = self.settings.crop, None
        if crop is not None:
            each = target.repeat_interleave(self.trial.crops, 0)
            origins = crop_origins(each, crop.shape, self.oversample_foreground_percent, generator)
        assert isinstance(self.loss, TrialLoss)
        self.loss.network = [self.bare_network]
        self._set_learning_rate()
        deep = self.settings.loss_on_levels > 0
        heads = self.network(data, seed=seed, crop=crop, origins=origins, every_level=deep)
        return self.take_step(self.loss(heads, target), batch)
