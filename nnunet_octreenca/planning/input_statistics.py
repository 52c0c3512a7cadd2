"""Mean and standard deviation of what a network sees, for intensities that nnU-Net leaves raw."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import NamedTuple

from nnunet_octreenca.files import JsonMapping

# What nnU-Net divides intensities by; its other schemes give what is about standardized already.
_DIVISORS = {"RGBTo01Normalization": 255.0, "NoNormalization": 1.0}


class InputStatistics(NamedTuple):
    """Of every channel of the image after nnU-Net's normalization."""

    mean: list[float]
    std: list[float]


def input_statistics(
    intensities: JsonMapping, schemes: Sequence[str], input_channels: int
) -> InputStatistics | None:
    """What standardizes the image, from the intensities of the foreground.

    Args:
        intensities: the plans' `foreground_intensity_properties_per_channel`.
        schemes: the configuration's `normalization_schemes`.
        input_channels: n_in; those beyond the schemes are a previous stage's labels, 0 or 1.

    Returns:
        None where nothing needs to be changed.

    >>> input_statistics({"0": {"mean": 51.0, "std": 25.5}}, ["RGBTo01Normalization"], 1)
    InputStatistics(mean=[0.2], std=[0.1])
    >>> input_statistics({"0": {"mean": 51.0, "std": 25.5}}, ["ZScoreNormalization"], 1)
    """
    found = InputStatistics([0.0] * input_channels, [1.0] * input_channels)
    for channel, scheme in enumerate(schemes):
        own = intensities.get(str(channel))
        if scheme not in _DIVISORS or not isinstance(own, Mapping) or channel >= input_channels:
            continue
        mean, std = _number(own.get("mean")), _number(own.get("std"))
        if mean is not None and std is not None and std > 0:
            found.mean[channel] = mean / _DIVISORS[scheme]
            found.std[channel] = std / _DIVISORS[scheme]
    return None if found == ([0.0] * input_channels, [1.0] * input_channels) else found


def _number(value: object) -> float | None:
    """A finite number; None for anything else."""
    return float(value) if isinstance(value, (int, float)) and isfinite(value) else None
