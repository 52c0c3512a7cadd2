"""`nnunet_octreenca convert`."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonObject

_T = TypeVar("_T")

if TYPE_CHECKING:
    from nnunet_octreenca.datasets.classes import Classes
    from nnunet_octreenca.datasets.raw_dataset import Converted
    from nnunet_octreenca.datasets.slides import SlideOptions

HELP = "convert MSD prostate, PESO, CholecSeg8k, slides or frames into nnU-Net data sets"
EXAMPLE = """\
examples:
  nnunet_octreenca convert prostate -i Task05_Prostate -d 105
  nnunet_octreenca convert peso -i PESO -d 106
  nnunet_octreenca convert cholecseg8k -i CholecSeg8k -d 107 --classes all
  nnunet_octreenca convert slides -i FOLDER -d 108 --class tumour=1 --mpp 0.5 --in-place
  nnunet_octreenca convert frames -i FOLDER -d 109 --class vessel=255 --dimension 2

FOLDER contains `images` and `masks`, with matching file names. See `convert KIND --help`.
Re-run an interrupted command to resume.
"""

_NAMES = {
    "prostate": "Prostate",
    "peso": "PESO",
    "cholecseg8k": "CholecSeg8k",
    "slides": "Slides",
    "frames": "Frames",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A parser for each kind of data."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    def kind(name: str, text: str) -> argparse.ArgumentParser:
        one = kinds.add_parser(name, help=text, description=text)
        one.add_argument("-i", required=True, type=Path, metavar="FOLDER", help="folder to convert")
        where = one.add_mutually_exclusive_group(required=True)
        where.add_argument("-d", metavar="DATASET", help="data set number or name, in nnUNet_raw")
        where.add_argument(
            "-o",
            type=Path,
            metavar="FOLDER",
            help="write the data set to this folder instead of nnUNet_raw",
        )
        one.add_argument(
            "--name",
            default=_NAMES[name],
            help=f"data set name, after the number (default: {_NAMES[name]})",
        )
        one.add_argument("--overwrite", action="store_true", help="replace an existing data set")
        return one

    prostate = kind("prostate", "MSD Task05_Prostate: MRI, T2 and ADC, two zones")
    prostate.add_argument(
        "--channels",
        choices=("t2", "both"),
        default="t2",
        help="MRI sequences to use (default: t2, as in the paper)",
    )
    prostate.add_argument(
        "--zones",
        choices=("merge", "keep"),
        default="merge",
        help="merge both zones into one prostate label (default), or keep them",
    )

    peso = kind("peso", "PESO: whole-slide images of prostate tissue, epithelium")
    _add_slide_arguments(peso, level=1, test=0.2)

    cholec = kind("cholecseg8k", "CholecSeg8k: laparoscopic video, organs and instruments")
    cholec.add_argument(
        "--classes",
        choices=("paper", "all"),
        default="paper",
        help="five organs and background (default), or all twelve classes. The paper does "
        "not name its five classes; here they are abdominal wall, liver, gastrointestinal tract, "
        "fat and gallbladder",
    )
    _add_class(cholec, "instead of --classes")
    _add_frame_arguments(cholec, size="432x240", test=0.2)
    cholec.add_argument(
        "--temporal-split",
        metavar="TRAIN/TEST",
        help="for a single clip: frames for training and for testing, such as 561-608/617-632",
    )

    slides = kind("slides", "slides with masks (TIFF, PNG, or QuPath's GeoJSON)")
    _add_class(
        slides,
        "repeat for each class; for GeoJSON masks, NAME selects the annotations",
        required=True,
    )
    _add_values(slides)
    _add_slide_arguments(slides, level=None, test=0.0)

    frames = kind("frames", "video frames or pictures with masks")
    _add_class(frames, "repeat for each class", required=True)
    _add_values(frames)
    _add_frame_arguments(frames, size=None, test=0.0)


def _add_class(parser: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    parser.add_argument(
        "--class",
        dest="own",
        action="append",
        default=[],
        required=required,
        metavar="NAME=VALUE[,VALUE]",
        help=f"class name and its mask values; {text}",
    )


def _add_values(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--background",
        default="0",
        metavar="VALUE[,VALUE]",
        help="mask values of the background (default: 0)",
    )
    parser.add_argument(
        "--ignore",
        metavar="VALUE[,VALUE]",
        help="mask values of unannotated pixels (default: none)",
    )


def _add_slide_arguments(
    parser: argparse.ArgumentParser, *, level: int | None, test: float
) -> None:
    parser.add_argument(
        "--level", type=int, default=level, help=f"pyramid level to read (default: {level or 0})"
    )
    parser.add_argument(
        "--mpp",
        type=float,
        help="resolution to read, in microns per pixel, instead of --level (tolerance: 10 %%)",
    )
    parser.add_argument(
        "--patch-size", type=int, default=320, help="side of a patch in pixels (default: 320)"
    )
    parser.add_argument(
        "--patches", type=int, default=100, help="patches per training slide (default: 100)"
    )
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="train from the slides themselves (OctreeNCASlideTrainer) instead of patches",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --in-place: set a key of the plans' octreenca block, e.g. num_epochs=100 "
        "(repeatable)",
    )
    parser.add_argument(
        "--batch-size", type=int, help="with --in-place: patches per training step (default: 3)"
    )
    parser.add_argument(
        "--link",
        choices=("symlink", "copy"),
        default="symlink",
        help="how to place test slides in imagesTs (default: symlink)",
    )
    _add_split_arguments(parser, test, "slides")


def _add_frame_arguments(parser: argparse.ArgumentParser, *, size: str | None, test: float) -> None:
    parser.add_argument(
        "--dimension",
        type=int,
        choices=(2, 3),
        default=3,
        help="3: clips as volumes of axes (frame, y, x) (default); 2: single frames",
    )
    parser.add_argument(
        "--size",
        default=size,
        metavar="WxH",
        help=f"resize frames to this size in pixels, or 'original' (default: {size or 'original'})",
    )
    parser.add_argument(
        "--clip-length",
        type=int,
        default=80,
        help="maximum number of frames per volume (default: 80)",
    )
    _add_split_arguments(parser, test, "videos")


def _add_split_arguments(parser: argparse.ArgumentParser, test: float, what: str) -> None:
    parser.add_argument(
        "--test",
        type=float,
        default=test,
        metavar="FRACTION",
        help=f"fraction of the {what} held out for testing (default: {test:g})",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="random seed of the held-out set, folds and patches (default: 0)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert, then print what was written and the next commands."""
    from nnunet_octreenca.datasets.raw_dataset import target_folder

    target = arguments.o or target_folder(arguments.d, arguments.name)
    if not arguments.i.is_dir():
        raise InputError(f"the folder {arguments.i} does not exist")
    converted = _convert(arguments, target)
    print(f"{converted.folder}: {converted.training} training and {converted.test} test case(s).")
    for note in converted.notes:
        print(note)
    print("Next:")
    for line in next_commands(converted, preset(arguments)):
        print(f"  {line}")
    return 0


def _convert(arguments: argparse.Namespace, target: Path) -> "Converted":
    common: JsonObject = {"overwrite": arguments.overwrite, "track": progress}
    if arguments.kind == "prostate":
        from nnunet_octreenca.datasets.prostate import convert_prostate

        return convert_prostate(
            arguments.i, target, channels=arguments.channels, zones=arguments.zones, **common
        )
    if arguments.kind == "peso":
        from nnunet_octreenca.datasets.peso import convert_peso

        return convert_peso(arguments.i, target, _slide_options(arguments), **common)
    if arguments.kind == "slides":
        from nnunet_octreenca.datasets.slides import convert_slides

        return convert_slides(
            arguments.i, target, _classes(arguments), _slide_options(arguments), **common
        )
    common |= {"test": arguments.test, "seed": arguments.seed}
    from nnunet_octreenca.datasets.frames import FrameLayout, convert_frames

    common["layout"] = FrameLayout(
        arguments.dimension, parse_size(arguments.size), arguments.clip_length
    )
    if arguments.kind == "frames":
        return convert_frames(arguments.i, target, _classes(arguments), **common)
    from nnunet_octreenca.datasets.cholecseg8k import cholec_classes, convert_cholecseg8k
    from nnunet_octreenca.datasets.classes import parse_pairs

    classes = cholec_classes(arguments.classes, parse_pairs(arguments.own))
    return convert_cholecseg8k(
        arguments.i, target, classes=classes, temporal_split=arguments.temporal_split, **common
    )


def _slide_options(arguments: argparse.Namespace) -> "SlideOptions":
    from nnunet_octreenca.cli.extend_plans import parse_settings
    from nnunet_octreenca.datasets.slides import SlideOptions

    if not arguments.in_place and (arguments.set or arguments.batch_size):
        raise InputError("--set and --batch-size are for --in-place, which makes the plans")
    return SlideOptions(
        # PESO's level is a default: a resolution that was asked for counts.
        level=None if arguments.mpp is not None else arguments.level,
        mpp=arguments.mpp,
        patch_size=arguments.patch_size,
        patches=arguments.patches,
        test=arguments.test,
        seed=arguments.seed,
        in_place=arguments.in_place,
        link=arguments.link,
        batch_size=arguments.batch_size,
        settings=parse_settings(arguments.set),
    )


def _classes(arguments: argparse.Namespace) -> "Classes":
    from nnunet_octreenca.datasets.classes import Classes, parse_pairs, parse_values

    return Classes(
        parse_pairs(arguments.own),
        parse_values(arguments.background, "--background"),
        parse_values(arguments.ignore, "--ignore") if arguments.ignore else (),
    )


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(width, height) of "WxH"; None of "original" or nothing.

    Raises:
        InputError: something else.

    >>> parse_size("432x240")
    (432, 240)
    """
    if text in (None, "original"):
        return None
    width, _, height = str(text).partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise InputError(f"--size {text} must be WxH in pixels, such as 432x240, or original")
    return int(width), int(height)


def progress(items: Iterable[_T], description: str) -> Iterator[_T]:
    """A progress bar over items."""
    from rich.progress import track

    yield from track(list(items), description=description)


def preset(arguments: argparse.Namespace) -> str | None:
    """The paper's set-up for data that were converted as the paper has them."""
    if arguments.kind == "prostate":
        return "radiology"
    if arguments.kind == "peso":
        return "pathology" if arguments.patch_size == 320 else None
    if arguments.kind == "cholecseg8k" and arguments.temporal_split is None:
        whole = (arguments.dimension, arguments.size, arguments.clip_length)
        return "surgery" if whole == (3, "432x240", 80) else None
    return None


def next_commands(converted: "Converted", preset: str | None) -> list[str]:
    """What to type to train on a data set, with one of the paper's presets or without."""
    number = converted.folder.name.removeprefix("Dataset").split("_")[0]
    dataset = str(int(number)) if number.isdigit() else "DATASET"
    configuration, fold = converted.configuration, converted.fold
    trainer = "OctreeNCASlideTrainer" if converted.in_place else "OctreeNCATrainer"
    train = f"nnUNetv2_train {dataset} {configuration} {fold} -tr {trainer} -p nnUNetOctreeNCAPlans"
    if converted.in_place:
        return ["nnunet_octreenca register", train]
    return [
        "nnunet_octreenca register",
        f"nnUNetv2_plan_and_preprocess -d {dataset} -c {configuration} --verify_dataset_integrity",
        f"nnunet_octreenca extend_plans -d {dataset}" + (f" --preset {preset}" if preset else ""),
        train,
    ]
