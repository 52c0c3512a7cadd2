"""What mirrored copies gain, by how they are averaged.

    python benchmarks/mirrored_copies.py --work recipes_work
    python benchmarks/mirrored_copies.py --work recipes_work --datasets acdc --json

Takes the runs that recipes.py has finished in --work and segments their validation cases, without
training anything; a Dice score is that of cells of the network, not of the file. Prints, and with
--json adds to docs/results/mirrored_copies.jsonl, a line a run as it is done; runs that are there
already are left out.

"one pass" mirrors nothing, "nnU-Net's" is the mean of all copies' logits, "bounded" that of logits
cut off at LOGIT_BOUND, which is how the package predicts. "moved" was tried and left: a copy lies a
third of a coarsest cell farther along the axes that it is mirrored along, so that it has cells of
its own on every level.
"""

import argparse
import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipe_data import DATA_SETS
from recipes import key_of, rows_of, rows_path, run_name
from torch.nn import functional

from nnunet_octreenca import OctreeNCA
from nnunet_octreenca.comparison.metrics import dice
from nnunet_octreenca.inference.whole_image import LOGIT_BOUND, mirrorings, surrounded

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "mirrored_copies.jsonl"


def network_of(checkpoint: dict[str, Any], configuration: str) -> OctreeNCA:
    """The trained network, as it predicts."""
    arguments = checkpoint["init_args"]
    plans, description = arguments["plans"], arguments["dataset_json"]
    kwargs = plans["configurations"][configuration]["architecture"]["arch_kwargs"]
    network = OctreeNCA(len(description["channel_names"]), len(description["labels"]), **kwargs)
    network.load_state_dict(checkpoint["network_weights"])
    return network.eval()


def copies(
    network: OctreeNCA, image: torch.Tensor, axes: Sequence[int], moved: bool
) -> list[torch.Tensor]:
    """Logits of every mirrored copy, in the image's place: image (channels, *spatial)."""
    spans = [prod(column) for column in zip(*network.factors, strict=True)]
    results = []
    for chosen in mirrorings(axes):
        zeros = [round(n / 3) if moved and at in chosen else 0 for at, n in enumerate(spans)]
        flipped = [axis + 1 for axis in chosen]
        before = [n for cells in reversed(zeros) for n in (cells, 0)]
        with torch.inference_mode():
            logits = network.infer(functional.pad(image.flip(flipped), before)[None], 0)[0]
        own = (slice(None), *(slice(cells, None) for cells in zeros))
        results.append(logits[own].flip(flipped))
    return results


def measured(row: dict[str, Any], work: Path) -> dict[str, Any]:
    """Mean Dice of a run by each way of averaging, and of a single pass."""
    import blosc2  # nnU-Net's, for its preprocessed cases

    dataset = DATA_SETS[row["dataset"]]
    run = work / "runs" / run_name(key_of(row))
    checkpoint = torch.load(run / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    network = network_of(checkpoint, dataset.configuration)
    plan = checkpoint["init_args"]["plans"]["configurations"][dataset.configuration]
    preprocessed = work / "preprocessed" / dataset.folder
    folder = preprocessed / plan["data_identifier"]
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    scores: dict[str, list[list[float]]] = {}
    for case in splits[0]["val"]:
        image, truth = (
            np.asarray(blosc2.open(str(folder / f"{case}{part}.b2nd"), mode="r")[:])
            for part in ("", "_seg")
        )
        flat = network.dimension == 2
        whole = torch.from_numpy(image[:, 0] if flat else image).float()
        given, inside = surrounded(whole, plan["patch_size"])
        axes = checkpoint["inference_allowed_mirroring_axes"]
        logits = {}
        for place in ("", "moved"):
            found = copies(network, given, axes, bool(place))
            bounded = [each.clamp(-LOGIT_BOUND, LOGIT_BOUND) for each in found]
            logits.setdefault("one pass", found[0])
            logits[place or "nnU-Net's"] = sum(found) / len(found)
            logits[f"{place} and bounded" if place else "bounded"] = sum(bounded) / len(bounded)
        for name, values in logits.items():
            labels, real = values[inside].argmax(0).numpy(), truth[0, 0] if flat else truth[0]
            each = [dice(real == n, labels == n) for n in range(1, network.num_classes)]
            scores.setdefault(name, []).append(each)
    means = {name: round(float(np.nanmean(each)), 4) for name, each in scores.items()}
    kept = ("dataset", "recipe", "seed", "budget", "iterations")
    return {**{key: row[key] for key in kept}, "cases": len(scores["one pass"]), "dice": means}


def main() -> None:
    """Segment the validation cases of every finished run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("recipes_work"), help="of recipes.py")
    parser.add_argument("--datasets", nargs="+", choices=DATA_SETS, help="all if left out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="keep the lines")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    done = {key_of(row) for row in rows_of(RESULTS)} if given.json else set()
    for row in rows_of(rows_path(given.work)):
        wanted = given.datasets is None or row["dataset"] in given.datasets
        if not wanted or row["change"].get("stock") or key_of(row) in done:
            continue
        line = json.dumps(measured(row, given.work))
        print(line, flush=True)
        if given.json:
            with RESULTS.open("a") as results:
                results.write(line + "\n")


if __name__ == "__main__":
    main()
