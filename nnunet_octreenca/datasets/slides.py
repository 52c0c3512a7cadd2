"""Slides with masks for nnU-Net: cut into patches, or left whole for training from the files."""

import shutil
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnunet_octreenca.datasets.classes import Classes
from nnunet_octreenca.datasets.frames import RGB, put_picture
from nnunet_octreenca.datasets.raw_dataset import (
    Converted,
    RawDataset,
    Track,
    describe,
    untracked,
)
from nnunet_octreenca.datasets.slide_labels import (
    SlideLabels,
    open_labels,
    sample_locations,
    write_labels,
)
from nnunet_octreenca.datasets.slide_plans import prepare_in_place, preprocessed_or_error
from nnunet_octreenca.datasets.splits import group_folds, held_out
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonMapping, pairing_name
from nnunet_octreenca.images.orientation import note
from nnunet_octreenca.images.pyramid import SlideRegions
from nnunet_octreenca.images.slide_reader import SLIDE_ENDINGS
from nnunet_octreenca.preprocessing.slide_windows import SlideCase

PATCH_SIZE = 320  # pixels, the paper's
PATCHES = 100
LINKS = ("symlink", "copy")
_MASK_ENDINGS = (*SLIDE_ENDINGS, ".geojson")
_MPP_TOLERANCE = 0.1


class SlidePair(NamedTuple):
    """A slide and its mask; without one it can only be tested on."""

    name: str
    image: Path
    mask: Path | None


class Slide(NamedTuple):
    """An open slide at the resolution it is worked at."""

    name: str
    regions: SlideRegions
    downsample: float
    shape: tuple[int, int]
    labels: SlideLabels | None


@dataclass(frozen=True)
class SlideOptions:
    """How slides become a data set.

    Attributes:
        level: of the pyramid to work at; 0 if `mpp` is left out too.
        mpp: microns per pixel to work at, instead; within 10 % of what averaging whole pixels
            of a level gives.
        patch_size: pixels per side.
        patches: of every training slide.
        test: fraction of the slides with masks that are held out for testing, 0 to 1.
        seed: of what is held out, the folds and the patches' places.
        in_place: make no patches, train from the slides themselves.
        link: "symlink" or "copy" the test slides.
        batch_size, settings: of the plans that `in_place` makes.

    Raises:
        InputError: a value that cannot be used.
    """

    level: int | None = None
    mpp: float | None = None
    patch_size: int = PATCH_SIZE
    patches: int = PATCHES
    test: float = 0.0
    seed: int = 0
    in_place: bool = False
    link: str = "symlink"
    batch_size: int | None = None
    settings: JsonMapping = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.level is not None and self.mpp is not None:
            raise InputError("give a level or microns per pixel (mpp), not both")
        if self.patch_size < 16 or self.patches < 1 or self.link not in LINKS:
            raise InputError(
                f"patch size ({self.patch_size}) must be at least 16, patches ({self.patches}) at "
                f"least 1, link ({self.link!r}) one of {', '.join(LINKS)}"
            )


DEFAULTS = SlideOptions()


def convert_slides(
    source: Path,
    target: Path,
    classes: Classes,
    options: SlideOptions = DEFAULTS,
    *,
    overwrite: bool = False,
    track: Track = untracked,
) -> Converted:
    """Write an nnU-Net data set of `images/NAME.svs` and `masks/NAME.tif` (or .png, .geojson).

    Args:
        source: the folder that holds `images` and `masks`.
        target: the new data set's folder.
        classes: of the masks.
        options, overwrite, track: as for `convert_pairs`.

    Raises:
        InputError, OutputError: as `convert_pairs`.
    """
    source = Path(source)
    return convert_pairs(
        find_pairs(source),
        source,
        target,
        classes,
        options,
        kind="slides",
        description=f"slides of {source.resolve().name}",
        overwrite=overwrite,
        track=track,
    )


def find_pairs(source: Path) -> list[SlidePair]:
    """The slides of `images` with the masks of their names in `masks`.

    Raises:
        InputError: no slides, a mask is missing, or a name is there twice.
    """
    images, masks = source / "images", source / "masks"
    if not images.is_dir() or not masks.is_dir():
        raise InputError(f"{source} must hold a folder images and a folder masks")
    masks_of: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(masks.iterdir()):
        if not path.name.startswith(".") and path.suffix.lower() in _MASK_ENDINGS:
            masks_of[pairing_name(path)].append(path)
    pairs: dict[str, SlidePair] = {}
    for image in sorted(images.iterdir()):
        if image.name.startswith(".") or image.suffix.lower() not in SLIDE_ENDINGS:
            continue
        name = pairing_name(image)
        found = masks_of[name]
        if not found:
            raise InputError(
                f"{image} has no mask: {masks / image.stem} with .tif, .png or .geojson is missing"
            )
        if len(found) > 1 or name in pairs:
            twice = found if len(found) > 1 else [pairs[name].image, image]
            raise InputError(
                f"the name {name!r} occurs twice ({twice[0]}, {twice[1].name}); keep one of each"
            )
        pairs[name] = SlidePair(image.stem, image, found[0])
    if not pairs:
        raise InputError(f"{images} contains no slide ({', '.join(SLIDE_ENDINGS)})")
    return list(pairs.values())


def convert_pairs(
    pairs: Sequence[SlidePair],
    source: Path,
    target: Path,
    classes: Classes,
    options: SlideOptions,
    *,
    kind: str,
    description: str,
    overwrite: bool = False,
    track: Track = untracked,
) -> Converted:
    """Write slides that were found, whatever their folders look like.

    Training slides become patches around foreground (PNG), or with `options.in_place` a small
    JSON file each, from which `-tr OctreeNCASlideTrainer` reads the slides themselves. Test slides
    stay whole: imagesTs holds the files, labelsTs their labels as TIFF at the chosen resolution.

    Args:
        pairs: slides and masks.
        source: where they lie.
        target: the new data set's folder.
        classes: of the masks.
        options: how they become a data set.
        kind, description: of the data set.
        overwrite: remove a data set that is there already.
        track: shows progress.

    Raises:
        InputError: a file cannot be read, or a mask is missing, of another size, or holds a value
            that is no class.
        OutputError: the data set exists already, or cannot be written.
        EnvironmentMismatchError: a package is missing, or `in_place` without nnU-Net's folders.
    """
    prepared = preprocessed_or_error(Path(target)) if options.in_place else None
    out = held_out(
        [pair.name for pair in pairs if pair.mask is not None], options.test, options.seed
    )
    request = {
        "kind": kind,
        "foreground": dict(classes.foreground),
        "background": classes.background,
        "ignore": classes.ignore,
        "level": options.level,
        "mpp": options.mpp,
        "patch_size": options.patch_size,
        "patches": options.patches,
        "test": options.test,
        "seed": options.seed,
        "in_place": options.in_place,
        "link": options.link,
    }
    dataset = RawDataset(target, source, request, overwrite)
    notes: list[str] = []
    cases: list[SlideCase] = []
    groups: dict[str, str] = {}
    for pair in track(pairs, kind):
        slide = open_pair(pair, classes, options)
        try:
            if pair.name in out or slide.labels is None:
                _keep_whole(dataset, pair, slide, options.link)
            elif options.in_place:
                cases.append(_case(dataset, slide, classes, options))
                groups[pair.name] = pair.name
            else:
                written = _cut(dataset, slide, classes, options)
                groups.update(dict.fromkeys(written, pair.name))
                if not written:
                    notes.append(f"{pair.name} has no foreground: no patch was cut from it.")
            turned = note(pair.name, slide.regions.orientation, "file's")
            notes += [f"{sentence}." for sentence in turned]
            if slide.labels is not None:
                notes += [f"{pair.name}: {sentence}." for sentence in slide.labels.notes]
        finally:
            slide.regions.close()
    if not groups:
        raise InputError(f"{source} has no slide with foreground to train on")
    splits = group_folds(groups, seed=options.seed)
    if splits is None:
        notes.append("There is a single training slide: train with the fold `all`.")
    else:
        notes.append(dataset.splits_note)
    if out:
        notes.append(f"Held out for testing: {', '.join(sorted(out))}.")
    unlabelled = sum(pair.mask is None for pair in pairs)
    if unlabelled:
        notes.append(f"{unlabelled} slide(s) have no mask: they are test images without labels.")
    content = describe(
        channel_names=RGB,
        labels=classes.labels,
        training=len(groups),
        file_ending=".tif" if options.in_place else ".png",
        description=description,
        overwrite_image_reader_writer="NaturalImage2DIO",
    )
    if prepared is not None:
        notes += prepare_in_place(
            prepared,
            content,
            cases,
            options.patch_size,
            batch_size=options.batch_size,
            settings=options.settings,
        )
    dataset.finish(content, splits)
    return Converted(
        dataset.folder,
        len(groups),
        len(out) + unlabelled,
        "2d",
        tuple(notes),
        options.in_place,
        "0" if splits else "all",
    )


def open_pair(pair: SlidePair, classes: Classes, options: SlideOptions) -> Slide:
    """Open a slide and its mask at the options' resolution.

    Raises:
        InputError: the slide has no such level or resolution, is not RGB, or the mask does not
            fit it.
    """
    regions = SlideRegions(pair.image)
    if regions.dtype != np.uint8 or regions.channels != 3:
        raise InputError(
            f"{pair.image} has {regions.channels} channel(s) of {regions.dtype}; a slide is RGB "
            f"with 8 bits a colour"
        )
    downsample = _downsample(regions, options.level, options.mpp)
    source, factor = regions.source_level(downsample)
    rows, columns = regions.shapes[source]
    shape = (-(-rows // factor), -(-columns // factor))
    labels = None
    if pair.mask is not None:
        corner = regions.corner
        labels = open_labels(pair.mask, shape, downsample, classes, corner=corner)
    return Slide(pair.name, regions, downsample, shape, labels)


def _downsample(regions: SlideRegions, level: int | None, mpp: float | None) -> float:
    if mpp is None:
        wanted = level or 0
        if not 0 <= wanted < len(regions.downsamples):
            raise InputError(
                f"{regions.path} has no level {wanted}; it has 0 to {len(regions.downsamples) - 1}"
            )
        return regions.downsamples[wanted]
    finest = regions.mpp
    if finest is None:
        raise InputError(
            f"{regions.path} does not state its resolution (microns per pixel); give a level"
        )
    choices = [own * max(1, round(mpp / finest / own)) for own in reversed(regions.downsamples)]
    best = min(choices, key=lambda one: abs(one * finest / mpp - 1))
    if abs(best * finest / mpp - 1) > _MPP_TOLERANCE:
        has = ", ".join(f"{d * finest:.3g}" for d in regions.downsamples)
        raise InputError(
            f"{regions.path} has {has} microns per pixel; {mpp} is not a multiple of any of them"
        )
    return best


def _generator(name: str, seed: int) -> np.random.Generator:
    """The draws of a slide depend on its name, not on which others there are."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _foreground(classes: Classes) -> list[int]:
    return list(range(1, len(classes.foreground) + 1))


def _cut(dataset: RawDataset, slide: Slide, classes: Classes, options: SlideOptions) -> list[str]:
    """Write patches around foreground, the classes in turn; their names."""
    assert slide.labels is not None
    size = options.patch_size
    _check_size(slide, size)
    generator = _generator(slide.name, options.seed)
    locations = sample_locations(slide.labels, _foreground(classes), generator)
    names = []
    for number in range(options.patches if locations else 0):
        places = list(locations.values())[number % len(locations)]
        y, x = (
            int(min(max(at - size // 2, 0), n - size))
            for at, n in zip(places[number % len(places)], slide.shape, strict=True)
        )
        name = f"{slide.name}_{number:04d}_y{y}_x{x}"
        names.append(name)
        if dataset.has(f"labelsTr/{name}.png"):
            continue
        image = slide.regions.scaled(slide.downsample, y, x, size, size)
        put_picture(dataset, f"imagesTr/{name}_0000.png", np.rint(image).astype(np.uint8))
        put_picture(dataset, f"labelsTr/{name}.png", slide.labels.window(y, x, size, size))
    return names


def _check_size(slide: Slide, size: int) -> None:
    if min(slide.shape) < size:
        raise InputError(
            f"{slide.regions.path} has {slide.shape[0]} x {slide.shape[1]} pixels at the chosen "
            f"resolution, less than a patch of {size}; give a smaller --patch-size or remove it"
        )


def _case(dataset: RawDataset, slide: Slide, classes: Classes, options: SlideOptions) -> SlideCase:
    """Write a training slide's labels and what describes it."""
    assert slide.labels is not None
    _check_size(slide, options.patch_size)
    labels, described = f"labelsTr/{slide.name}.tif", f"imagesTr/{slide.name}_0000.json"
    if not dataset.has(described):
        source = slide.labels
        dataset.put(labels, lambda file: write_labels(file, source))
        generator = _generator(slide.name, options.seed)
        locations = sample_locations(source, _foreground(classes), generator)
        case = SlideCase(
            slide.name,
            slide.regions.path.resolve(),
            (dataset.folder / labels).resolve(),
            slide.downsample,
            slide.shape,
            {label: places.tolist() for label, places in locations.items()},
        )
        dataset.put(described, case.save)
    return SlideCase.load(dataset.folder / described)


def _keep_whole(dataset: RawDataset, pair: SlidePair, slide: Slide, link: str) -> None:
    name = f"imagesTs/{pair.name}_0000{pair.image.suffix.lower()}"
    dataset.put(name, lambda file: place(pair.image.resolve(), file, link))
    if pair.image.suffix.lower() == ".mrxs":  # its pixels are in a folder of its name
        pixels = pair.image.resolve().with_suffix("")
        dataset.put(name.removesuffix(".mrxs"), lambda file: place(pixels, file, link))
    labels = slide.labels
    if labels is not None:
        dataset.put(f"labelsTs/{pair.name}.tif", lambda file: write_labels(file, labels))


def place(source: Path, target: Path, link: str) -> None:
    """Put a file or folder somewhere: "symlink" to it or "copy" it."""
    if link == "symlink":
        target.symlink_to(source)
    elif source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
