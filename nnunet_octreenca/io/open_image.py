"""The former place of `nnunet_octreenca.images.open_image`."""

from nnunet_octreenca.images.open_image import open_image

__all__ = ["open_image"]
