"""What nnU-Net's readers and preprocessor note of a case."""

from collections.abc import Sequence
from typing import TypedDict


class CaseProperties(TypedDict, total=False):
    """The keys that we read or write; readers add others.

    Shapes, boxes and spacings are (z, y, x) in the plans' axes, all but `spacing`, which is in
    the image's.
    """

    spacing: Sequence[float]
    shape_before_cropping: tuple[int, ...]
    shape_after_cropping_and_before_resampling: tuple[int, ...]
    bbox_used_for_cropping: list[list[int]]
    class_locations: object  # of `sample_foreground_locations`
