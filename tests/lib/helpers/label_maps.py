"""Small label maps for the tests of what writes them."""

import numpy as np
from scipy import ndimage


def blobs(*shape, classes=3, seed=0, dtype=np.uint8):
    """Rounded regions of labels 0 to classes - 1, with holes and single pixels among them."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.standard_normal(shape), 2)
    smooth += 0.02 * random.standard_normal(shape)
    edges = np.quantile(smooth, np.linspace(0, 1, classes + 1)[1:-1])
    return np.digitize(smooth, edges).astype(dtype)


def noise(*shape, classes=7, seed=0, dtype=np.uint8):
    """Labels that no compression makes small."""
    return np.random.default_rng(seed).integers(0, classes, shape).astype(dtype)
