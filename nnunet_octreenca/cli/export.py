"""`nnunet_octreenca export`: a model as one file for programs without this package."""

import argparse
from pathlib import Path

from nnunet_octreenca.errors import InputError

HELP = "write a model as one file: a web page, or ONNX"
EXAMPLE = """\
examples:
  nnunet_octreenca export -m MODEL_FOLDER -o model.html --title Vessels --example eye.png
  nnunet_octreenca export -m MODEL_FOLDER -o model.onnx -f 0 1 2
  nnunet_octreenca export -m zoo:phantoms -o phantoms.onnx

The ending decides: .html is a page that segments images in a browser, without a connection; .onnx
is the network from the preprocessed image to labels, for onnxruntime in any language. An existing
file is replaced.
"""
_ENDINGS = (".html", ".onnx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags, `predict`'s names where it has them."""
    parser.add_argument(
        "-m",
        required=True,
        metavar="MODEL_FOLDER",
        help="TRAINER__PLANS__CONFIGURATION folder, or zoo:NAME (see `nnunet_octreenca zoo`)",
    )
    parser.add_argument(
        "-o", required=True, metavar="FILE", help="the file to write, .html or .onnx"
    )
    parser.add_argument(
        "-f", nargs="+", metavar="FOLD", help="folds to ensemble (default: all trained)"
    )
    parser.add_argument(
        "-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint (default: final)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="seeds of the fire draws, whose logits are averaged (default: the plans'); ONNX takes "
        "seeds as an input, and these are written to its metadata",
    )
    parser.add_argument(
        "--title",
        help="of page or file (default: data set and configuration, or the NAME of zoo:NAME)",
    )
    parser.add_argument(
        "--example", metavar="IMAGE", help="an image that the page offers to segment (.html)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the file; returns the exit code.

    Raises:
        InputError: another ending, or what is no model.
        OutputError: the file cannot be written.
        EnvironmentMismatchError: onnx is not installed.
    """
    from nnunet_octreenca.integration.model import load_model
    from nnunet_octreenca.integration.zoo import PREFIX

    path = Path(arguments.o)
    ending = path.suffix.lower()
    if ending not in _ENDINGS:
        raise InputError(
            f"-o {path} ends in {path.suffix or 'nothing'}; give a name that ends in "
            f"{' or '.join(_ENDINGS)}, which decides what is written"
        )
    title = arguments.title
    if title is None and arguments.m.startswith(PREFIX):
        title = arguments.m.removeprefix(PREFIX)
    if ending == ".onnx" and arguments.example is not None:
        raise InputError(f"--example is for pages; leave it out, or write .html instead of {path}")
    model = load_model(arguments.m, folds=arguments.f, checkpoint=arguments.chk)
    if ending == ".html":
        from nnunet_octreenca.export.html import write_html

        example = None if arguments.example is None else Path(arguments.example)
        write_html(model, path, title=title, example=example, seeds=arguments.seeds)
    else:
        from nnunet_octreenca.export.onnx import write_onnx

        write_onnx(model, path, title=title, seeds=arguments.seeds)
    print(f"{path}: {path.stat().st_size:,} bytes")
    return 0
