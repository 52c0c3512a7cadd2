"""nnU-Net's trainer with another convolutional network: what all of them share."""

from collections.abc import Sequence
from copy import deepcopy
from typing import ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.files import JsonMapping, JsonObject
from nnunet_octreenca.integration import safe_loading
from nnunet_octreenca.integration.configuration_manager import require_configuration
from nnunet_octreenca.integration.time_budget import WholeCheckpoints

safe_loading.install()


class BaselineTrainer(WholeCheckpoints, nnUNetTrainer):
    """Trains `network` as nnU-Net trains its U-Net, but for deep supervision.

    Subclasses give `dimensions`, `multiples` and `network`. The patch is the plans', each axis
    rounded up to what the network divides.
    """

    dimensions: ClassVar[tuple[int, ...]] = (2, 3)

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        plans = self.planned(plans, configuration, dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False

    @classmethod
    def planned(
        cls, plans: JsonMapping, configuration: str, dataset_json: JsonMapping
    ) -> JsonObject:
        """Plans whose patch this network can be trained on.

        Raises:
            PlansError: they have no such configuration, or one with other axes.
        """
        own: JsonObject = deepcopy(dict(plans))
        manager = PlansManager({**own})
        require_configuration(manager, configuration)
        patch = manager.get_configuration(configuration).patch_size
        own["configurations"][configuration]["patch_size"] = list(cls.fitted(patch, configuration))
        return own

    @classmethod
    def fitted(cls, patch: Sequence[int], configuration: str) -> tuple[int, ...]:
        """The patch that the network is trained on.

        Args:
            patch: cells an axis, of the plans.
            configuration: its name, for the message.

        Raises:
            PlansError: the network is for images of another number of axes.
        """
        if len(patch) not in cls.dimensions:
            raise PlansError(
                f"{cls.__name__} is for {' and '.join(f'{n}-D' for n in cls.dimensions)} images, "
                f"but configuration {configuration!r} has patches of {tuple(patch)} cells; choose "
                f"another configuration or trainer"
            )
        return tuple(
            -(-n // m) * m for n, m in zip(patch, cls.multiples(tuple(patch)), strict=True)
        )

    @classmethod
    def multiples(cls, patch: tuple[int, ...]) -> tuple[int, ...]:
        """What each axis of a patch must be a multiple of."""
        raise NotImplementedError

    @classmethod
    def make_network(
        cls, patch: tuple[int, ...], input_channels: int, num_classes: int
    ) -> nn.Module:
        """The network: (N, input_channels, *patch) to (N, num_classes, *patch)."""
        raise NotImplementedError

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network of a configuration; also called for prediction."""
        patch = cls.fitted(configuration_manager.patch_size, "in use")
        return cls.make_network(patch, num_input_channels, num_output_channels)

    def _do_i_compile(self) -> bool:
        return False

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """There is none."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's needs a package that no longer works."""
