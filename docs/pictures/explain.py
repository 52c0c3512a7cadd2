"""The automaton at work on a slice of a phantom, as `nnunet_octreenca explain` draws it.

python docs/pictures/explain.py [FOLDER] [--iterations N]

The network is that of descent.py: trained for a minute or two to find the organ.
"""

import argparse
from pathlib import Path

import torch
from descent import slices, trained

from nnunet_octreenca.prediction.explain import write_animation
from nnunet_octreenca.prediction.watch import watch_image


def main() -> None:
    """Train, watch and draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default=Path(__file__).parent, type=Path)
    parser.add_argument("--iterations", type=int, default=600)
    arguments = parser.parse_args()
    network = trained(arguments.iterations)
    image, _ = next(slices(100))
    watched = watch_image(
        network,
        torch.from_numpy(image)[None, None],
        title="a slice of a phantom",
        names={1: "organ"},
        spacing=(1, 1),
        unit="pixels",
    )
    write_animation(watched, arguments.folder / "explain.gif", width=520)


if __name__ == "__main__":
    main()
