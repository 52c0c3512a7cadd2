"""OctreeNCA for nnU-Net v2: whole-image segmentation with a neural cellular automaton.

Method: Lemke et al., "OctreeNCA: Single-Pass 184 MP Segmentation on Consumer Hardware"
(BMVC 2025, arXiv 2508.06993). The core (`octree`, `ops`, `network`) needs torch and numpy
only; what talks to nnU-Net lives in `integration`.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("nnunet-octreenca")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_PUBLIC = {
    "OctreeNCA": "nnunet_octreenca.network",
    "StepWeights": "nnunet_octreenca.ops",
    "nca_steps": "nnunet_octreenca.ops",
}

__all__ = ["OctreeNCA", "StepWeights", "__version__", "nca_steps"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import nnunet_octreenca` (and --help) does not wait for torch.
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'nnunet_octreenca' has no attribute '{name}'")
