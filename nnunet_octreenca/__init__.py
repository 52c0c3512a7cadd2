"""OctreeNCA for nnU-Net v2: whole-image segmentation with a neural cellular automaton.

Method: Lemke et al., "OctreeNCA: Single-Pass 184 MP Segmentation on Consumer Hardware"
(BMVC 2025, arXiv 2508.06993). The core (`octree`, `ops`, `network`) needs torch and numpy
only; what talks to nnU-Net lives in `integration`. The names in `__all__` are the public API.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_octreenca.images.source import ArraySource
    from nnunet_octreenca.inference.ensemble import Ensemble
    from nnunet_octreenca.integration.model import load_model
    from nnunet_octreenca.integration.register import register
    from nnunet_octreenca.network import OctreeNCA
    from nnunet_octreenca.ops import StepWeights, nca_steps
    from nnunet_octreenca.planning import extend_plans
    from nnunet_octreenca.prediction.folder import predict
    from nnunet_octreenca.prediction.segmentation import segment_file

try:
    __version__ = version("nnunet-octreenca")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_MODULES = {
    "ArraySource": "images.source",
    "Ensemble": "inference.ensemble",
    "OctreeNCA": "network",
    "StepWeights": "ops",
    "extend_plans": "planning",
    "load_model": "integration.model",
    "nca_steps": "ops",
    "predict": "prediction.folder",
    "register": "integration.register",
    "segment_file": "prediction.segmentation",
}

__all__ = [
    "ArraySource",
    "Ensemble",
    "OctreeNCA",
    "StepWeights",
    "__version__",
    "extend_plans",
    "load_model",
    "nca_steps",
    "predict",
    "register",
    "segment_file",
]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import nnunet_octreenca` (and --help) does not wait for torch.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'nnunet_octreenca' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
