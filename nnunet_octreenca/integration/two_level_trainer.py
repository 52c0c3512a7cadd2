"""Trains an OctreeNCA of two levels four cells apart, from stock plans (Med-NCA, M3D-NCA)."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.files import JsonMapping, JsonObject
from nnunet_octreenca.integration.configuration_manager import (
    require_configuration,
    use_own_preprocessor,
)
from nnunet_octreenca.integration.trainer import OctreeNCATrainer
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import Crop, total_factors
from nnunet_octreenca.planning.configuration import NETWORK_CLASS
from nnunet_octreenca.planning.rules import (
    HIDDEN_UNITS_PER_CHANNEL,
    cell_channels,
    level_factors,
    round_up,
)
from nnunet_octreenca.planning.settings import BLOCK, Settings

PUBLISHED: JsonMapping = {"initial_lr": 1.6e-3, "betas": [0.5, 0.5]}
"""Of both papers' trainings; their exponential decay becomes nnU-Net's, which fits any length."""

BATCH_SIZE = 4
_ROWS = 2  # of factors: 4 cells an axis
_SMALLEST_PATCH = 16  # cells an axis


class TwoLevelNCA(OctreeNCA):
    """An OctreeNCA whose levels between the finest and the coarsest have no weights of their own.

    They take no steps. Same arguments as `OctreeNCA`.

    >>> network = TwoLevelNCA(
    ...     1, 2, dimension=3, factors=[[2, 2, 2]] * 2, steps=[10, 0, 30], channels=16
    ... )
    >>> sum(p.numel() for p in network.parameters())
    7040
    """

    def __init__(self, input_channels: int, num_classes: int, **arguments: Any) -> None:
        super().__init__(input_channels, num_classes, **arguments)
        for level in range(1, len(self.steps) - 1):
            self.levels[level] = self.levels[0]


class TwoLevelTrainer(OctreeNCATrainer):
    """Trains a `TwoLevelNCA` from stock plans, the fine level on patches of a quarter an axis.

    The coarse level sees the whole image, the median of the data set rounded up to whole cells.
    """

    dimension: ClassVar[int]
    fine_steps: ClassVar[int]
    coarse_steps: ClassVar[int]
    other: ClassVar[str]

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        planned = self.planned(plans, configuration, dataset_json)
        super().__init__(planned, configuration, fold, dataset_json, device)

    @classmethod
    def planned(
        cls, plans: JsonMapping, configuration: str, dataset_json: JsonMapping
    ) -> JsonObject:
        """Plans in which a configuration describes this network.

        Raises:
            PlansError: there is no such configuration, or it has another number of axes, or too
                few cells for two levels.
        """
        own: JsonObject = deepcopy(dict(plans))
        manager = PlansManager({**own})
        require_configuration(manager, configuration)
        found = manager.get_configuration(configuration)
        labels = manager.get_label_manager(dict(dataset_json))
        images = len(dataset_json.get("channel_names", dataset_json.get("modality", {})))
        if found.previous_stage_name is not None:
            images += len(labels.foreground_labels)
        median = found.configuration["median_image_size_in_voxels"]
        if len(median) != cls.dimension:
            raise PlansError(
                f"{cls.__name__} is for {cls.dimension}-D images, but configuration "
                f"{configuration!r} has {len(median)} axes; train it with -tr {cls.other}"
            )
        regions = labels.has_regions
        own["configurations"][configuration].update(
            cls._configuration(median, images, labels.num_segmentation_heads, regions)
        )
        return own

    @classmethod
    def _configuration(
        cls, median: Sequence[float], input_channels: int, heads: int, regions: bool
    ) -> JsonObject:
        shape = tuple(max(1, round(n)) for n in median)
        factors = level_factors(shape)[:_ROWS]
        if not factors:
            raise PlansError(
                f"images of {shape} cells are too small for the two levels of {cls.__name__}; "
                f"an axis needs 9 cells or more"
            )
        multiple = total_factors(factors, len(shape))
        context = round_up(shape, multiple)
        channels = cell_channels(input_channels, heads - (not regions))
        patch = tuple(
            min(n, max(_SMALLEST_PATCH, -(-n // (4 * m)) * m))
            for n, m in zip(context, multiple, strict=True)
        )
        crop = None if patch == context else Crop(patch, len(factors))
        block = {**PUBLISHED, "crop_shape": crop and list(crop.shape)}
        settings = Settings.from_plans({**block, "crop_levels": crop.levels if crop else 0})
        return {
            "batch_size": BATCH_SIZE,
            "patch_size": list(context),
            "architecture": {
                "network_class_name": NETWORK_CLASS,
                "arch_kwargs": {
                    "dimension": len(context),
                    "channels": channels,
                    "hidden": HIDDEN_UNITS_PER_CHANNEL * channels,
                    "factors": [list(row) for row in factors],
                    "steps": [cls.fine_steps, *[0] * (len(factors) - 1), cls.coarse_steps],
                    "fire_rate": 0.5,
                    "constant_background": not regions,
                },
                "_kw_requires_import": [],
            },
            BLOCK: settings.to_plans(),
        }

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network of a configuration that `planned` made; also called for prediction."""
        use_own_preprocessor(configuration_manager)
        block = configuration_manager.configuration.get(BLOCK, {})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Settings.from_plans(block).seed or 0)
            return TwoLevelNCA(
                num_input_channels,
                num_output_channels,
                **configuration_manager.network_arch_init_kwargs,
            )
