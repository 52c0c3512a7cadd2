"""A model as one web page that segments without a server: engine, weights, page in one file."""

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from nnunet_octreenca import __version__
from nnunet_octreenca.errors import InputError, PlansError
from nnunet_octreenca.export.bundle import PAGE, bundled
from nnunet_octreenca.export.packing import packed_network, packed_seed
from nnunet_octreenca.files import JsonObject, write_result
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.labels.palette import colour
from nnunet_octreenca.preprocessing.resample import ResamplingRule

MODULES = Path(__file__).parent / "web"
_EXAMPLE = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".gz"}
_MOST_LABELS = 255  # a byte a cell


def write_html(
    model: Model,
    path: Path,
    title: str | None = None,
    example: Path | None = None,
    seeds: Sequence[int] | None = None,
) -> None:
    """Write a page that segments images with a model; it needs nothing else.

    Args:
        model: of `load_model`.
        path: the file, whole or not at all.
        title: of the page; the model's name if left out.
        example: an image that the page offers to segment.
        seeds: of the fire draws, whose logits are averaged; the model's own if left out.

    Raises:
        InputError: the example cannot be read, or is no image that the page can read.
        PlansError: labels that the page cannot show.
        OutputError: the file cannot be written.
    """
    write_result(path, page_text(model, title, example, seeds).encode())


def page_text(
    model: Model,
    title: str | None = None,
    example: Path | None = None,
    seeds: Sequence[int] | None = None,
) -> str:
    """The page; arguments and errors as `write_html` has them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    seeds = tuple(seeds) if seeds is not None else (model.seed,)
    data = json.dumps(
        {
            "model": described_model(model, seeds),
            "weights": [_packed(packed_network(network)) for network in model.networks],
            "modules": {
                name: _packed((MODULES / f"{name}.wasm").read_bytes())
                for name in ("relaxed", "simd128")
            },
            "worker": bundled("worker"),
            "example": _example(example),
        },
        ensure_ascii=False,
        separators=(",", ":"),
    ).replace("<", "\\u003c")
    script = bundled("app")
    style = (PAGE / "style.css").read_text(encoding="utf-8")
    if "</" in script or "</" in style:  # would end the element
        raise AssertionError("the page's script and style must not hold </")
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        title=title or model.title,
        policy=_policy(script, style),
        style=style,
        facts=_facts(model, seeds),
        data=data,
        script=script,
    )


def described_model(model: Model, seeds: Sequence[int]) -> JsonObject:
    """What the page's scripts know of the model."""
    preprocessing, first = model.preprocessing, model.networks[0]
    if preprocessing.largest_label > _MOST_LABELS:
        raise PlansError(
            f"the model's label {preprocessing.largest_label} is above {_MOST_LABELS}, the highest "
            "that a page shows; export another model"
        )
    return {
        "dimension": preprocessing.dimension,
        "schemes": preprocessing.normalization_schemes,
        "useMask": preprocessing.use_mask_for_norm,
        "intensities": [dict(found) for found in preprocessing.intensities],
        "spacing": preprocessing.spacing,
        "data": _rule(preprocessing.data),
        "probabilities": _rule(preprocessing.probabilities),
        "context": preprocessing.context,
        "transposeForward": preprocessing.transpose_forward,
        "transposeBackward": preprocessing.transpose_backward,
        "regions": preprocessing.regions_class_order,
        "natural": model.natural,
        "names": sorted(model.names.items()),
        "colours": [colour(label) for label in range(preprocessing.largest_label + 1)],
        "steps": first.steps,
        "folds": model.folds,
        "mirrorAxes": model.mirror_axes or (),
        "members": [
            {"network": number, "seed": packed_seed(seed)}
            for number in range(len(model.networks))
            for seed in seeds
        ],
    }


def _rule(rule: ResamplingRule) -> JsonObject:
    return {
        "resamples": rule.resamples,
        "kernel": rule.kernel,
        "inPlane": rule.kernel_in_plane,
        "apart": rule.kernel_apart,
        "force": rule.force_separate_z,
        "threshold": rule.threshold,
    }


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _example(path: Path | None) -> JsonObject | None:
    if path is None:
        return None
    if path.suffix.lower() not in _EXAMPLE:
        raise InputError(
            f"the example {path} is no image that the page reads: give PNG, JPEG, TIFF or NIfTI"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"the example {path} cannot be read ({error})") from error
    return {"name": path.name, "data": base64.b64encode(data).decode()}


def _policy(script: str, style: str) -> str:
    """Content security: this script, this style, workers made by them, and no connection."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {source(script)} 'wasm-unsafe-eval'; "
        f"style-src {source(style)}; worker-src blob:; img-src blob: data:; connect-src 'none'; "
        "base-uri 'none'; form-action 'none'"
    )


def _facts(model: Model, seeds: Sequence[int]) -> str:
    numbers = sum(parameter.numel() for parameter in model.networks[0].parameters())
    folds = "fold" + "s" * (len(model.folds) > 1)
    return (
        f"nnunet_octreenca {__version__}. Model {model.folder.name}, {folds} "
        f"{', '.join(model.folds)}, {numbers:,} parameters{' each' * (len(model.folds) > 1)}; fire "
        f"draws of seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}."
    )
