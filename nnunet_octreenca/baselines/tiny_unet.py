"""A U-Net with about as many parameters as OctreeNCA: the honest rival."""

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_octreenca.integration.baseline_trainer import BaselineTrainer

STAGES = 4
FEATURES = {2: (8, 12, 20, 28), 3: (6, 8, 12, 18)}
_SMALLEST = 4  # cells of an axis at the coarsest stage


class TinyUNetTrainer(BaselineTrainer):
    """nnU-Net's plain U-Net with four stages of few channels: 20,000 to 50,000 parameters.

    Everything else, the optimiser among it, is nnU-Net's.
    """

    @classmethod
    def strides(cls, patch: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Of every stage: an axis is halved while 4 cells are left."""
        rows, cells = [(1,) * len(patch)], patch
        for _ in range(STAGES - 1):
            rows.append(tuple(2 if n >= 2 * _SMALLEST else 1 for n in cells))
            cells = tuple(-(-n // s) for n, s in zip(cells, rows[-1], strict=True))
        return rows

    @classmethod
    def multiples(cls, patch: tuple[int, ...]) -> tuple[int, ...]:
        """The product of an axis' strides."""
        product = [1] * len(patch)
        for row in cls.strides(patch):
            product = [p * s for p, s in zip(product, row, strict=True)]
        return tuple(product)

    @classmethod
    def make_network(
        cls, patch: tuple[int, ...], input_channels: int, num_classes: int
    ) -> nn.Module:
        """The U-Net."""
        dimension = len(patch)
        features = FEATURES[dimension]
        network: nn.Module = PlainConvUNet(
            input_channels,
            STAGES,
            features,
            nn.Conv2d if dimension == 2 else nn.Conv3d,
            3,
            cls.strides(patch),
            2,
            num_classes,
            1,
            conv_bias=True,
            norm_op=nn.InstanceNorm2d if dimension == 2 else nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=torch.nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
        return network
