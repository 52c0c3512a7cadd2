"""`nnunet_octreenca register`."""

import argparse

HELP = "register OctreeNCA's trainers and planner with nnU-Net"
EXAMPLE = """\
examples:
  nnunet_octreenca register            once, and after every update of nnU-Net
  nnunet_octreenca register --check    exit code 0 if registered, 1 if not
  nnunet_octreenca register --undo     restore nnU-Net to its original state
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--undo", action="store_true", help="remove the registration")
    what.add_argument(
        "--check", action="store_true", help="only report whether OctreeNCA is registered"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write, remove or check the shims."""
    from nnunet_octreenca.integration import register

    if arguments.check:
        states = register.shims()
        for shim in states:
            print(f"{shim.state:10} {shim.target}")
        return 0 if all(shim.state == "registered" for shim in states) else 1
    if arguments.undo:
        removed = register.unregister()
        for shim in removed:
            print(f"removed    {shim.target}")
        print("nnU-Net is as it was." if removed else "Nothing was registered.")
        return 0
    for shim in register.register():
        print(f"registered {shim.target}")
    print(
        "nnU-Net now knows -tr OctreeNCATrainer and -pl OctreeNCAPlanner; for large pictures "
        "-preprocessor_name OctreeNCAPreprocessor, and OctreeNCANaturalImage2DIO in dataset.json."
    )
    return 0
