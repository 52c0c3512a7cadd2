import re

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_octreenca.errors import InputError, NotFiniteError, OutOfMemoryError
from nnunet_octreenca.images.source import ArraySource
from nnunet_octreenca.inference import predict_logits
from nnunet_octreenca.inference.ensemble import Ensemble
from nnunet_octreenca.inference.passes import Pass
from nnunet_octreenca.inference.whole_image import LOGIT_BOUND, mirrorings
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.ops.native import cpu_engine_wanted
from nnunet_octreenca.planning import inference_bytes


def make(dimension=3, n_in=1, classes=3):
    torch.manual_seed(0)
    network = OctreeNCA(
        n_in, classes, dimension=dimension, factors=[[2] * dimension] * 2, steps=[2, 2, 3]
    )
    for level in network.levels:
        nn.init.normal_(level.update.weight, std=0.05)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("spatial", [(5, 9, 8), (1, 9, 8), (7, 1, 3), (4, 6, 1), (1, 1, 1)])
def test_3d_is_the_networks_pass(spatial):
    network, image = make(n_in=2), torch.randn(2, *spatial)
    logits = predict_logits(network, image, seed=3)
    assert logits.dtype == torch.float32
    assert logits.device.type == "cpu"
    assert torch.equal(logits, network(image[None], seed=3)[0])
    assert float(logits[1:].abs().max()) > 1e-3


@pytest.mark.parametrize("mirror_axes", [None, (0, 2)])
def test_a_small_image_is_segmented_amid_zeros(mirror_axes):
    """As in training, where nnU-Net pads it to the patch; a large one is left as it is."""
    network, image = make(), torch.randn(1, 5, 20, 7)
    logits = predict_logits(network, image, mirror_axes=mirror_axes, context=(8, 16, 8), seed=3)
    padded = torch.zeros(1, 8, 20, 8)
    padded[:, 1:6, :, :7] = image  # the odd zero comes last
    expected = predict_logits(network, padded, mirror_axes=mirror_axes, seed=3)
    assert torch.equal(logits, expected[:, 1:6, :, :7])
    bare = predict_logits(network, image, mirror_axes=mirror_axes, seed=3)
    assert not torch.equal(logits, bare)
    same = predict_logits(network, image, mirror_axes=mirror_axes, context=(5, 20, 7), seed=3)
    assert torch.equal(same, bare)


@pytest.mark.parametrize("mirror_axes", [(0,), (1, 2), (0, 1, 2)])
def test_mirrored_passes_are_averaged(mirror_axes):
    network, image = make(), torch.randn(1, 5, 9, 8)
    logits = predict_logits(network, image, mirror_axes=mirror_axes, seed=3)
    passes = []
    for bits in range(2 ** len(mirror_axes)):
        axes = [axis + 2 for i, axis in enumerate(mirror_axes) if bits >> i & 1]
        one = network(image[None].flip(axes), seed=3).flip(axes)[0]
        passes.append(one.clamp(-LOGIT_BOUND, LOGIT_BOUND))
    average = torch.stack(passes).double().mean(0)
    torch.testing.assert_close(logits.double(), average, rtol=1e-3, atol=1e-6)
    assert float((logits - passes[0]).abs().max()) > 0.01, "mirroring changes something"


def test_no_copy_outvotes_the_others_by_its_certainty():
    network, image = make(), torch.randn(1, 5, 9, 8)
    network.levels[0].update.weight.data *= 1e3
    alone = predict_logits(network, image, seed=3)
    assert float(alone.abs().max()) > 10 * LOGIT_BOUND  # a single pass is as it is
    other = predict_logits(network, image.flip(1), seed=3).flip(1)
    expected = sum(one.clamp(-LOGIT_BOUND, LOGIT_BOUND) for one in (alone, other)) / 2
    several = predict_logits(network, image, mirror_axes=(0,), seed=3)
    assert torch.equal(several, expected)
    ensemble = Ensemble([(network, 3)], mirror_axes=(0,))
    bands = [values for _, values in ensemble.logits(ArraySource(image.numpy()))]
    assert np.array_equal(np.concatenate(bands, 1), several.numpy())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_copy_that_is_not_finite_is_no_bounded_vote(value, monkeypatch):
    """Infinity within bounds would be a number, and its label one that nobody doubts."""
    network, image = make(), torch.randn(1, 5, 9, 8)

    def infer(image, seed):
        return torch.full((1, 3, *image.shape[2:]), value)

    monkeypatch.setattr(network, "infer", infer)
    with pytest.raises(NotFiniteError):
        predict_logits(network, image, mirror_axes=(0,), seed=3)
    monkeypatch.setattr(Pass, "take", lambda *_: np.full((3, 5, 9, 8), value, np.float32))
    with pytest.raises(NotFiniteError):
        list(Ensemble([make()], mirror_axes=(0,)).segment(ArraySource(image.numpy())))


@pytest.mark.parametrize("mirror_axes", [None, (1,), (0, 1)])
@pytest.mark.parametrize("spatial", [(4, 9, 8), (1, 9, 8), (3, 1, 5), (3, 5, 1)])
def test_2d_planes_are_segmented_as_if_alone(spatial, mirror_axes):
    network, image = make(2), torch.randn(1, *spatial)
    logits = predict_logits(network, image, mirror_axes=mirror_axes, seed=3)
    for z in range(spatial[0]):
        alone = predict_logits(network, image[:, z : z + 1], mirror_axes=mirror_axes, seed=3)
        assert torch.equal(logits[:, z], alone[:, 0])
    if not mirror_axes:
        expected = network(image[:, 0][None], seed=3)[0]
        assert torch.equal(logits[:, 0], expected)


def test_same_seed_same_bits_other_seed_other_bits():
    network, image = make(), torch.randn(1, 5, 9, 8)
    first = predict_logits(network, image, seed=1)
    assert torch.equal(predict_logits(network, image, seed=1), first)
    assert not torch.equal(predict_logits(network, image, seed=2), first)


def test_mirrorings_are_all_sets_of_axes():
    assert mirrorings(None) == mirrorings(()) == [()]
    assert mirrorings((0, 2)) == [(), (0,), (2,), (0, 2)]
    assert len(set(mirrorings((0, 1, 2)))) == 8


@pytest.mark.parametrize(
    ("dimension", "mirror_axes", "passes"), [(3, None, 1), (3, (0, 1, 2), 8), (2, (0, 1), 20)]
)
def test_progress_counts_the_passes(dimension, mirror_axes, passes):
    calls = []
    predict_logits(
        make(dimension), torch.randn(1, 5, 6, 7), mirror_axes=mirror_axes, progress=calls.append
    )
    assert calls == [1] * passes


def test_neither_image_nor_network_is_changed():
    network, image = make(), torch.randn(1, 5, 6, 7)
    before = image.clone(), {key: value.clone() for key, value in network.state_dict().items()}
    logits = predict_logits(network, image, mirror_axes=(0,))
    assert torch.equal(image, before[0])
    assert all(torch.equal(v, before[1][k]) for k, v in network.state_dict().items())
    assert not logits.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_voxels_are_refused_and_counted(value):
    image = torch.randn(1, 5, 6, 7)
    image[0, 1, 2, 3] = image[0, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"\(1, 5, 6, 7\) has 2 voxels that are NaN or infinite"):
        predict_logits(make(), image)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_refused(value):
    network = make()
    network.levels[0].update.weight[0, 0] = value
    with pytest.raises(InputError, match=r"level 0 .* are NaN or infinite.*another checkpoint"):
        predict_logits(network, torch.randn(1, 5, 6, 7))


def test_logits_beyond_float16_are_kept():
    network = make()
    network.levels[0].update.weight.mul_(1e7)
    logits = predict_logits(network, torch.randn(1, 5, 6, 7))
    assert bool(torch.isfinite(logits).all())
    assert logits.abs().max().item() > 65504


@pytest.mark.parametrize("shape", [(5, 6, 7), (2, 5, 6, 7), (1, 1, 5, 6, 7)])
def test_other_shapes_and_channels_are_refused(shape):
    with pytest.raises(InputError, match=rf"\({', '.join(map(str, shape))}\)|1, 2, 5, 6, 7"):
        predict_logits(make(), torch.randn(shape))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
    ids=["torch", "Python", "CPU allocator"],
)
@pytest.mark.parametrize("dimension", [2, 3])
def test_out_of_memory_names_the_bytes_and_the_device(monkeypatch, dimension, error):
    network = make(dimension)

    def infer(*args, **kwargs):
        raise error

    monkeypatch.setattr(network, "infer", infer)
    shape = (2, 640, 768)[3 - dimension :]
    needed = inference_bytes(
        shape,
        factors=network.factors,
        steps=network.steps,
        channels=16,
        hidden=64,
        input_channels=1,
        num_classes=3,
        engine="cpu" if cpu_engine_wanted() else "torch",
    )
    sentence = f"an image of {shape} cells needs some {needed / 2**30:.1f} GiB on cpu"
    with pytest.raises(OutOfMemoryError, match=re.escape(sentence)) as raised:
        predict_logits(network, torch.zeros(1, 2, 640, 768))
    assert raised.value.__cause__ is error
    assert not isinstance(raised.value, RuntimeError), "nnU-Net would retry on the CPU"


@pytest.mark.parametrize("error", [RuntimeError("another"), ValueError("another")])
def test_other_errors_pass_through(monkeypatch, error):
    network = make()

    def infer(*args, **kwargs):
        raise error

    monkeypatch.setattr(network, "infer", infer)
    with pytest.raises(type(error), match="another") as raised:
        predict_logits(network, torch.zeros(1, 5, 6, 7))
    assert raised.value is error
