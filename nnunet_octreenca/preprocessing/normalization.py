"""nnU-Net's normalization of a channel, from precomputed statistics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError, PlansError
from nnunet_octreenca.preprocessing.plan import PreprocessingPlan
from nnunet_octreenca.preprocessing.statistics import ChannelStatistics, ImageStatistics

# The smallest deviation that nnU-Net divides by.
_SMALLEST = 1e-8


@dataclass(frozen=True)
class Normalizer:
    """Clip to a range, subtract an offset, divide by a scale.

    Attributes:
        clip: the smallest and largest value kept.
        subtract: the value that becomes 0.
        divide: the value above it that becomes 1.
        masked: only cells of the nonzero mask are changed.
    """

    clip: tuple[float, float] | None = None
    subtract: float | np.float32 | None = None
    divide: float | np.float32 | None = None
    masked: bool = False

    def __call__(
        self, values: NDArray[np.float32], mask: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Normalize in place, with nnU-Net's own sequence of float32 operations.

        Args:
            values: of one channel.
            mask: the nonzero mask of the same cells; needed where `masked`.
        """
        if self.clip is not None:
            np.clip(values, *self.clip, out=values)
        if not self.masked:
            if self.subtract is not None:
                values -= self.subtract
            if self.divide is not None:
                values /= self.divide
            return values
        assert mask is not None
        if self.subtract is not None:
            np.subtract(values, self.subtract, out=values, where=mask)
        if self.divide is not None:
            np.divide(values, self.divide, out=values, where=mask)
        return values


def normalizers(preprocessing: PreprocessingPlan, statistics: ImageStatistics) -> list[Normalizer]:
    """The normalizer of each channel of an image.

    Raises:
        InputError: values that a scheme does not take.
        PlansError: the plans lack the intensities of CTNormalization.
    """
    return [
        _normalizer(preprocessing, channel, found)
        for channel, found in enumerate(statistics.channels)
    ]


def _normalizer(
    preprocessing: PreprocessingPlan, channel: int, found: ChannelStatistics
) -> Normalizer:
    scheme = preprocessing.normalization_schemes[channel]
    if scheme == "ZScoreNormalization":
        assert found.mean is not None
        assert found.std is not None
        return Normalizer(
            subtract=np.float32(found.mean),
            divide=max(np.float32(found.std), _SMALLEST),
            masked=preprocessing.use_mask_for_norm[channel],
        )
    if scheme == "CTNormalization":
        try:
            least, most, mean, std = (
                preprocessing.intensities[channel][key]
                for key in ("percentile_00_5", "percentile_99_5", "mean", "std")
            )
        except KeyError as error:
            raise PlansError(
                f"the plans lack {error.args[0]!r} of channel {channel}, which CTNormalization "
                "needs; plan the data set again"
            ) from error
        return Normalizer(clip=(least, most), subtract=mean, divide=max(std, _SMALLEST))
    if scheme == "RescaleTo01Normalization":
        low, high = _extremes(found)
        return Normalizer(subtract=low, divide=max(high - low, np.float32(_SMALLEST)))
    if scheme == "RGBTo01Normalization":
        if found.lowest is not None:
            low, high = _extremes(found)
            if low < 0 or high > 255:
                raise InputError(
                    f"channel {channel} holds values from {low} to {high}, but the model was "
                    "trained on colours from 0 to 255; convert the image to 8 bits a channel"
                )
        return Normalizer(divide=255.0)
    return Normalizer()


def _extremes(found: ChannelStatistics) -> tuple[np.float32, np.float32]:
    assert found.lowest is not None
    assert found.highest is not None
    return np.float32(found.lowest.min()), np.float32(found.highest.max())


def normalized_bounds(
    statistics: ImageStatistics, channels: Sequence[Normalizer]
) -> NDArray[np.float32]:
    """Smallest and largest value after normalization: (2, channels, slices).

    All schemes keep the order of values, so that the extremes stay the extremes.
    """
    bounds = []
    for found, normalizer in zip(statistics.channels, channels, strict=True):
        assert found.lowest is not None
        assert found.highest is not None
        everywhere = np.ones(len(found.lowest), bool)
        pair = np.stack([found.lowest, found.highest]).astype(np.float32)
        # A slice outside the mask holds no value of it: only the zeros there count.
        for extreme in pair:
            inside = np.isfinite(extreme)
            extreme[inside] = normalizer(extreme[inside], everywhere[inside])
        if normalizer.masked:
            pair[0][found.outside] = np.minimum(pair[0], 0)[found.outside]
            pair[1][found.outside] = np.maximum(pair[1], 0)[found.outside]
        bounds.append(pair)
    return np.stack(bounds, axis=1)
