"""The octree and its automata as ONNX nodes (operator set 18).

States are channels-first, (N, C, *spatial). Sizes are computed in the graph, so that one file
takes images of any size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nnunet_octreenca.export.onnx_nodes import Nodes, int64
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree.shapes import Factors, level_shapes
from nnunet_octreenca.ops.fire import CERTAIN, fire_threshold
from nnunet_octreenca.ops.weights import StepWeights

_GOLDEN = 0x9E3779B9  # as in ops.fire
NOT_FINITE = "error_image_or_state_is_not_finite"
"""A node that fails where a runtime checks indices; its name is in the message."""


class Level(NamedTuple):
    """Names of what all networks and seeds share on a level.

    Attributes:
        image: (N, n_in, *spatial).
        shape: of the image.
        cells: 0, 1, ... along each axis, int64.
        coordinates: the same as int32, (-1, 1, 1) for the first of three axes and so on.
        mirrored: per axis the cells with a rim of one, as reflect padding has it; empty where
            every axis is at least 2, so that ONNX's own padding serves.
        sample: 0, 1, ... along the batch, int32, (N, 1, 1, ...).
    """

    image: str
    shape: str
    cells: list[str]
    coordinates: list[str]
    mirrored: list[str]
    sample: str


def image_levels(
    nodes: Nodes, image: str, factors: Factors, smallest: Sequence[int]
) -> list[Level]:
    """An image on every level of an octree, finest first.

    Args:
        nodes: are added to.
        image: (N, n_in, *spatial).
        factors: L - 1 rows with 1 or 2 per axis.
        smallest: the fewest cells that the image may have per axis.
    """
    images = [image]
    for factor in factors:
        kernel = list(factor)
        # At the border a node averages the cells that exist.
        images.append(
            nodes("AveragePool", images[-1], kernel_shape=kernel, strides=kernel, ceil_mode=1,
                  count_include_pad=0)
        )  # fmt: skip
    return [
        _level(nodes, image, shape)
        for image, shape in zip(images, level_shapes(smallest, factors), strict=True)
    ]


def _level(nodes: Nodes, image: str, smallest: Sequence[int]) -> Level:
    dimension = len(smallest)
    shape = nodes("Shape", image)
    sizes = [nodes("Gather", shape, np.int64(axis + 2)) for axis in range(dimension)]
    cells = [nodes("Range", np.int64(0), size, np.int64(1)) for size in sizes]
    coordinates = [
        nodes(
            "Reshape",
            nodes.cast(along, "INT32"),
            int64(*(-1 if other == axis else 1 for other in range(dimension))),
        )
        for axis, along in enumerate(cells)
    ]
    mirrored = (
        [_mirrored(nodes, *axis) for axis in zip(sizes, cells, strict=True)]
        if min(smallest) < 2
        else []
    )
    samples = nodes("Range", np.int64(0), nodes("Gather", shape, np.int64(0)), np.int64(1))
    sample = nodes("Reshape", nodes.cast(samples, "INT32"), int64(-1, *(1,) * (dimension + 1)))
    return Level(image, shape, cells, coordinates, mirrored, sample)


def _mirrored(nodes: Nodes, size: str, cells: str) -> str:
    """Indices of an axis with its rim; a single cell is its own neighbour."""
    last = nodes("Sub", size, np.int64(1))
    first = nodes("Min", last, np.int64(1))
    behind = nodes("Max", nodes("Sub", size, np.int64(2)), np.int64(0))
    rim = [nodes("Unsqueeze", index, int64(0)) for index in (first, behind)]
    return nodes("Concat", rim[0], cells, rim[1], axis=0)


def not_finite(nodes: Nodes, values: str) -> str:
    """1 where any number is NaN or infinite, else 0; int64, one element."""
    total = nodes("ReduceSum", nodes("Mul", values, np.float32(0)), keepdims=0)
    return nodes("Reshape", nodes.cast(nodes("IsNaN", total), "INT64"), int64(1))


def octree_logits(
    nodes: Nodes, levels: Sequence[Level], network: OctreeNCA, seed: str, wrong: str
) -> str:
    """`OctreeNCA.forward`: logits of the finest level, (N, num_classes, *spatial).

    Args:
        nodes: are added to.
        levels: of `image_levels`.
        network: its sizes and weights.
        seed: int64 scalar.
        wrong: 0 where the image is finite, as of `not_finite`.
    """
    first_key = _seed_key(nodes, seed)
    state: str | None = None
    for number in reversed(range(len(levels))):
        level = levels[number]
        others = _enter(nodes, network, level, number, state)
        others = _steps(nodes, network, level, number, others, first_key)
        wrong = nodes("Add", wrong, not_finite(nodes, others))
        state = others
    assert state is not None
    # The only element is taken, or one that is not there.
    first = nodes("Gather", int64(0), wrong, name=NOT_FINITE)
    logits = nodes("Slice", state, first, int64(network.logits), int64(1))
    if not network.constant_background:
        return logits
    zeros = nodes("Sub", *(nodes("Slice", logits, int64(0), int64(1), int64(1)),) * 2)
    return nodes("Concat", zeros, logits, axis=1)


def _enter(nodes: Nodes, network: OctreeNCA, level: Level, number: int, parent: str | None) -> str:
    """The channels beside the image that a level begins with: zeros, or its parents'; mapped where
    the levels differ in channels."""
    if parent is None:
        batch, spatial = (
            nodes("Slice", level.shape, int64(first), int64(end))
            for first, end in ((0, 1), (2, network.dimension + 2))
        )
        beside = network.level_channels[number] - network.input_channels
        shape = nodes("Concat", batch, int64(beside), spatial, axis=0)
        return nodes("Expand", np.float32(0), shape)
    matrix = network.automaton().from_parent[number]
    if matrix is not None:  # on the parents' cells, which are fewer
        kernel = matrix.detach().cpu().float().numpy()
        parent = nodes("Conv", parent, kernel.reshape(*kernel.shape, *(1,) * network.dimension))
    for axis, (cells, factor) in enumerate(zip(level.cells, network.factors[number], strict=True)):
        if factor > 1:
            parents = nodes("Div", cells, np.int64(factor))
            parent = nodes("Gather", parent, parents, axis=axis + 2)
    return parent


def _steps(
    nodes: Nodes, network: OctreeNCA, level: Level, number: int, others: str, first_key: str
) -> str:
    """All steps of a level; the channels beside the image, before and after."""
    threshold = fire_threshold(network.fire_rate)
    if threshold == 0 or network.steps[number] == 0:
        return others
    key = _absorb(nodes, first_key, nodes.constant(_int32(number)))
    weights = network.level_weights(number)

    def step(body: Nodes, time: str, before: str) -> str:
        update = _update(body, weights, level, before)
        after = body("Add", before, update)
        if threshold == CERTAIN:
            return after
        own = _absorb(body, _absorb(body, key, body.cast(time, "INT32")), level.sample)
        return body("Where", _fired(body, own, level.coordinates, threshold), after, before)

    return nodes.loop(np.int64(network.steps[number]), others, step)


def _update(nodes: Nodes, weights: StepWeights, level: Level, others: str) -> str:
    """Perceive and update of every cell."""
    kernel, bias, hidden, hidden_bias, update = (
        weight.detach().cpu().float().numpy() for weight in weights
    )
    one = (1,) * weights.dimension
    state = nodes("Concat", level.image, others, axis=1)
    padded = state
    for axis, cells in enumerate(level.mirrored):
        padded = nodes("Gather", padded, cells, axis=axis + 2)
    if not level.mirrored:
        rim = int64(0, 0, *one)
        padded = nodes("Pad", state, np.concatenate([rim, rim]), mode="reflect")
    perceived = nodes("Conv", padded, kernel[:, None], bias, group=weights.channels)
    both = nodes("Concat", state, perceived, axis=1)
    units = nodes("Relu", nodes("Conv", both, hidden.reshape(*hidden.shape, *one), hidden_bias))
    return nodes("Conv", units, update.reshape(*update.shape, *one))


def _fired(nodes: Nodes, key: str, coordinates: Sequence[str], threshold: int) -> str:
    """Which cells fire: `ops.fire.fire_mask` of every sample, (N, 1, *spatial).

    Args:
        key: int32, (N, 1, 1, ...).
        coordinates: int32, of every axis.
        threshold: 1 to 2^32 - 1.
    """
    # 2-D is 3-D with a single plane z = 0.
    plane = _absorb(nodes, key, coordinates[0] if len(coordinates) == 3 else _int32(0))
    base = _absorb(nodes, plane, coordinates[-2])
    stride = nodes("BitwiseOr", _mix(nodes, nodes("Add", base, _int32(_GOLDEN))), _int32(1))
    draw = _mix(nodes, nodes("Add", base, nodes("Mul", coordinates[-1], stride)))
    # Flipping the top bit turns the unsigned order into the signed one.
    return nodes("Less", nodes("BitwiseXor", draw, _int32(1 << 31)), _int32(threshold ^ 1 << 31))


def _seed_key(nodes: Nodes, seed: str) -> str:
    """The part of `ops.fire.draw_key` that depends on the seed alone; int32, as all keys."""
    words = nodes.cast(seed, "UINT64")
    high = nodes("BitShift", words, np.uint64(32), direction="RIGHT")
    key = nodes.constant(_int32(0))
    for word in (words, high):
        key = _absorb(nodes, key, nodes.cast(nodes.cast(word, "UINT32"), "INT32"))
    return key


def _absorb(nodes: Nodes, key: str, word: str | np.int32) -> str:
    return _mix(nodes, nodes("Add", nodes("BitwiseXor", key, word), _int32(_GOLDEN)))


def _mix(nodes: Nodes, value: str) -> str:
    """lowbias32 on int32, whose products wrap: runtimes lack sums and products of uint32."""
    for bits, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        value = nodes("BitwiseXor", value, _shifted(nodes, value, bits))
        value = nodes("Mul", value, _int32(factor))
    return nodes("BitwiseXor", value, _shifted(nodes, value, 16))


def _shifted(nodes: Nodes, value: str, bits: int) -> str:
    """Logical shift to the right, which ONNX has for unsigned numbers only."""
    unsigned = nodes.cast(value, "UINT32")
    return nodes.cast(nodes("BitShift", unsigned, np.uint32(bits), direction="RIGHT"), "INT32")


def _int32(value: int) -> np.int32:
    """The int32 with the same 32 bits."""
    same: np.int32 = np.uint32(value & 0xFFFFFFFF).view(np.int32)
    return same
