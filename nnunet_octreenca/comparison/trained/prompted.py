"""Methods that are not trained but shown points of the truth: SAM and SAM2."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_octreenca.baselines.prompted import POINTS, Prompted, as_pictures, checkpoint_method
from nnunet_octreenca.comparison.trained.jobs import Request
from nnunet_octreenca.comparison.trained.methods import Method
from nnunet_octreenca.comparison.trained.running import Say
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonMapping, JsonObject
from nnunet_octreenca.integration.stock_files import read_image, read_labels, write_labels

AXES = {"SAM": 2, "SAM2": 3}


def find_checkpoints(
    methods: Sequence[Method], folders: Sequence[str], patch: Sequence[int], dataset: JsonMapping
) -> dict[str, Path]:
    """The folder of each prompted method's weights.

    Args:
        methods: that are prompted.
        folders: as `--sam-checkpoint` gives them.
        patch: of the configuration.
        dataset: content of dataset.json.

    Raises:
        InputError: a checkpoint is missing, unknown or given twice, or the data set does not suit
            a method.
    """
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        name = checkpoint_method(folder)
        if name in found:
            raise InputError(f"--sam-checkpoint: {found[name]} and {folder} are both of {name}")
        found[name] = folder
    for method in methods:
        if method.name not in found:
            raise InputError(
                f"{method.name} needs trained weights, which this program never downloads; give "
                f"the folder of a transformers checkpoint (config.json, model.safetensors, "
                f"preprocessor_config.json) with --sam-checkpoint"
            )
        if len(patch) != AXES[method.name]:
            raise InputError(
                f"{method.name} is compared on {AXES[method.name]}-D configurations, and this has "
                f"{len(patch)} axes; leave it out"
            )
    if methods and "regions_class_order" in dataset:
        raise InputError(f"{methods[0].name} gives one label a pixel, not regions; leave it out")
    unused = set(found) - {method.name for method in methods}
    if unused:
        raise InputError(f"--sam-checkpoint is of {unused.pop()}, which --methods does not name")
    return found


def segment_cases(
    checkpoints: Mapping[str, Path],
    images: Mapping[str, Sequence[str]],
    truth: Path,
    request: Request,
    folder: Path,
    device: str,
    say: Say,
    *,
    patch: Sequence[int],
    dataset: JsonMapping,
) -> tuple[dict[str, Path], dict[str, JsonObject]]:
    """Label maps of the held-out cases, and a record of each method.

    Args:
        checkpoints: method to its folder.
        images: case to its files.
        truth: folder of label maps, which are also the prompts.
        request: of the comparison.
        folder: for the label maps, a folder each method.
        device: to compute on.
        say: told what is done.
        patch: that SAM sees at a time.
        dataset: content of dataset.json.

    Raises:
        InputError: a checkpoint is damaged, or an image is missing.
    """
    ending = str(dataset["file_ending"])
    predictions: dict[str, Path] = {}
    records: dict[str, JsonObject] = {}
    for name, checkpoint in checkpoints.items():
        say(f"prompting {name}")
        model = Prompted(checkpoint, device)
        predictions[name] = folder / name
        predictions[name].mkdir(parents=True, exist_ok=True)
        for path in sorted(truth.glob(f"*{ending}")):
            case = path.name[: -len(ending)]
            if case not in images:
                raise InputError(f"{request.raw} lacks the images of {case}")
            pictures = as_pictures(read_image(images[case], dataset))
            wanted, where = read_labels(path, dataset)
            seed = zlib.crc32(case.encode())
            if name == "SAM2":
                labels = model.clip(pictures, wanted, seed)
            else:
                labels = wanted.astype("uint8") * 0
                for plane in range(len(labels)):
                    labels[plane] = model.picture(
                        pictures[plane], wanted[plane], patch, seed + plane
                    )
            write_labels(labels, predictions[name] / path.name, where, dataset)
        records[name] = {"parameters": model.parameters, "device": device, "notes": note(name)}
    return predictions, records


def note(method: str) -> str:
    """What a reader of the report must know."""
    what = {
        "SAM": f"{POINTS} random points of each class in each patch",
        "SAM2": "one random point of each class, in the first frame that has it",
    }[method]
    return (
        f"Not trained on this data set, but shown {what} of the truth that it is compared with: "
        f"it is told where classes are, which the others must find."
    )
