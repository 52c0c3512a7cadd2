"""Five steps in which all cells fire against ten in which half do; and how to doubt the former.

    python benchmarks/fire_rate.py --json
    python benchmarks/fire_rate.py --run recipes_work/runs/hippocampus_default_0_2500-iterations

Without --run: processor seconds of one thread for a prediction and for a training step on a whole
image, untrained weights, the two taking turns; medians of --rounds.

With --run, a folder of recipes.py beside what it prepared: fold 0's cases are segmented without
mirrored copies, and scored by how much --seeds samples differ whose cells fire with a lower
probability (nqm), and by resilience. AURC is the mean error, 1 - Dice, over all coverages, of the
least doubtful cases first: low is good, "chance" is the mean error, "dice" the order by Dice.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_octreenca.files import read_json
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import level_shapes
from nnunet_octreenca.planning import level_factors, level_steps

SHAPES = {"2-D, 960 x 960": (960, 960), "3-D, 40 x 56 x 40": (40, 56, 40)}
RULES = {"ten steps, half fire": (10, 0.5), "five steps, all fire": (5, 1.0)}
RATES = (0.5, 0.8, 0.9, 0.95)


def network_of(shape: tuple[int, ...], steps: int, fire_rate: float) -> OctreeNCA:
    """A network of one channel and two classes whose updates are not zero."""
    torch.manual_seed(0)
    factors = level_factors(shape)
    network = OctreeNCA(
        1,
        3,
        dimension=len(shape),
        factors=factors,
        steps=level_steps(level_shapes(shape, factors), steps=steps),
        fire_rate=fire_rate,
    )
    for level in network.levels:
        torch.nn.init.normal_(level.update.weight, std=0.01)
    return network


def predict(network: OctreeNCA, image: torch.Tensor) -> None:
    """A whole image."""
    with torch.inference_mode():
        network.eval()(image)


def train(network: OctreeNCA, image: torch.Tensor) -> None:
    """A forward and a backward pass."""
    network.train()(image).square().mean().backward()


def speed(rounds: int) -> list[dict[str, Any]]:
    """Seconds of both rules, and their ratio."""
    rows = []
    for name, shape in SHAPES.items():
        networks = {rule: network_of(shape, *numbers) for rule, numbers in RULES.items()}
        image = torch.randn(1, 1, *shape)
        tasks: tuple[Callable[[OctreeNCA, torch.Tensor], None], ...] = (predict, train)
        for task in tasks:
            seconds: dict[str, list[float]] = {rule: [] for rule in RULES}
            for _ in range(rounds):
                for rule, network in networks.items():
                    began = time.process_time()
                    task(network, image)
                    seconds[rule].append(time.process_time() - began)
            medians = {rule: statistics.median(values) for rule, values in seconds.items()}
            before, now = medians.values()
            rows.append(
                {"image": name, "task": task.__name__, "seconds": medians, "ratio": now / before}
            )
            print(f"{name}, {task.__name__}: {before:.3f} s, {now:.3f} s, x {now / before:.2f}")
    return rows


def doubt(run: Path, seeds: int) -> dict[str, Any]:
    """AURC of resilience and of the samples at each of RATES."""
    import blosc2

    from nnunet_octreenca.comparison.calibration import risk_coverage
    from nnunet_octreenca.comparison.metrics import dice
    from nnunet_octreenca.inference.resilience import disturbed

    checkpoint = torch.load(run / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    made = checkpoint["init_args"]
    plans, description = made["plans"], made["dataset_json"]
    configuration = plans["configurations"][made["configuration"]]
    arguments = configuration["architecture"]["arch_kwargs"]
    classes = len(description["labels"])
    network = OctreeNCA(len(description["channel_names"]), classes, **arguments)
    network.load_state_dict(checkpoint["network_weights"])
    network.eval()
    prepared = run.parents[1] / "preprocessed" / plans["dataset_name"]
    folder = prepared / configuration["data_identifier"]
    scores: dict[str, list[float]] = {"resilience": [], **{f"nqm, {r}": [] for r in RATES}}
    risks = []
    for case in json.loads((prepared / "splits_final.json").read_text())[0]["val"]:
        image = torch.from_numpy(np.asarray(blosc2.open(str(folder / f"{case}.b2nd"))[:])).float()
        truth = np.asarray(blosc2.open(str(folder / f"{case}_seg.b2nd"))[:])
        image = image.movedim(1, 0) if network.dimension == 2 else image[None]
        with torch.inference_mode():
            labels = network(image, seed=0).argmax(1).numpy()
            scores["resilience"].append(-(disturbed(network, image, 0).resilience or 0.0))
            for rate in RATES:
                sampled = network.at_fire_rate(rate)
                found = [1 - sampled(image, seed=n).softmax(1)[:, 0] for n in range(seeds)]
                each = torch.stack(found)
                score = each.std(0, correction=0).sum() / each.mean(0).sum()
                scores[f"nqm, {rate}"].append(float(score))
        truth = truth.reshape(labels.shape)
        of_classes = [dice(truth == n, labels == n) for n in range(1, classes)]
        risks.append(1 - float(np.nanmean(of_classes)))
    risk = np.array(risks)
    aurc = {name: float(risk_coverage(np.array(s), risk).mean()) for name, s in scores.items()}
    aurc |= {"chance": float(risk.mean()), "dice": float(risk_coverage(risk, risk).mean())}
    for name, value in aurc.items():
        print(f"AURC {name}: {value:.4f}")
    return {"run": run.name, "cases": len(risks), "seeds": seeds, "aurc": aurc}


def main() -> None:
    """Measure, and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a training of recipes.py")
    parser.add_argument("--seeds", type=int, default=4, help="samples (default: 4)")
    parser.add_argument("--rounds", type=int, default=11, help="of the timing (default: 11)")
    parser.add_argument("--json", action="store_true", help="add to docs/results/fire_rate.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {"speed": speed(given.rounds)} if given.run is None else {}
    if given.run is not None:
        found["doubt"] = [doubt(given.run.resolve(), given.seeds)]
    if given.json:
        path = Path(__file__).parents[1] / "docs/results/fire_rate.json"
        kept = read_json(path, "remove it") if path.exists() else {}
        path.write_text(json.dumps({**kept, **found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
