"""`nnunet_octreenca explain`: the automaton at work on a case, as an animation or a figure."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

HELP = "watch the automaton at work on one case: an animation, or a figure of the octree"
EXAMPLE = """\
examples:
  nnunet_octreenca explain -m MODEL_FOLDER -i case_0000.nii.gz -o case.gif
  nnunet_octreenca explain -m MODEL_FOLDER -i image.png -o image.mp4 -f 0 --every 2 --fps 12
  nnunet_octreenca explain -m MODEL_FOLDER -i image.png -o octree.svg

The animation goes from the coarsest level to the finest, step by step: the level's image, the
hidden channels (violet below 0, orange above), and the classes, as opaque as they are probable,
where logits were trained: on all levels, or on the finest alone (`loss_on_levels` of the plans).
Of a volume the middle planes are shown. A file that ends in .png or .svg is a figure of the levels
with their cells, their steps and how far they see.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "-m", required=True, metavar="MODEL_FOLDER", help="of a training, or zoo:NAME"
    )
    parser.add_argument("-i", required=True, metavar="CASE", help="image file, or folder of a case")
    parser.add_argument(
        "-o", required=True, metavar="FILE", help=".gif or .mp4 (animation), .png or .svg (figure)"
    )
    parser.add_argument("-f", metavar="FOLD", help="fold to watch (default: the first)")
    parser.add_argument(
        "-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint (default: final)"
    )
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="steps between pictures (default: 1)"
    )
    parser.add_argument("--fps", type=int, default=8, help="pictures a second (default: 8)")
    parser.add_argument("--width", type=int, default=960, help="pixels (default: 960)")
    parser.add_argument(
        "--memory", metavar="SIZE", help="memory limit of the process (default: what is free)"
    )
    parser.add_argument(
        "-device", help="cuda, cpu or mps (default: cuda if there is one, else cpu)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Write the animation or the figure.

    Raises:
        OctreeNCAError: the case cannot be watched, or the file not be written.
    """
    from nnunet_octreenca.cli.predict import usable_device
    from nnunet_octreenca.inference.memory_plan import parse_memory
    from nnunet_octreenca.integration.model import load_model
    from nnunet_octreenca.prediction.explain import check_target, explain

    target = Path(arguments.o)
    check_target(target, overwrite=arguments.overwrite)
    memory = None if arguments.memory is None else parse_memory(arguments.memory)
    model = load_model(
        arguments.m,
        folds=None if arguments.f is None else [arguments.f],
        checkpoint=arguments.chk,
        device=usable_device(arguments.device),
    )

    def track(items: Iterable[int], description: str, count: int) -> Iterator[int]:
        if arguments.quiet or not sys.stderr.isatty():
            yield from items
            return
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(
            items, description, total=count, console=Console(stderr=True), transient=True
        )

    explain(
        Path(arguments.i),
        model,
        target,
        every=arguments.every,
        fps=arguments.fps,
        width=arguments.width,
        memory=memory,
        overwrite=arguments.overwrite,
        track=track,
    )
    print(f"{target}: fold {model.folds[0]}, {target.stat().st_size / 1e6:.2g} MB")
    return 0
