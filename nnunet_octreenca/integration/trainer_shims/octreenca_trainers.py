"""Makes OctreeNCA's trainers known to nnU-Net. Written by `nnunet_octreenca register`.

Nothing is imported before one of our names is asked for, so that this file cannot break
nnU-Net's own trainers, whatever state the plugin is in.
"""

BASELINES = (
    "MedNCATrainer",
    "M3DNCATrainer",
    "TinyUNetTrainer",
    "UNetVGG11Trainer",
    "UNetResNet18Trainer",
    "UNetDenseNet121Trainer",
    "UNetMobileNetV2Trainer",
    "UNetEfficientNetB0Trainer",
    "UNetPlusPlusTrainer",
    "SegFormerTrainer",
    "TransUNetTrainer",
    "MonaiUNetTrainer",
    "UNet3DResNet18Trainer",
    "UNet3DDenseNet121Trainer",
    "UNETRTrainer",
    "SwinUNETRTrainer",
)


def __getattr__(name: str) -> type:
    if name == "OctreeNCATrainer":
        from nnunet_octreenca.integration.trainer import OctreeNCATrainer

        return OctreeNCATrainer
    if name == "OctreeNCASlideTrainer":
        from nnunet_octreenca.integration.slide_training import OctreeNCASlideTrainer

        return OctreeNCASlideTrainer
    if name.startswith("OctreeNCATrainer_"):
        from nnunet_octreenca.integration import trainer_variants

        if name in trainer_variants.VARIANTS:
            return trainer_variants.VARIANTS[name]
    if name.endswith("TimeBudget"):
        from nnunet_octreenca.integration import time_budget

        if name in time_budget.TRAINERS:
            return time_budget.TRAINERS[name]
    if name in BASELINES:
        from nnunet_octreenca import baselines

        return baselines.trainer_class(name)
    raise AttributeError(name)
