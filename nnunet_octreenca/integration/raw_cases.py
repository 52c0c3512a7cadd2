"""The training cases of a data set in nnUNet_raw, by nnU-Net's rules."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from nnunet_octreenca.files import read_json


class CaseFiles(NamedTuple):
    """Files of a training case; they need not be there.

    Attributes:
        images: one a channel.
        truth: its label map.
    """

    images: tuple[Path, ...]
    truth: Path


def training_cases(raw: Path) -> dict[str, CaseFiles]:
    """Every training case by its name: dataset.json's list, or what lies in imagesTr.

    nnU-Net's own function starts twelve processes for this.

    Args:
        raw: the data set's folder in nnUNet_raw.

    Raises:
        InputError: dataset.json is missing or damaged.
    """
    content = read_json(raw / "dataset.json", "the data set must be in nnUNet_raw")
    listed = content.get("dataset")
    if isinstance(listed, dict):
        return {
            name: CaseFiles(
                tuple(raw / os.path.expandvars(path) for path in own["images"]),
                raw / os.path.expandvars(own["label"]),
            )
            for name, own in listed.items()
        }
    ending = str(content.get("file_ending"))
    pattern = re.compile(r"(.+)_[0-9]{4}" + re.escape(ending))
    found: dict[str, tuple[Path, ...]] = {}
    for path in sorted((raw / "imagesTr").glob("*")):
        match = pattern.fullmatch(path.name)
        if match:
            found[match[1]] = (*found.get(match[1], ()), path)
    return {
        name: CaseFiles(images, raw / "labelsTr" / f"{name}{ending}")
        for name, images in found.items()
    }
