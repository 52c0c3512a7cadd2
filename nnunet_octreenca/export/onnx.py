"""A model as one ONNX file: octree, automata and fire draws, for images of any size."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_octreenca import __version__
from nnunet_octreenca.export.onnx_nodes import Nodes, int64
from nnunet_octreenca.export.onnx_octree import image_levels, not_finite, octree_logits
from nnunet_octreenca.files import write_result
from nnunet_octreenca.inference.whole_image import LOGIT_BOUND
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.libraries import import_optional
from nnunet_octreenca.network import OctreeNCA

OPERATORS = 18
# onnxruntime 1.18 reads up to 10; 8 is the first with operator set 18.
_FORMAT = 8
NO_SEEDS = "error_seeds_are_empty"


def write_onnx(
    model: Model, path: Path, title: str | None = None, seeds: Sequence[int] | None = None
) -> None:
    """Write a model as ONNX; see `onnx_model`.

    Args:
        model: of `load_model`.
        path: the file, whole or not at all.
        title: of the model, for whoever opens the file; its name if left out.
        seeds: that the metadata advise; the model's own if left out.

    Raises:
        EnvironmentMismatchError: onnx is not installed.
        OutputError: the file cannot be written.
    """
    data = onnx_model(model, title, seeds).SerializeToString(deterministic=True)
    write_result(path, data)


def onnx_model(model: Model, title: str | None = None, seeds: Sequence[int] | None = None) -> Any:
    """A model as an `onnx.ModelProto`: what follows preprocessing, up to labels.

    Inputs: `image`, (n, channels, *spatial) float32, normalized and resampled as the metadata say;
    `seeds`, (number of seeds,) int64, whose logits are averaged. Outputs: `labels`, (n, *spatial)
    uint8, int32 above 255; `logits`, (n, heads, *spatial) float32, averaged over seeds and folds.
    An image smaller than the context is surrounded by zeros, as in `predict`.

    Args, errors: as `write_onnx` has them.
    """
    helper = import_optional("onnx.helper", "onnx")
    preprocessing = model.preprocessing
    graph = network_graph(
        model.networks,
        context=preprocessing.context,
        regions=preprocessing.regions_class_order,
        largest_label=preprocessing.largest_label,
    )
    name = title or model.title
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPERATORS)],
        ir_version=_FORMAT,
        producer_name="nnunet_octreenca",
        producer_version=__version__,
        doc_string=f"{name}. Not a medical device.",
    )
    helper.set_model_props(made, metadata(model, name, seeds))
    return made


def metadata(model: Model, title: str, seeds: Sequence[int] | None = None) -> dict[str, str]:
    """What a program needs to prepare images and to name labels; everything but text as JSON."""
    preprocessing = model.preprocessing
    numbers = {
        "labels": {str(label): name for label, name in sorted(model.names.items())},
        "regions_class_order": preprocessing.regions_class_order,
        "normalization_schemes": preprocessing.normalization_schemes,
        "use_mask_for_norm": preprocessing.use_mask_for_norm,
        "intensities": [dict(channel) for channel in preprocessing.intensities],
        "spacing": preprocessing.spacing,
        "transpose_forward": preprocessing.transpose_forward,
        "context": preprocessing.context,
        "mirror_axes": model.mirror_axes or (),
        "logit_bound": LOGIT_BOUND,
        "folds": model.folds,
        "seeds": [_signed(seed) for seed in (seeds if seeds is not None else (model.seed,))],
    }
    return {
        "title": title,
        "version": __version__,
        "trainer": model.trainer,
        "plans": model.plans,
        "configuration": model.configuration,
        **{key: json.dumps(value, ensure_ascii=False) for key, value in numbers.items()},
    }


def network_graph(
    networks: Sequence[OctreeNCA],
    *,
    context: Sequence[int] | None = None,
    regions: Sequence[int] | None = None,
    largest_label: int | None = None,
) -> Any:
    """Networks of one octree as an `onnx.GraphProto`, their logits averaged.

    Args:
        networks: at least one.
        context: cells per axis that smaller images are surrounded by zeros up to; None for none.
        regions: the label that each logit above 0 writes; None: the class of the largest logit.
        largest_label: decides the labels' type.
    """
    nodes = Nodes()
    first = networks[0]
    axes = ["z", "y", "x"][3 - first.dimension :]
    image, inside = _surrounded(nodes, context, first.dimension)
    levels = image_levels(nodes, image, first.factors, context or (1,) * first.dimension)
    logits = _mean_logits(nodes, levels, networks)
    if inside is not None:
        logits = nodes("Slice", logits, *inside, int64(*range(2, first.dimension + 2)))
    highest = first.num_classes - 1 if largest_label is None else largest_label
    kind = "UINT8" if highest <= 255 else "INT32"
    labels = nodes.cast(_labels(nodes, logits, regions), kind)
    nodes.output(labels, "labels")
    nodes.output(logits, "logits")
    return nodes.graph(
        "OctreeNCA",
        {"image": ("FLOAT", ["n", first.input_channels, *axes]), "seeds": ("INT64", ["seeds"])},
        {"labels": (kind, ["n", *axes]), "logits": ("FLOAT", ["n", first.num_classes, *axes])},
    )


def _surrounded(
    nodes: Nodes, context: Sequence[int] | None, dimension: int
) -> tuple[str, tuple[str, str] | None]:
    """The image amid zeros up to the context, and where it then begins and ends."""
    if context is None:
        return "image", None
    sizes = nodes("Slice", nodes("Shape", "image"), int64(2), int64(dimension + 2))
    missing = nodes("Max", nodes("Sub", int64(*context), sizes), int64(0))
    before = nodes("Div", missing, np.int64(2))
    after = nodes("Sub", missing, before)
    pads = nodes("Concat", int64(0, 0), before, int64(0, 0), after, axis=0)
    padded = nodes("Pad", "image", pads, np.float32(0))
    return padded, (before, nodes("Add", before, sizes))


def _mean_logits(nodes: Nodes, levels: Sequence[Any], networks: Sequence[OctreeNCA]) -> str:
    """Averaged over networks and seeds, added up in the order of `predict`."""
    first = networks[0]
    # Taking the first seed fails where there is none; a loop of no rounds would not.
    rest = nodes("Slice", "seeds", int64(1), int64(np.iinfo(np.int64).max))
    seeds = nodes("Concat", nodes("Gather", "seeds", int64(0), name=NO_SEEDS), rest, axis=0)
    many = nodes("Size", seeds)
    finest = levels[0]
    batch, spatial = (
        nodes("Slice", finest.shape, int64(begin), int64(end))
        for begin, end in ((0, 1), (2, first.dimension + 2))
    )
    shape = nodes("Concat", batch, int64(first.num_classes), spatial, axis=0)
    total = nodes("Expand", np.float32(0), shape)
    wrong = not_finite(nodes, finest.image)
    for network in networks:

        def add(body: Nodes, number: str, before: str, network: OctreeNCA = network) -> str:
            seed = body("Gather", seeds, number)
            return body("Add", before, octree_logits(body, levels, network, seed, wrong))

        total = nodes.loop(many, total, add)
    members = nodes("Mul", nodes.cast(many, "FLOAT"), np.float32(len(networks)))
    return nodes("Div", total, members)


def _labels(nodes: Nodes, logits: str, regions: Sequence[int] | None) -> str:
    """`labels_of_logits`: the largest logit's class, or the last region above 0; (n, *spatial)."""
    if regions is None:
        return nodes("ArgMax", logits, axis=1, keepdims=0)
    labels: str | np.int64 = np.int64(0)
    for number, label in enumerate(regions):
        logit = nodes("Gather", logits, np.int64(number), axis=1)
        labels = nodes("Where", nodes("Greater", logit, np.float32(0)), np.int64(label), labels)
    assert isinstance(labels, str)
    return labels


def _signed(seed: int) -> int:
    """The int64 of the 64 bits that count."""
    return int.from_bytes((seed & (1 << 64) - 1).to_bytes(8, "little"), "little", signed=True)
