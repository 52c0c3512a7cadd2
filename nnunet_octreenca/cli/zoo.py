"""`nnunet_octreenca zoo`: the trained models that come with the package, and their cards."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_octreenca.integration.zoo import ZooModel

HELP = "list the trained models that come with the package, or print the card of one"
EXAMPLE = """\
examples:
  nnunet_octreenca zoo                             names, tasks, sizes, Dice, licences
  nnunet_octreenca zoo phantoms                    the card: data, training, failures, intended use
  nnunet_octreenca predict -m zoo:phantoms -i scan.nii.gz -o OUT

zoo:NAME stands for the model's folder in every command and function that takes one. Its files are
compared with the SHA-256 of the index before they are loaded. None is a medical device.

exit codes: 0 printed, 1 there is no such model or its files were changed, 2 wrong arguments
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="model to print the card of")


def run(arguments: argparse.Namespace) -> int:
    """Print the list or a card.

    Raises:
        OctreeNCAError: the zoo is damaged, or has no such model.
    """
    from nnunet_octreenca.integration.zoo import PREFIX, zoo_model, zoo_models

    if arguments.name is not None:
        print(zoo_model(arguments.name).card.rstrip())
        return 0
    models = zoo_models()
    rows = [("model", "size", "Dice (95 % interval)", "licence", "task")]
    rows += [_row(zoo_model(name)) for name in models]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    print(
        f"Card: `nnunet_octreenca zoo NAME`. Use: `nnunet_octreenca predict -m {PREFIX}NAME -i IN "
        f"-o OUT`."
    )
    return 0


def _row(model: "ZooModel") -> tuple[str, str, str, str, str]:
    dice = model.dice
    return (
        model.name,
        f"{model.bytes / 1000:.0f} kB",
        f"{dice.mean:.3f} ({dice.low:.3f} to {dice.high:.3f}) of {dice.cases} cases",
        model.licence,
        model.task,
    )
