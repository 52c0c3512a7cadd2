from pathlib import Path

import numpy as np
import pytest
from helpers.bands import check_bands

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.channels import ChannelStack
from nnunet_octreenca.images.source import ArraySource, Geometry, ImageInfo

NAMES = [Path("a_0000.nii"), Path("a_0001.nii")]
ONE = np.random.default_rng(0).integers(0, 99, (1, 12, 5, 6), np.int16)


def placed(array, origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1), spacing=(3, 1, 1)):
    source = ArraySource(array, spacing)
    source.info = ImageInfo(geometry=Geometry(spacing, origin, direction, Path("a.nii"), None))
    return source


def test_channels_one_behind_the_other():
    two = np.concatenate([ONE, ONE + 7]).astype(np.float32)
    stack = ChannelStack([placed(ONE), placed(two)], NAMES)
    assert stack.info.geometry.origin == (0, 0, 0)
    assert stack.spacing == (3, 1, 1)
    check_bands(stack, np.concatenate([ONE.astype(np.float32), two]), heights=(1, 5))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (placed(ONE[:, :9]), r"a_0001\.nii has the shape \(9, 5, 6\) and a_0000\.nii \(12, 5, 6\)"),
        (placed(ONE, spacing=(3, 1, 1.1)), r"a_0001\.nii has the spacing \(3, 1, 1\.1\)"),
        (placed(ONE, origin=(0, 0.5, 0)), r"a_0001\.nii has the origin \(0, 0\.5, 0\)"),
        (placed(ONE, direction=(0, 1, 0, 1, 0, 0, 0, 0, 1)), "the direction"),
    ],
)
def test_what_does_not_lie_on_the_first_is_named(other, said):
    with pytest.raises(InputError, match=said):
        ChannelStack([placed(ONE), other], NAMES)


def test_rounding_in_a_header_is_nothing():
    ChannelStack([placed(ONE), placed(ONE, (0, 1e-4, 0), spacing=(3, 1.00001, 1))], NAMES)


def test_all_are_closed():
    closed = []
    sources = [placed(ONE), placed(ONE)]
    for source in sources:
        source.close = lambda source=source: closed.append(source)
    ChannelStack(sources, NAMES).close()
    assert closed == sources
