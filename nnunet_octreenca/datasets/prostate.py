"""The Medical Segmentation Decathlon's prostate (Task05) for nnU-Net.

Published layout (Antonelli et al. 2022): `imagesTr/prostate_XX.nii.gz` of four axes, T2 and ADC
along the last; `labelsTr/prostate_XX.nii.gz` with 1 the peripheral and 2 the transition zone;
`imagesTs/` without labels.
"""

from pathlib import Path
from typing import Any

import numpy as np

from nnunet_octreenca.datasets.raw_dataset import (
    Converted,
    RawDataset,
    Track,
    describe,
    untracked,
)
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import require_utf8

MODALITIES = ("T2", "ADC")
CHANNELS = {"t2": MODALITIES[:1], "both": MODALITIES}
ZONES = {
    "merge": {"background": 0, "prostate": 1},
    "keep": {"background": 0, "peripheral_zone": 1, "transition_zone": 2},
}
_VALUES = (0, 1, 2)
_FOLDER = "Task05_Prostate"


def convert_prostate(
    source: Path,
    target: Path,
    *,
    channels: str = "t2",
    zones: str = "merge",
    overwrite: bool = False,
    track: Track = untracked,
) -> Converted:
    """Write an nnU-Net data set of Task05_Prostate.

    Args:
        source: the unpacked folder.
        target: the new data set's folder.
        channels: "t2", as the paper has it, or "both" T2 and ADC.
        zones: "merge" both into one label, or "keep" them.
        overwrite: remove a data set that is there already.
        track: shows progress.

    Raises:
        InputError: a file is missing, damaged, of another size, or holds another value.
        OutputError: the data set exists already, or cannot be written.
    """
    if channels not in CHANNELS or zones not in ZONES:
        raise InputError(
            f"channels ({channels!r}) is one of {', '.join(CHANNELS)}, zones ({zones!r}) one of "
            f"{', '.join(ZONES)}"
        )
    source = Path(source)
    if (source / _FOLDER).is_dir():
        source = source / _FOLDER
    training, test = (_cases(source, part) for part in ("imagesTr", "imagesTs"))
    if not training:
        raise InputError(
            f"{source} holds no imagesTr/prostate_XX.nii.gz; give the folder that "
            f"{_FOLDER}.tar unpacks to"
        )
    for case in training:
        if not (source / "labelsTr" / case).is_file():
            raise InputError(f"{source / 'labelsTr' / case} is missing; unpack the archive again")
    dataset = RawDataset(
        target, source, {"kind": "prostate", "channels": channels, "zones": zones}, overwrite
    )
    jobs = [("Tr", case) for case in training] + [("Ts", case) for case in test]
    for part, case in track(jobs, "prostate"):
        _convert_case(dataset, source, part, case, CHANNELS[channels], merge=zones == "merge")
    dataset.finish(
        describe(
            channel_names=CHANNELS[channels],
            labels=ZONES[zones],
            training=len(training),
            file_ending=".nii.gz",
            description="Medical Segmentation Decathlon, Task05_Prostate, CC BY-SA 4.0",
        )
    )
    return Converted(
        dataset.folder,
        len(training),
        len(test),
        "3d_fullres",
        ("The folds are nnU-Net's own.", "The test cases have no labels: MSD publishes none."),
    )


def _cases(source: Path, part: str) -> list[str]:
    return sorted(path.name for path in (source / part).glob("prostate_*.nii.gz"))


def _convert_case(
    dataset: RawDataset,
    source: Path,
    part: str,
    case: str,
    channels: tuple[str, ...],
    *,
    merge: bool,
) -> None:
    import SimpleITK as sitk

    name = case.removesuffix(".nii.gz")
    last = f"images{part}/{name}_{len(channels) - 1:04d}" if part == "Ts" else f"labelsTr/{name}"
    if dataset.has(f"{last}.nii.gz"):
        return
    path = source / f"images{part}" / case
    image = _read(path)
    size = image.GetSize()
    if len(size) != 4 or size[3] != len(MODALITIES):
        raise InputError(
            f"{path} has the size {size} (x, y, z, channels); Task05's images have four axes, the "
            f"last of them {len(MODALITIES)}, T2 and ADC"
        )

    def writer(volume: Any) -> Any:
        return lambda file: sitk.WriteImage(volume, str(file), useCompression=True)

    for number in range(len(channels)):
        volume = sitk.Extract(image, [*size[:3], 0], [0, 0, 0, number])
        dataset.put(f"images{part}/{name}_{number:04d}.nii.gz", writer(volume))
    if part == "Ts":
        return
    path = source / "labelsTr" / case
    labels = _read(path)
    if labels.GetSize() != size[:3]:
        raise InputError(f"{path} has the size {labels.GetSize()}, but its image {size[:3]}")
    values = sitk.GetArrayFromImage(labels)
    unknown = sorted(set(np.unique(values).tolist()) - set(_VALUES))
    if unknown:
        raise InputError(f"{path} holds the value(s) {unknown}; Task05's labels are 0, 1 and 2")
    zones = (values > 0 if merge else values).astype(np.uint8)
    written = sitk.GetImageFromArray(zones)
    written.CopyInformation(labels)
    dataset.put(f"labelsTr/{name}.nii.gz", writer(written))


def _read(path: Path) -> Any:
    import SimpleITK as sitk

    require_utf8(path)
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(
            f"{path} cannot be read; it may be truncated: unpack the archive again ({error})"
        ) from error
