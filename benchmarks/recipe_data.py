"""The data sets that recipes are compared on, in nnU-Net's layout, each with one fixed split.

Fold 0 of every data set is the public split: by patient where a patient has several images, by
time in a video. Looked for in a folder, in $OCTREENCA_DATA or in ../shared/data.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from hippocampus import make_raw as make_hippocampus
from minutes_of_training import find_data, run
from numpy.typing import NDArray
from real_images import make_vessels

from nnunet_octreenca.datasets.phantoms import make_phantoms

CLIP_SPLIT = "561-608/617-632"


class DataSet(NamedTuple):
    """One of them.

    Attributes:
        number: nnU-Net's, of the folder `DatasetNNN_Name`.
        title: the name in that folder.
        configuration: nnU-Net's, that is trained.
        source: folder among the data, "." of several; "" where it is made.
        make: writes the raw data set and returns the cases that fold 0 validates on, None for
            nnU-Net's own fold 0.
    """

    number: int
    title: str
    configuration: str
    source: str
    make: Callable[[Path, Path], list[str] | None]

    @property
    def folder(self) -> str:
        """Of nnU-Net's, in its three places."""
        return f"Dataset{self.number:03d}_{self.title}"


def describe(raw: Path, channels: Sequence[str], labels: Sequence[str], ending: str) -> None:
    """Write dataset.json for the cases that lie in labelsTr."""
    description = {
        "channel_names": dict(zip(map(str, range(len(channels))), channels, strict=True)),
        "labels": {"background": 0, **{name: n for n, name in enumerate(labels, start=1)}},
        "numTraining": len(list((raw / "labelsTr").glob(f"*{ending}"))),
        "file_ending": ending,
    }
    (raw / "dataset.json").write_text(json.dumps(description, indent=4))


def hippocampus(source: Path, raw: Path) -> None:
    """Brain MRI, 208 cases; nnU-Net's fold 0: 166 to train on, 42 to validate on."""
    make_hippocampus(source, raw.parent, None)


def acdc(source: Path, raw: Path) -> list[str]:
    """Cardiac MRI, 12 patients, nominal spacing: the first 8 to train on, 4 to validate on."""
    import h5py

    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    names = []
    for path in sorted(source.glob("*.h5")):
        with h5py.File(path) as file:
            image, label = file["image"][:].astype(np.float32), file["label"][:].astype(np.uint8)
        for values, place in (
            (image, raw / "imagesTr" / f"{path.stem}_0000.nii.gz"),
            (label, raw / "labelsTr" / f"{path.stem}.nii.gz"),
        ):
            volume = sitk.GetImageFromArray(values)
            volume.SetSpacing((1.5, 1.5, 10.0))
            sitk.WriteImage(volume, str(place))
        names.append(path.stem)
    describe(raw, ["MRI"], ["right_ventricle", "myocardium", "left_ventricle"], ".nii.gz")
    return names[8:]


def save_vessels(mask: Path, label: Path) -> None:
    """A reader's mask of CHASE_DB1, white on black, as a label map."""
    from PIL import Image

    vessel: NDArray[np.bool_] = np.asarray(Image.open(mask).convert("L")) > 127
    Image.fromarray(vessel.astype(np.uint8)).save(label)


def chase_db1(source: Path, raw: Path) -> list[str]:
    """Fundus photographs of 10 children: both eyes of 6 to train on, of 4 to validate on."""
    from PIL import Image

    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    names = []
    for path in sorted((source / "images").iterdir()):
        mask = source / "labels" / f"{path.stem}_1stHO.png"
        save_vessels(mask, raw / "labelsTr" / f"{path.stem}.png")
        Image.open(path).convert("RGB").save(raw / "imagesTr" / f"{path.stem}_0000.png")
        names.append(path.stem)
    describe(raw, ["rgb_to_0_1"] * 3, ["vessel"], ".png")
    children = sorted({name[:-1] for name in names})  # Image_01L, Image_01R
    return [name for name in names if name[:-1] in children[6:]]


def hrf(source: Path, raw: Path) -> list[str]:
    """Fundus photographs of 3504 x 2336: 8 to train on, 1 to validate on."""
    make_vessels(source, raw)
    return _join(raw)


def vessels(source: Path, raw: Path) -> list[str]:
    """CHASE_DB1, both eyes of 6 children to train on; of 4 and HRF at half size to validate on.

    HRF comes from another camera, from adults, healthy and ill: what it says is how far a model of
    CHASE_DB1 carries. Nothing is trained on it, because our copy of its vessel labels (Hemelings
    et al.) names no licence, and the model is given away.

    A pixel of CHASE_DB1 is about 1/32 of a degree of the eye's view (30 degrees on 950 pixels), one
    of HRF 1/54 (60 degrees on 3,250); halved, HRF's vessels are 5.1 pixels wide on average and
    CHASE_DB1's 6.7 (area of the labels over length of their skeletons).
    """
    from PIL import Image

    held_out = chase_db1(source / "chase_db1", raw)
    for path in sorted((source / "hrf_av" / "images").iterdir()):
        mask = Image.open(source / "hrf_av" / "labels" / f"{path.stem}_AVmanual.png").convert("RGB")
        vessel: NDArray[np.bool_] = np.asarray(mask).max(-1) > 127
        rows, columns = (size // 2 for size in vessel.shape)
        quarters = vessel[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2)
        label = Image.fromarray((quarters.mean((1, 3)) >= 0.5).astype(np.uint8))
        image = Image.open(path).convert("RGB").reduce(2)
        image.save(raw / "imagesTr" / f"hrf_{path.stem}_0000.png")
        label.save(raw / "labelsTr" / f"hrf_{path.stem}.png")
        held_out.append(f"hrf_{path.stem}")
    describe(raw, ["rgb_to_0_1"] * 3, ["vessel"], ".png")
    return held_out


def clip(source: Path, raw: Path) -> list[str]:
    """One clip of laparoscopic video, five classes: the first 48 frames, and 16 later ones."""
    command = ["nnunet_octreenca", "convert", "cholecseg8k", "-i", str(source), "-o", str(raw)]
    run([*command, "--temporal-split", CLIP_SPLIT], raw.parent / "convert.log")
    return _join(raw)


def _join(raw: Path) -> list[str]:
    """Move the test cases among the training cases; their names."""
    names = []
    for kind in ("images", "labels"):
        for path in sorted((raw / f"{kind}Ts").iterdir()):
            path.rename(raw / f"{kind}Tr" / path.name)
            if kind == "labels":
                names.append(path.name.split(".")[0])
        (raw / f"{kind}Ts").rmdir()
    description = json.loads((raw / "dataset.json").read_text())
    description["numTraining"] = len(list((raw / "labelsTr").iterdir()))
    (raw / "dataset.json").write_text(json.dumps(description, indent=4))
    return names


def phantoms(source: Path, raw: Path) -> list[str]:
    """Made volumes with a lesion of a few voxels: 24 to train on, 12 to validate on."""
    make_phantoms(raw, training=36, test=0, seed=13)
    return [f"phantom_{number:03d}" for number in range(24, 36)]


DATA_SETS = {
    "hippocampus": DataSet(4, "Hippocampus", "3d_fullres", "hippocampus", hippocampus),
    "acdc": DataSet(27, "ACDC", "3d_fullres", "acdc", acdc),
    "chase_db1": DataSet(31, "CHASE", "2d", "chase_db1", chase_db1),
    "hrf": DataSet(32, "HRF", "2d", "hrf_av", hrf),
    "clip": DataSet(33, "Clip", "2d", "cholecseg8k_clip", clip),
    "clip-3d": DataSet(33, "Clip", "3d_fullres", "cholecseg8k_clip", clip),
    "phantoms": DataSet(34, "Phantoms", "3d_fullres", "", phantoms),
    "vessels": DataSet(35, "Vessels", "2d", ".", vessels),
}


def prepare(name: str, work: Path, data: str | None) -> Path:
    """Make a data set and nnU-Net's plans in `work`, unless they are there.

    Sets nnU-Net's environment variables to the folders in `work`.

    Returns:
        The folder of the preprocessed data set.
    """
    chosen = DATA_SETS[name]
    for place in ("raw", "preprocessed", "results"):
        (work / place).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{place}"] = str(work / place)
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    os.environ.setdefault("nnUNet_n_proc_DA", "1")
    preprocessed = work / "preprocessed" / chosen.folder
    done = preprocessed / f"prepared_{chosen.configuration}"
    if done.exists():
        return preprocessed
    raw = work / "raw" / chosen.folder
    marked = work / "raw" / f"{chosen.folder}.json"  # made, with its validation cases
    if not marked.exists():
        shutil.rmtree(raw, ignore_errors=True)
        source = find_data(data, chosen.source) if chosen.source else work
        marked.write_text(json.dumps(chosen.make(source, raw)))
    plan = ["nnUNetv2_plan_and_preprocess", "-d", str(chosen.number), "-c", chosen.configuration]
    run([*plan, "-np", "2", "-npfp", "2"], work / f"{name}_plan.log")
    held_out = json.loads(marked.read_text())
    if held_out is not None:
        ending = json.loads((raw / "dataset.json").read_text())["file_ending"]
        names = sorted(path.name[: -len(ending)] for path in (raw / "labelsTr").iterdir())
        training = [name for name in names if name not in held_out]
        split = [{"train": training, "val": held_out}]
        (preprocessed / "splits_final.json").write_text(json.dumps(split, indent=4))
    done.touch()
    return preprocessed
