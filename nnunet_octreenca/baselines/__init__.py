"""Rivals of OctreeNCA as nnU-Net trainers: `nnUNetv2_train D C F -tr MedNCATrainer`, ...

They take stock plans and share nnU-Net's splits, preprocessing, loader, augmentation and
evaluation with every other trainer. Nothing is imported before a trainer is asked for.
"""

from importlib import import_module
from typing import Any

MODULES = {
    "MedNCATrainer": "two_level",
    "M3DNCATrainer": "two_level",
    "TinyUNetTrainer": "tiny_unet",
    "UNetVGG11Trainer": "libraries",
    "UNetResNet18Trainer": "libraries",
    "UNetDenseNet121Trainer": "libraries",
    "UNetMobileNetV2Trainer": "libraries",
    "UNetEfficientNetB0Trainer": "libraries",
    "UNetPlusPlusTrainer": "libraries",
    "SegFormerTrainer": "libraries",
    "TransUNetTrainer": "transunet",
    "MonaiUNetTrainer": "libraries",
    "UNet3DResNet18Trainer": "libraries",
    "UNet3DDenseNet121Trainer": "libraries",
    "UNETRTrainer": "libraries",
    "SwinUNETRTrainer": "libraries",
}
"""Trainer to its module."""


def trainer_class(name: str) -> type[Any]:
    """A trainer of this package.

    Raises:
        KeyError: there is none of this name.
    """
    module = import_module(f"nnunet_octreenca.baselines.{MODULES[name]}")
    found: type[Any] = getattr(module, name)
    return found
