"""Networks of segmentation-models-pytorch (2-D) and MONAI (3-D), randomly initialised.

They are in the extra [baselines]; nothing is downloaded. A U-Net's encoder is in its trainer's
name, as in the paper's tables. UNETR and SwinUNETR are the nearest 3-D kin of TransUNet, which is
in `transunet`.
"""

from importlib import import_module
from typing import Any, ClassVar

from torch import nn

from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.integration.baseline_trainer import BaselineTrainer

STRIDE = 32
"""Of the coarsest features of all of them, per axis."""


def library(name: str) -> Any:
    """A library of the extra.

    Raises:
        EnvironmentMismatchError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise EnvironmentMismatchError(
            f"this network needs {error.name}, which is not installed; run "
            f"`pip install 'nnunet-octreenca[baselines]'`"
        ) from error


class LibraryTrainer(BaselineTrainer):
    """Patches are multiples of 32; one axis has 64, so that norms see more than one cell."""

    @classmethod
    def multiples(cls, patch: tuple[int, ...]) -> tuple[int, ...]:
        """32 of each axis; 64 of the last one where all would have 32."""
        small = all(n <= STRIDE for n in patch)
        return (*(STRIDE,) * (len(patch) - 1), 2 * STRIDE if small else STRIDE)


class _SMPTrainer(LibraryTrainer):
    """A network of segmentation-models-pytorch."""

    dimensions = (2,)
    architecture: ClassVar[str] = "Unet"
    encoder: ClassVar[str]

    @classmethod
    def make_network(
        cls, patch: tuple[int, ...], input_channels: int, num_classes: int
    ) -> nn.Module:
        """The network, from random weights."""
        make = getattr(library("segmentation_models_pytorch"), cls.architecture)
        network: nn.Module = make(
            cls.encoder, encoder_weights=None, in_channels=input_channels, classes=num_classes
        )
        return network


class UNetVGG11Trainer(_SMPTrainer):
    """U-Net with the encoder VGG11."""

    encoder = "vgg11"


class UNetResNet18Trainer(_SMPTrainer):
    """U-Net with the encoder ResNet18."""

    encoder = "resnet18"


class UNetDenseNet121Trainer(_SMPTrainer):
    """U-Net with the encoder DenseNet121."""

    encoder = "densenet121"


class UNetMobileNetV2Trainer(_SMPTrainer):
    """U-Net with the encoder MobileNetV2."""

    encoder = "mobilenet_v2"


class UNetEfficientNetB0Trainer(_SMPTrainer):
    """U-Net with the encoder EfficientNet-B0."""

    encoder = "efficientnet-b0"


class UNetPlusPlusTrainer(_SMPTrainer):
    """U-Net++ with the encoder ResNet18."""

    architecture, encoder = "UnetPlusPlus", "resnet18"


class SegFormerTrainer(_SMPTrainer):
    """SegFormer with the encoder MiT-B0."""

    architecture, encoder = "Segformer", "mit_b0"


class _MonaiTrainer(LibraryTrainer):
    """A network of MONAI's."""

    dimensions = (3,)


class MonaiUNetTrainer(_MonaiTrainer):
    """MONAI's residual U-Net with five stages of 16 to 256 channels."""

    @classmethod
    def make_network(
        cls, patch: tuple[int, ...], input_channels: int, num_classes: int
    ) -> nn.Module:
        """The network."""
        network: nn.Module = library("monai.networks.nets").UNet(
            3,
            input_channels,
            num_classes,
            channels=(16, 32, 64, 128, 256),
            strides=(2, 2, 2, 2),
            num_res_units=2,
        )
        return network


class UNet3DResNet18Trainer(_MonaiTrainer):
    """MONAI's FlexibleUNet with the encoder ResNet18."""

    @classmethod
    def make_network(
        cls, patch: tuple[int, ...], input_channels: int, num_classes: int
    ) -> nn.Module:
        """The network, from random weights."""
        network: nn.Module = library("monai.networks.nets").FlexibleUNet(
            input_channels, num_classes, "resnet18", spatial_dims=3, pretrained=False
        )
        return network


class UNet3DDenseNet121Trainer(_MonaiTrainer):
    """A U-Net around the features of MONAI's DenseNet121."""

    @classmethod
    def make_network(
        cls, patch: tuple[int, ...], input_channels: int, num_classes: int
    ) -> nn.Module:
        """The network."""
        return DenseNetUNet(input_channels, num_classes)


class UNETRTrainer(_MonaiTrainer):
    """MONAI's UNETR: a vision transformer with a convolutional decoder."""

    @classmethod
    def make_network(
        cls, patch: tuple[int, ...], input_channels: int, num_classes: int
    ) -> nn.Module:
        """The network, for patches of this size alone."""
        network: nn.Module = library("monai.networks.nets").UNETR(
            input_channels, num_classes, patch
        )
        return network


class SwinUNETRTrainer(_MonaiTrainer):
    """MONAI's SwinUNETR with 24 features."""

    @classmethod
    def make_network(
        cls, patch: tuple[int, ...], input_channels: int, num_classes: int
    ) -> nn.Module:
        """The network."""
        network: nn.Module = library("monai.networks.nets").SwinUNETR(
            in_channels=input_channels, out_channels=num_classes, feature_size=24
        )
        return network


class DenseNetUNet(nn.Module):
    """The features of MONAI's 3-D DenseNet121 as encoder, MONAI's `UpCat` as decoder.

    Args:
        input_channels: of the image.
        num_classes: heads.
    """

    _SKIPS = ("relu0", "denseblock1", "denseblock2", "denseblock3")

    def __init__(self, input_channels: int, num_classes: int) -> None:
        super().__init__()
        nets = library("monai.networks.nets")
        up = library("monai.networks.nets.basic_unet").UpCat
        self.encoder = nets.DenseNet121(3, input_channels, num_classes).features
        norm = ("instance", {"affine": True})
        sizes = ((1024, 1024, 256), (256, 512, 128), (128, 256, 64), (64, 64, 32))
        self.decoder = nn.ModuleList(
            up(3, deep, skip, out, "relu", norm, True, halves=True) for deep, skip, out in sizes
        )
        self.head = nn.ConvTranspose3d(32, num_classes, 2, stride=2)

    def forward(self, image: Any) -> Any:
        """(N, input_channels, *patch) to (N, num_classes, *patch), a multiple of 32 an axis."""
        skips = []
        for name, layer in self.encoder.named_children():
            image = layer(image)
            if name in self._SKIPS:
                skips.append(image)
        for block in self.decoder:
            image = block(image, skips.pop())
        return self.head(image)
