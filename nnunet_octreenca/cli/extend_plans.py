"""`nnunet_octreenca extend_plans`."""

import argparse

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.files import JsonObject, load_json

HELP = "derive OctreeNCA's plans from an existing plans file"
EXAMPLE = """\
examples:
  nnunet_octreenca extend_plans -d 4
  nnunet_octreenca extend_plans -d 4 -p nnUNetResEncUNetMPlans -gpu_memory_target 4
  nnunet_octreenca extend_plans -d 4 --set num_epochs=100 --set initial_lr=0.001
  nnunet_octreenca extend_plans -d 4 --set channels=[16,24,32,48]
  nnunet_octreenca extend_plans -d 4 --preset paper
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags, nnU-Net's names where nnU-Net has them."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="data set number or name")
    parser.add_argument(
        "-p", default="nnUNetPlans", metavar="PLANS", help="existing plans (default: nnUNetPlans)"
    )
    parser.add_argument(
        "-overwrite_plans_name",
        default="nnUNetOctreeNCAPlans",
        metavar="NAME",
        help="name of the new plans (default: nnUNetOctreeNCAPlans)",
    )
    parser.add_argument(
        "-gpu_memory_target",
        type=float,
        default=8.0,
        metavar="GB",
        help="memory budget of a training step in GiB; the context is cropped, then shrunk "
        "to fit (default: 8)",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        help="samples per training step (default: 1; 3 with --preset paper)",
    )
    parser.add_argument(
        "--preset",
        help="wide: more channels on coarse levels, where they are nearly free; stochastic: ten "
        "steps a level in which half of the cells fire at random, instead of five in which all "
        "do, and Adam instead of SOAP; paper: stochastic, and trained as published, on whole "
        "contexts; radiology, pathology or surgery: one of the paper's three configurations",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a key of the plans' octreenca block, e.g. num_epochs=100, or the network's "
        "channels and hidden units: channels=20, or one for each level, the finest first, "
        "channels=[16,24,32,48] (repeatable)",
    )


def parse_settings(pairs: list[str]) -> JsonObject:
    """KEY=VALUE pairs; a value is JSON, or a word as it stands.

    Raises:
        PlansError: no '=' in a pair.

    >>> parse_settings(["num_epochs=5", "betas=[0.9, 0.99]", "lr_schedule=poly"])
    {'num_epochs': 5, 'betas': [0.9, 0.99], 'lr_schedule': 'poly'}
    """
    settings = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise PlansError(f"--set {pair} must be KEY=VALUE, such as --set num_epochs=100")
        try:
            settings[key] = load_json(text)
        except ValueError:
            settings[key] = text
    return settings


def run(arguments: argparse.Namespace) -> int:
    """Write the plans and say what they hold."""
    batch_size = arguments.batch_size
    if arguments.gpu_memory_target <= 0 or (batch_size is not None and batch_size < 1):
        raise PlansError(
            f"-gpu_memory_target ({arguments.gpu_memory_target}) and --batch_size "
            f"({arguments.batch_size}) must be above 0"
        )
    from nnunet_octreenca.files import read_json
    from nnunet_octreenca.integration.planner import extend_plans_file
    from nnunet_octreenca.planning import RECIPES, load_preset, recipe_named

    named = arguments.preset or "default"
    path = extend_plans_file(
        arguments.d,
        base_plans=arguments.p,
        plans_name=arguments.overwrite_plans_name,
        gpu_memory_target_in_gb=arguments.gpu_memory_target,
        batch_size=arguments.batch_size,
        settings=parse_settings(arguments.set),
        preset=None if named in RECIPES else load_preset(named),
        recipe=recipe_named(named if named in RECIPES else "default"),
    )
    for name, configuration in read_json(path, "run the command again")["configurations"].items():
        if "architecture" not in configuration:
            print(f"{name}: inherits from {configuration.get('inherits_from')}")
            continue
        kwargs = configuration["architecture"]["arch_kwargs"]
        block = configuration["octreenca"]
        crop = f", finest {block['crop_levels']} level(s) cropped to {block['crop_shape']}"
        moved = f", contexts moved by up to {block['shift']:.0%} of every axis"
        print(
            f"{name}: context {configuration['patch_size']}, {len(kwargs['steps'])} levels, steps "
            f"{kwargs['steps']}, {kwargs['channels']} channels, batch "
            f"{configuration['batch_size']}{crop if block['crop_shape'] else ''}"
            f"{moved if block['shift'] else ''}"
        )
    print(f"Plans were saved to {path}")
    print(
        f"Train with: nnUNetv2_train {arguments.d} CONFIGURATION FOLD -tr OctreeNCATrainer -p "
        f"{arguments.overwrite_plans_name}"
    )
    return 0
