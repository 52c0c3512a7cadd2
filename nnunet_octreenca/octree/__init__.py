"""The octree: level shapes, the image on every level, and the way down to the children."""

from nnunet_octreenca.octree.pyramid import image_pyramid, pool
from nnunet_octreenca.octree.shapes import Factors, Shape, level_shapes, reach, total_factors
from nnunet_octreenca.octree.upsample import upsample
from nnunet_octreenca.octree.windows import Crop, Window, window_shapes, windows

__all__ = [
    "Crop",
    "Factors",
    "Shape",
    "Window",
    "image_pyramid",
    "level_shapes",
    "pool",
    "reach",
    "total_factors",
    "upsample",
    "window_shapes",
    "windows",
]
