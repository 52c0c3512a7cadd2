"""Whole-image inference."""

from nnunet_octreenca.inference.whole_image import predict_logits

__all__ = ["predict_logits"]
