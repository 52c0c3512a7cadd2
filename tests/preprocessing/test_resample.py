from itertools import product

import numpy as np
import pytest
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
    resample_data_or_seg,
)

from nnunet_octreenca.errors import InputError, PlansError
from nnunet_octreenca.preprocessing.resample import Resampler, ResamplingRule, resampled_shape

SPLINE, TORCH = "resample_data_or_seg_to_shape", "resample_torch_fornnunet"


@pytest.mark.parametrize("force", [None, True, False])
@pytest.mark.parametrize("function", [SPLINE, TORCH])
def test_the_axis_that_is_taken_apart_is_nnunets(function, force):
    rule = ResamplingRule.from_plans(function, {"force_separate_z": force})
    found = set()
    for spacing in product((0.8, 1.0, 2.5, 5.0), repeat=3):
        for target in ((1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (1.0, 1.0, 3.0), (1, 0.25, 1)):
            expected = determine_do_sep_z_and_axis(force, spacing, target)
            axis = rule.separate_axis(spacing, target)
            assert (axis is not None, axis) == expected, (spacing, target)
            found.add(axis)
    assert found == ({None} if force is False else {None, 0, 1, 2})


def test_the_shape_is_nnunets():
    rng = np.random.default_rng(1)
    for _ in range(200):
        shape, spacing = rng.integers(5, 300, 3), rng.uniform(0.5, 5, 3).round(2)
        target = rng.uniform(0.5, 3, 3).round(2)
        expected = compute_new_shape(shape, spacing, target)
        assert resampled_shape(shape.tolist(), spacing, target) == tuple(expected)
    with pytest.raises(InputError, match=r"image of \(3, 1, 9\) cells .* has no cells left"):
        resampled_shape((3, 1, 9), (1.0, 1.0, 1.0), (1.0, 4.0, 1.0))


@pytest.mark.parametrize("separate", [None, 0, 1, 2])
@pytest.mark.parametrize("target", [(9, 30, 25), (23, 15, 40)])
def test_blocks_are_nnunets_resampling(separate, target):
    """Of noise, whose spline leaves the range of its values everywhere."""
    image = np.random.default_rng(2).random((2, 14, 21, 30)).astype(np.float32)
    expected = resample_data_or_seg(
        image, target, axis=separate, order=3, do_separate_z=separate is not None, order_z=1
    )
    kernels = ["linear" if axis == separate else "cubic" for axis in range(3)]
    across = tuple(axis + 1 for axis in range(3) if axis != separate)
    low, high = image.min(across), image.max(across)
    bounds = np.stack([low, high]).reshape(2, 2, -1)
    resampler = Resampler(image.shape[1:], target, kernels, separate, bounds)
    chunks = [
        resampler.chunk(k, image[:, k * 4 : k * 4 + 4].copy()) for k in range(resampler.chunks)
    ]
    blocks = [
        resampler.block(k, chunks[slice(*resampler.needs(k))]) for k in range(resampler.blocks)
    ]
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), expected, rtol=1e-5, atol=1e-6)
    clipped = (np.concatenate(blocks, axis=1) == high.max()).mean()
    assert clipped > 0 or separate is not None


@pytest.mark.parametrize(
    ("function", "arguments", "sentence"),
    [
        ("resample_fancy", {}, "'resample_fancy' is not supported"),
        (SPLINE, {"order": 2}, "has order 2"),
        (SPLINE, {"order_z": 5}, "has order_z 5"),
        (SPLINE, {"is_seg": True}, "is_seg to false"),
        (SPLINE, {"sharpen": 1}, "argument 'sharpen'"),
        (TORCH, {"mode": "bicubic"}, "has mode 'bicubic'"),
        (TORCH, {"aniso_axis_mode": "area"}, "has aniso_axis_mode 'area'"),
    ],
)
def test_what_cannot_be_followed_is_named(function, arguments, sentence):
    with pytest.raises(PlansError, match=sentence):
        ResamplingRule.from_plans(function, arguments)
