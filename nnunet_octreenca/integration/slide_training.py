"""OctreeNCASlideTrainer: training straight from slides, without cutting them into patches.

`nnunet_octreenca convert slides --in-place` writes the data set; `nnUNetv2_train D 2d FOLD
-tr OctreeNCASlideTrainer -p nnUNetOctreeNCAPlans` trains on it. Patches are read from the slides
as they are drawn, and each level of the octree sees its own window of the slide's pyramid.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading import nnunet_dataset
from torch import Tensor, nn

from nnunet_octreenca.errors import PlansError, TrainingError
from nnunet_octreenca.files import JsonObject
from nnunet_octreenca.images.pyramid import SlideRegions
from nnunet_octreenca.integration import predictor
from nnunet_octreenca.integration.slide_validation import validate_slides
from nnunet_octreenca.integration.trainer import OctreeNCATrainer
from nnunet_octreenca.octree import Factors
from nnunet_octreenca.preprocessing.slide_windows import (
    SlideCase,
    WindowBatch,
    change_colours,
    draw_origin,
    mirror,
    read_sample,
)

_NORMALIZATION = "RGBTo01Normalization"
# Slides that a process keeps open; each takes a file and its directory of tiles.
_OPEN_SLIDES = 64


class SlideDataset:
    """Training slides by name, as nnU-Net's data set classes have cases."""

    def __init__(
        self,
        folder: str,
        identifiers: list[str] | None = None,
        folder_with_segs_from_previous_stage: str | None = None,
    ) -> None:
        self.source_folder = folder
        self.identifiers = sorted(
            self.get_identifiers(folder) if identifiers is None else identifiers
        )

    def load_case(self, identifier: str) -> SlideCase:
        """What describes a slide.

        Raises:
            InputError: it is missing or damaged.
        """
        return SlideCase.load(Path(self.source_folder) / f"{identifier}.json")

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        """All names."""
        return sorted(path.stem for path in Path(folder).glob("*.json"))

    @staticmethod
    def unpack_dataset(folder: str, **options: Any) -> None:
        """There is nothing to unpack."""


# nnU-Net tells data sets by the files' endings.
nnunet_dataset.file_ending_dataset_mapping["json"] = SlideDataset


class SlideLoader:
    """Draws batches from slides without end; what `batch_workers` runs in its processes.

    Args:
        cases: the slides.
        batch_size: samples a batch.
        patch: cells of a window.
        factors: L - 1 rows of (2, 2).
        oversample: part of a batch, its last samples, that is drawn around foreground.
        augment: mirror, and change brightness and contrast.
    """

    def __init__(
        self,
        cases: Sequence[SlideCase],
        *,
        batch_size: int,
        patch: Sequence[int],
        factors: Factors,
        oversample: float,
        augment: bool,
    ) -> None:
        self.cases = list(cases)
        self.batch_size = batch_size
        self.patch = tuple(patch)
        self.factors = factors
        self.oversample = oversample
        self.augment = augment
        self._files: dict[Path, SlideRegions] = {}

    def set_thread_id(self, number: int) -> None:
        """Called once in each process."""
        self._files = {}

    def __iter__(self) -> "SlideLoader":
        return self

    def __next__(self) -> JsonObject:
        """`data` a WindowBatch, `target` (N, 1, rows, columns) int16, `keys` the slides."""
        # From the generator that is seeded for every batch.
        generator = np.random.default_rng(np.random.randint(1 << 31))
        samples, keys = [], []
        for number in range(self.batch_size):
            case = self.cases[int(generator.integers(len(self.cases)))]
            foreground = number >= round(self.batch_size * (1 - self.oversample))
            sample = read_sample(
                case,
                self._open(case.image),
                self._open(case.label),
                factors=self.factors,
                patch=self.patch,
                origin=draw_origin(case, self.patch, foreground, generator),
            )
            if self.augment:
                axes = [axis for axis in (0, 1) if generator.random() < 0.5]
                sample = mirror(sample, axes, case.shape, self.factors)
                sample = change_colours(sample, generator)
            samples.append(sample)
            keys.append(case.name)
        target = torch.from_numpy(np.stack([sample.target for sample in samples]))[:, None]
        return {"data": WindowBatch(samples), "target": target, "keys": keys}

    def _open(self, path: Path) -> SlideRegions:
        slide = self._files.pop(path, None) or SlideRegions(path)
        self._files[path] = slide  # the last used is the last
        if len(self._files) > _OPEN_SLIDES:
            self._files.pop(next(iter(self._files))).close()
        return slide


class OnWindows(nn.Module):
    """OctreeNCA, called with the windows of a batch instead of with images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: WindowBatch, seed: int | None = None, **unused: Any) -> Tensor:
        """Logits of the finest windows, (N, num_classes, rows, columns)."""
        network: Any = self.network
        return torch.cat(
            [network.forward_windows(images, origins, seed) for images, origins in batch.parts]
        )


class OctreeNCASlideTrainer(OctreeNCATrainer):
    """Trains on slides as they lie on the disk; everything else is OctreeNCATrainer's."""

    def check_supported(self) -> None:
        """Refuse plans that are not for slides, and several processes."""
        super().check_supported()
        if self.is_ddp:
            raise TrainingError("OctreeNCASlideTrainer trains in one process; use -num_gpus 1")
        manager = self.configuration_manager
        factors = manager.network_arch_init_kwargs["factors"]
        schemes = set(manager.normalization_schemes)
        wrong = None
        if any(list(row) != [2, 2] for row in factors):
            wrong = f"the octree's factors must be [2, 2], not {factors}"
        elif self.settings.crop is not None:
            wrong = "crop_shape must be null: every level has its own window already"
        elif self.settings.loss_on_levels:
            wrong = "loss_on_levels must be 0: a slide's truth is read for the finest level alone"
        elif schemes != {_NORMALIZATION}:
            wrong = f"the normalization must be {_NORMALIZATION}, not {', '.join(sorted(schemes))}"
        elif self.label_manager.has_regions:
            wrong = "labels must be plain, not regions"
        if wrong:
            raise PlansError(
                f"these plans are not for slides: {wrong}. Make them with `nnunet_octreenca "
                f"convert slides --in-place`"
            )

    @property
    def bare_network(self) -> Any:
        """OctreeNCA, whatever is around it."""
        network = self.network
        return predictor.unwrapped(network.network if isinstance(network, OnWindows) else network)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Loaders that read patches from the slides, in as many processes as nnU-Net uses."""
        # Tells prediction which axes may be mirrored.
        self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        loaders = [
            SlideLoader(
                [dataset.load_case(name) for name in dataset.identifiers],
                batch_size=self.batch_size,
                patch=self.configuration_manager.patch_size,
                factors=self.configuration_manager.network_arch_init_kwargs["factors"],
                oversample=self.oversample_foreground_percent,
                augment=augment,
            )
            for dataset, augment in zip(self.get_tr_and_val_datasets(), (True, False), strict=True)
        ]
        return self.start_batches(*loaders)

    @contextmanager
    def _on_windows(self) -> Iterator[None]:
        whole = self.network
        self.network = OnWindows(whole)
        try:
            yield
        finally:
            self.network = whole

    def train_step(self, batch: dict) -> dict:
        """OctreeNCATrainer's, on windows."""
        with self._on_windows():
            return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's, on windows."""
        with self._on_windows():
            result: dict = super().validation_step(batch)
            return result

    def validate(self, save_probabilities: bool) -> None:
        """Segment the validation slides, each in one pass, with the average of the weights.

        Writes `validation/NAME.tif` and `validation/summary.json` as nnU-Net does. Slides are
        streamed, so that they may be of any size.
        """
        if save_probabilities:
            warnings.warn("probabilities of slides are not saved (--npz)", stacklevel=1)
        _, names = self.do_split()
        dataset = self.dataset_class(self.preprocessed_dataset_folder, names)
        summary = validate_slides(
            self.bare_network.eval(),
            [dataset.load_case(name) for name in dataset.identifiers],
            Path(self.output_folder) / "validation",
            labels=self.label_manager.foreground_labels,
            ignore_label=self.label_manager.ignore_label,
            mirror_axes=self.inference_allowed_mirroring_axes,
            context=self.configuration_manager.patch_size,
            seed=predictor.inference_seed(self.settings),
            device=self.device,
            log=self.print_to_log_file,
        )
        for label, metrics in summary["mean"].items():
            self.logger.log_summary(f"final_val/class_{label}_dice", metrics["Dice"])
        dice = summary["foreground_mean"]["Dice"]
        self.logger.log_summary("final_val/foreground_dice", dice)
        self.print_to_log_file("Validation complete")
        self.print_to_log_file("Mean Validation Dice: ", dice)
