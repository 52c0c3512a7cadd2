"""TransUNet (Chen et al. 2021): a vision transformer between a convolutional encoder and decoder.

R50-ViT-B/16 of the paper, from parts: the encoder ResNet50 and the decoder of U-Net are
segmentation-models-pytorch's, the transformer is MONAI's. Nothing is downloaded; the published
network starts from weights of ImageNet-21k.
"""

from torch import Tensor, nn

from nnunet_octreenca.baselines.libraries import LibraryTrainer, library

STAGES = 4
"""Of the encoder; the transformer sees one token for 16 x 16 pixels."""

TOKEN = {"hidden_size": 768, "mlp_dim": 3072, "num_layers": 12, "num_heads": 12}
"""ViT-B."""

DECODER = (256, 128, 64, 16)


class TransUNetTrainer(LibraryTrainer):
    """TransUNet with the encoder ResNet50 and ViT-B."""

    dimensions = (2,)

    @classmethod
    def make_network(
        cls, patch: tuple[int, ...], input_channels: int, num_classes: int
    ) -> nn.Module:
        """The network, for patches of this size alone, from random weights."""
        return TransUNet(patch, input_channels, num_classes)


class TransUNet(nn.Module):
    """Tokens of the encoder's coarsest features, a transformer, and a decoder with skips.

    Args:
        patch: (y, x), multiples of 16; the tokens' places are learned.
        input_channels: of the image.
        num_classes: heads.
    """

    def __init__(self, patch: tuple[int, ...], input_channels: int, num_classes: int) -> None:
        super().__init__()
        smp = library("segmentation_models_pytorch")
        decoder = library("segmentation_models_pytorch.decoders.unet.decoder").UnetDecoder
        self.encoder = smp.encoders.get_encoder(
            "resnet50", in_channels=input_channels, depth=STAGES, weights=None
        )
        self.encoder.layer4 = nn.Identity()  # of stride 32, which is not computed
        *skips, deepest = self.encoder.out_channels
        self.grid = tuple(n >> STAGES for n in patch)
        self.transformer = library("monai.networks.nets").ViT(
            deepest, self.grid, 1, spatial_dims=2, **TOKEN
        )
        self.decoder = decoder((*skips, TOKEN["hidden_size"]), DECODER, n_blocks=STAGES)
        self.head = nn.Conv2d(DECODER[-1], num_classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, input_channels, *patch) to (N, num_classes, *patch)."""
        *skips, deepest = self.encoder(image)
        tokens, _ = self.transformer(deepest)
        mixed = tokens.transpose(1, 2).reshape(len(image), -1, *self.grid)
        heads: Tensor = self.head(self.decoder([*skips, mixed]))
        return heads
