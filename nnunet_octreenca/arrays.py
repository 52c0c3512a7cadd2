"""Names for arrays whose element type the data decide."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[Any]
"""An image's values, of the type that its file stores."""

Labels: TypeAlias = NDArray[np.integer[Any]]
"""A label map: uint8 where 256 labels suffice, a wider integer else."""
