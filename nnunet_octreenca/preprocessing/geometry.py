"""Geometry of a case: in the file, cropped, resampled and padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.source import ArraySource, ImageSource
from nnunet_octreenca.preprocessing.crop import Box, volume_shape
from nnunet_octreenca.preprocessing.plan import PreprocessingPlan
from nnunet_octreenca.preprocessing.resample import Resampler, resampled_shape

# What nnU-Net's readers say of the distance between the planes of an image that has one.
_NO_SPACING = 999.0
_MOST_CELLS = 1 << 60  # beyond which numbers of bytes overflow
_LARGEST_SLICE = 1 << 32  # that the C++ engine computes with: cells of a plane, or of a row


class _Swapped:
    """A volume with y and x exchanged."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        z, y, x = source.shape
        self.shape: tuple[int, ...] = (z, x, y)
        self.channels, self.dtype = source.channels, source.dtype
        self.spacing: tuple[float, ...] = tuple(source.spacing[axis] for axis in (0, 2, 1))
        self.info = source.info

    def read(self, first: int, end: int) -> Pixels:
        return self._source.read(first, end).transpose(0, 1, 3, 2)

    def close(self) -> None:
        self._source.close()


def oriented(source: ImageSource, forward: Sequence[int]) -> ImageSource:
    """The image in the plans' axes.

    Args:
        source: in the file's axes.
        forward: nnU-Net's `transpose_forward`.

    Raises:
        InputError: the source would have to be read along an axis other than its first,
            which works only for one in memory.
    """
    order = list(forward)
    if len(source.shape) == 2:
        # The plane's only z cannot become a y or x: nnU-Net never plans so for 2-D images.
        order = [axis - 1 for axis in order[1:]] if order[0] == 0 else []
    if order == [*range(len(source.shape))]:
        return source
    if order and isinstance(source, ArraySource):
        return ArraySource(
            source.array.transpose(0, *(axis + 1 for axis in order)),
            [source.spacing[axis] for axis in order],
        )
    if order == [0, 2, 1]:
        return _Swapped(source)
    raise InputError(
        f"the model's axes are the image's {list(forward)}, but an image of {source.shape} cells "
        "read in bands can only be read along its first axis; load it into memory whole"
    )


@dataclass(frozen=True)
class CaseGeometry:
    """The geometry of one case; all axes are the plans' (z, y, x).

    Attributes:
        shape: cells of the image; a 2-D image has one z.
        spacing: mm per axis of the image.
        target: mm per axis that the network sees.
        box: the part of the image that is not cropped away.
        resampled: cells of the box at the target spacing.
        padded: cells that the network sees, the box in their middle; of a 2-D network's planes.
    """

    preprocessing: PreprocessingPlan
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    target: tuple[float, ...]
    box: Box
    resampled: tuple[int, ...]
    padded: tuple[int, ...]

    @classmethod
    def of(cls, source: ImageSource, preprocessing: PreprocessingPlan, box: Box) -> "CaseGeometry":
        """Compute the geometry.

        Args:
            source: in the plans' axes.
            preprocessing: of the model.
            box: the nonzero box.

        Raises:
            InputError: a 2-D image for a 3-D network, or one with no cells left or more than
                can be counted.
        """
        spacing, target = spacings(source, preprocessing)
        shape = volume_shape(source)
        resampled: tuple[int, ...] = tuple(end - first for first, end in box)
        if preprocessing.data.resamples:
            resampled = resampled_shape(resampled, spacing, target)
        else:
            target = spacing
        inner = resampled[3 - preprocessing.dimension :]
        padded = tuple(map(max, zip(inner, preprocessing.context, strict=True)))
        if prod(padded) > _MOST_CELLS or prod(padded[1:]) > _LARGEST_SLICE:
            raise InputError(
                f"an image of {shape} cells of {spacing} mm has {' x '.join(map(str, padded))} "
                f"cells at the model's {target} mm; check the file's spacing"
            )
        return cls(preprocessing, shape, spacing, target, box, resampled, padded)

    @property
    def cropped(self) -> tuple[int, ...]:
        """Shape of the box."""
        return tuple(end - first for first, end in self.box)

    @property
    def resamples(self) -> bool:
        """Whether the network's grid differs from the box's."""
        return self.resampled != self.cropped

    @property
    def parts(self) -> int:
        """Number of network inputs: a volume's planes for a 2-D network, else one."""
        return self.cropped[0] if self.preprocessing.dimension == 2 else 1

    @property
    def inside(self) -> tuple[slice, ...]:
        """Position of the resampled box in the padded input; an odd zero comes last."""
        inner = self.resampled[3 - self.preprocessing.dimension :]
        starts = [(all_ - own) // 2 for all_, own in zip(self.padded, inner, strict=True)]
        return tuple(slice(at, at + own) for at, own in zip(starts, inner, strict=True))

    def data_resampler(self, part: int, bounds: NDArray[np.float32] | None) -> Resampler | None:
        """Resampling from the box to the network's grid; None where they are equal.

        Args:
            part: which of the `parts`.
            bounds: (2, channels, slices) of the normalized image, if its kernel overshoots.
        """
        if not self.resamples:
            return None
        preprocessing = self.preprocessing
        separate = preprocessing.data.separate_axis(self.spacing, self.target)
        kernels = preprocessing.data.kernels(separate)
        lead = 3 - preprocessing.dimension
        if separate is not None and separate < lead:
            # The planes are what is clipped, and each has its own bounds.
            separate = None
            bounds = None if bounds is None else bounds[:, :, part : part + 1]
        within = None if separate is None else separate - lead
        return Resampler(self.cropped[lead:], self.resampled[lead:], kernels[lead:], within, bounds)

    def logits_resampler(self) -> Resampler | None:
        """Resampling from the network's grid back to the box; None where they are equal."""
        if not self.resamples:
            return None
        preprocessing = self.preprocessing
        separate = preprocessing.probabilities.separate_axis(self.target, self.spacing)
        lead = 3 - preprocessing.dimension
        kernels = preprocessing.probabilities.kernels(separate)[lead:]
        return Resampler(self.resampled[lead:], self.cropped[lead:], kernels)


def spacings(
    source: ImageSource, preprocessing: PreprocessingPlan
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """mm per axis (z, y, x) of the image in the plans' axes, and of what the network sees.

    Raises:
        InputError: a 2-D image for a 3-D network.
    """
    spacing = tuple(float(mm) for mm in source.spacing)
    if len(spacing) == 2:
        if preprocessing.dimension == 3:
            raise InputError(
                f"an image of {source.shape} cells is 2-D, but the model is 3-D; use a model of "
                "the configuration 2d"
            )
        spacing = (_NO_SPACING, *spacing)
    return spacing, target_spacing(spacing, preprocessing.spacing)


def target_spacing(spacing: Sequence[float], target: Sequence[float]) -> tuple[float, ...]:
    """Target spacing (z, y, x) in mm; a 2-D configuration keeps the distance between planes.

    Args:
        spacing: mm per axis of the image.
        target: mm per axis of the network, 2 or 3.

    >>> target_spacing((3.0, 0.8, 0.8), (1.0, 1.0))
    (3.0, 1.0, 1.0)
    """
    return (spacing[0], *target) if len(target) < len(spacing) else tuple(target)
