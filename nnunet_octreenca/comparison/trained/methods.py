"""The methods that `compare --methods` knows."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec

from nnunet_octreenca.errors import EnvironmentMismatchError, InputError
from nnunet_octreenca.planning import PLANS_NAME

STOCK_PLANS = "nnUNetPlans"


@dataclass(frozen=True)
class Method:
    """A trainer with the plans it takes.

    Attributes:
        name: in the report.
        trainer: nnU-Net's `-tr`.
        plans: nnU-Net's `-p`.
        make_plans: command that writes the plans, for a message; D is the data set.
        needs: modules of the extra [baselines].
        note: what a reader of the report must know.
        prompted: it is shown points of the truth instead of being trained, and has no trainer.
    """

    name: str
    trainer: str
    plans: str = STOCK_PLANS
    make_plans: str = "nnUNetv2_plan_and_preprocess -d D"
    needs: tuple[str, ...] = ()
    note: str = ""
    prompted: bool = False

    @property
    def is_octreenca(self) -> bool:
        """Whether plans keys can vary it."""
        return self.plans == PLANS_NAME


def _resenc(size: str) -> Method:
    return Method(
        f"nnU-Net ResEnc {size}",
        "nnUNetTrainer",
        f"nnUNetResEncUNet{size}Plans",
        f"nnUNetv2_plan_and_preprocess -d D -pl nnUNetPlannerResEnc{size}",
    )


_ALL = (
    Method("OctreeNCA", "OctreeNCATrainer", PLANS_NAME, "nnunet_octreenca extend_plans -d D"),
    Method("nnU-Net", "nnUNetTrainer"),
    *map(_resenc, ("M", "L", "XL")),
    Method(
        "Med-NCA",
        "MedNCATrainer",
        note="Two levels on OctreeNCA's engines; smaller than published, see MedNCATrainer.",
    ),
    Method(
        "M3D-NCA",
        "M3DNCATrainer",
        note="Two levels on OctreeNCA's engines; smaller than published, see M3DNCATrainer.",
    ),
    Method("TinyUNet", "TinyUNetTrainer", note="U-Net of 20,000 to 50,000 parameters."),
    *(
        Method(name, trainer, needs=("segmentation_models_pytorch",))
        for name, trainer in (
            ("U-Net VGG11", "UNetVGG11Trainer"),
            ("U-Net ResNet18", "UNetResNet18Trainer"),
            ("U-Net DenseNet121", "UNetDenseNet121Trainer"),
            ("U-Net MobileNetV2", "UNetMobileNetV2Trainer"),
            ("U-Net EfficientNet-B0", "UNetEfficientNetB0Trainer"),
            ("U-Net++", "UNetPlusPlusTrainer"),
            ("SegFormer", "SegFormerTrainer"),
        )
    ),
    Method("TransUNet", "TransUNetTrainer", needs=("segmentation_models_pytorch", "monai")),
    *(
        Method(name, trainer, needs=("monai",))
        for name, trainer in (
            ("MONAI U-Net", "MonaiUNetTrainer"),
            ("3-D U-Net ResNet18", "UNet3DResNet18Trainer"),
            ("3-D U-Net DenseNet121", "UNet3DDenseNet121Trainer"),
            ("UNETR", "UNETRTrainer"),
            ("SwinUNETR", "SwinUNETRTrainer"),
        )
    ),
    *(Method(name, "", needs=("transformers",), prompted=True) for name in ("SAM", "SAM2")),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}


def find_methods(names: Sequence[str]) -> list[Method]:
    """Methods by name; case, spaces and hyphens do not matter.

    Raises:
        InputError: there is none of a name, or one is given twice.
        EnvironmentMismatchError: a library is not installed.

    >>> [method.trainer for method in find_methods(["nnunet", "m3dnca"])]
    ['nnUNetTrainer', 'M3DNCATrainer']
    """
    known = {_plain(name): method for name, method in METHODS.items()}
    found: list[Method] = []
    for name in names:
        method = known.get(_plain(name))
        if method is None:
            raise InputError(
                f"--methods: there is no method {name!r}{_meant(name, known)}; choose from "
                f"{', '.join(METHODS)}"
            )
        if method in found:
            raise InputError(f"--methods names {method.name} twice")
        missing = [module for module in method.needs if find_spec(module) is None]
        if missing:
            raise EnvironmentMismatchError(
                f"{method.name} needs {' and '.join(missing)}, which is not installed; run "
                f"`pip install 'nnunet-octreenca[baselines]'`"
            )
        found.append(method)
    return found


def _meant(name: str, known: Mapping[str, Method]) -> str:
    close = get_close_matches(_plain(name), known, 1)
    return f" (did you mean {known[close[0]].name}?)" if close else ""


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower().replace("+", "plus")
