"""`nnunet_octreenca install`: an exported model into nnUNet_results, checked first."""

import argparse

from nnunet_octreenca.cli.termination import terminated

HELP = "install an exported model into nnUNet_results, after checking it"
EXAMPLE = """\
examples:
  nnunet_octreenca install model.zip
  nnunet_octreenca install model.zip --force          replace a model of the same name

MODEL.zip is what `nnUNetv2_export_model_to_zip` writes. What `nnunet_octreenca check` finds wrong
is not installed, nor are paths that leave the folder, links, or files that unpack to very many
bytes. The model is installed whole or not at all.

exit codes: 0 installed, 1 refused (a sentence says why), 2 wrong arguments
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("model", metavar="MODEL.zip", help="exported model")
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace what is installed under the same name, with all of its folds",
    )
    parser.add_argument(
        "--max_size",
        metavar="SIZE",
        help="allow a model whose files take so much, e.g. 20G (default: 10G, and at most 100 "
        "times the zip file)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Install; returns the exit code.

    Raises:
        OctreeNCAError: the model was refused; nothing has changed.
    """
    from nnunet_octreenca.inference.memory_plan import parse_memory
    from nnunet_octreenca.integration.model_install import install_model, results_folder

    max_size = None if arguments.max_size is None else parse_memory(arguments.max_size)
    with terminated():
        new = install_model(
            arguments.model, results_folder(), force=arguments.force, max_size=max_size
        )
    for path in new:
        print(f"installed {path}")
    models = [path for path in new if (path / "plans.json").is_file()]
    if models:
        print(f"Predict with `nnunet_octreenca predict -m {models[0]} -i IN -o OUT`.")
    return 0
