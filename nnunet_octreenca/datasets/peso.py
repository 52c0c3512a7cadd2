"""PESO, prostate epithelium on H&E slides, for nnU-Net.

Published layout (Bulten et al. 2019): `pds_N_HE.tif`, a pyramid of 0.24 microns per pixel, and
for the training slides `pds_N_HE_training_mask.tif` with 2 for epithelium and 0 or 1 for all else.
"""

from glob import escape
from pathlib import Path

from nnunet_octreenca.datasets.classes import Classes
from nnunet_octreenca.datasets.raw_dataset import Converted, Track, untracked
from nnunet_octreenca.datasets.slides import SlideOptions, SlidePair, convert_pairs
from nnunet_octreenca.errors import InputError

CLASSES = Classes({"epithelium": (2,)}, background=(0, 1))
OPTIONS = SlideOptions(level=1, test=0.2)  # 0.48 microns per pixel, the paper's


def convert_peso(
    source: Path,
    target: Path,
    options: SlideOptions = OPTIONS,
    *,
    overwrite: bool = False,
    track: Track = untracked,
) -> Converted:
    """Write an nnU-Net data set of PESO.

    Slides without a mask are written as test images without labels.

    Args:
        source: the folder of slides and masks, in any folders below it.
        target: the new data set's folder.
        options, overwrite, track: as for `slides.convert_pairs`.

    Raises:
        InputError, OutputError: as `convert_pairs`.
    """
    return convert_pairs(
        find_slides(Path(source)),
        Path(source),
        target,
        CLASSES,
        options,
        kind="peso",
        description="PESO, prostate epithelium, CC BY-NC-SA 4.0",
        overwrite=overwrite,
        track=track,
    )


def find_slides(source: Path) -> list[SlidePair]:
    """The slides by name, with their masks.

    Raises:
        InputError: no slides, no masks, or two masks for one slide.
    """
    pairs = []
    for slide in sorted(source.rglob("pds_*_HE.tif")):
        name = slide.stem.removesuffix("_HE")
        masks = sorted(source.rglob(f"{escape(slide.stem)}_*mask*.tif"))
        if len(masks) > 1:
            raise InputError(
                f"{slide.name} has {len(masks)} masks: {', '.join(map(str, masks))}; keep the one "
                f"to use"
            )
        pairs.append(SlidePair(name, slide, masks[0] if masks else None))
    if not pairs:
        raise InputError(f"{source} holds no slide called pds_N_HE.tif")
    if all(pair.mask is None for pair in pairs):
        raise InputError(
            f"{source} holds no pds_N_HE_training_mask.tif: unpack the training masks there"
        )
    return pairs
