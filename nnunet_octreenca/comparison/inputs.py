"""What is compared: found and checked before anything is computed."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Labels
from nnunet_octreenca.comparison.label_maps import (
    LabelMap,
    ending_of,
    label_files,
    read_label_map,
    require_same_grid,
    shape_text,
)
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import read_json
from nnunet_octreenca.images.frames import natural_order
from nnunet_octreenca.images.open_image import kind_of, open_image
from nnunet_octreenca.planning.dataset_description import DatasetDescription

Track: TypeAlias = Callable[[Iterable[Any], str], Iterable[Any]]
"""Shows progress over items: `track(items, description)` gives the items."""

Seen: TypeAlias = dict[str, dict[str, set[int]]]
"""Method (or `TRUTH`) to case to the labels that occur there."""

TRUTH = ""
MOST_CLASSES = 100
_NAMED = 5  # cases in a sentence


@dataclass(frozen=True)
class Inputs:
    """Files and classes of a comparison.

    Attributes:
        cases: names, in natural order.
        truth: of each case.
        predictions: method to the files of the cases.
        images: of the cases; None where none were given.
        classes: name to its labels (several of a region), without background.
        ignored: label of truth whose pixels do not count; None where there is none.
        groups: of each case: the patient.
        video: the first axis of a case is time.
        kind: such as "3-D volume", "2-D picture" or "video".
        notes: sentences about what was decided, for the user.
    """

    cases: tuple[str, ...]
    truth: tuple[Path, ...]
    predictions: Mapping[str, tuple[Path, ...]]
    images: tuple[Path, ...] | None
    classes: Mapping[str, tuple[int, ...]]
    ignored: int | None
    groups: tuple[str, ...]
    video: bool
    kind: str
    notes: tuple[str, ...] = ()

    @property
    def millimetres(self) -> bool:
        """Whether lengths are in mm; in pixels else."""
        return self.kind.endswith("volume")

    @property
    def units(self) -> Mapping[str, str]:
        """Of lengths and volumes."""
        if not self.millimetres:
            return {"length": "px", "volume": "px"}
        return {"length": "mm", "volume": "ml" if self.kind == "3-D volume" else "mm²"}

    def mask(self, labels: Labels, name: str, truth: Labels) -> NDArray[np.bool_]:
        """Pixels of a class, without those that the truth says to ignore."""
        values = self.classes[name]
        mask = labels == values[0] if len(values) == 1 else np.isin(labels, values)
        if self.ignored is not None:
            mask = mask & (truth != self.ignored)
        return mask


def find_inputs(
    truth: Path,
    predictions: Mapping[str, Path],
    *,
    labels: Path | None = None,
    images: Path | None = None,
    group_by: str | None = None,
    video: bool = False,
    track: Track = lambda items, _: items,
) -> Inputs:
    """Find and check everything that is compared; every file is read once.

    Args:
        truth: folder of label maps.
        predictions: method to folder of label maps of the same names.
        labels: dataset.json, for the classes' names, regions, and the label to ignore; without
            it every label of the truth is a class.
        images: folder of the images, named like the truth or with nnU-Net's _0000.
        group_by: regular expression whose first group (or whole match) in a case's name is the
            patient; cases of a patient are drawn together.
        video: the first axis of each case is time; folders of frames are cases too.
        track: shows progress.

    Raises:
        InputError: a folder is missing, lists of cases differ, or a label map has other labels,
            another shape or geometry than its truth.
    """
    for name in predictions:
        if not name.strip() or not name.isprintable():
            raise InputError(f"the method's name {name!r} cannot be shown; choose another")
    if not predictions:
        raise InputError("there is no method to compare; give --predictions NAME=FOLDER")
    true_files = _truth_files(truth, video)
    cases = tuple(true_files)
    predicted = {
        name: _matching(folder, name, true_files, truth, video)
        for name, folder in predictions.items()
    }
    groups = _groups(cases, group_by)
    found_images = None if images is None else _images(images, cases)
    described = None if labels is None else _described(labels)
    kind, seen = _check_files(
        cases, tuple(true_files.values()), predicted, found_images, video, track
    )
    classes, ignored = _classes(seen, described, labels)
    notes = []
    if not set[int]().union(*classes.values()) & set[int]().union(*seen[TRUTH].values()):
        raise InputError(f"the truth in {truth} holds background only: there is nothing to compare")
    if labels is None:
        notes.append("No dataset.json was given: every label of the truth is a class.")
    return Inputs(
        cases, tuple(true_files.values()), predicted, found_images, classes, ignored, groups,
        video, kind, tuple(notes),
    )  # fmt: skip


def _truth_files(folder: Path, video: bool) -> dict[str, Path]:
    found = label_files(folder, video=video)
    for files in found.values():
        if len(files) > 1:
            raise InputError(
                f"{folder} holds {files[0].name} and {files[1].name}, two truths of one case; "
                f"remove one"
            )
    return {name: found[name][0] for name in sorted(found, key=natural_order)}


def _matching(
    folder: Path, method: str, truth: Mapping[str, Path], truth_folder: Path, video: bool
) -> tuple[Path, ...]:
    """A method's files in the order of the truth's."""
    found = label_files(folder, video=video)
    missing = [name for name in truth if name not in found]
    if missing:
        raise InputError(
            f"{method} lacks {len(missing)} of the truth's {len(truth)} cases in {folder}: "
            f"{_some(missing)}; predict them, or remove them from {truth_folder}"
        )
    endings = {ending_of(file.name) for file in truth.values()}
    more = [
        name
        for name, files in found.items()
        if name not in truth and any(ending_of(file.name) in endings for file in files)
    ]
    if more:
        raise InputError(
            f"{method} has {len(more)} cases in {folder} that the truth in {truth_folder} lacks: "
            f"{_some(more)}; remove them, or add their truth"
        )
    return tuple(_same_kind(found[name], file, method) for name, file in truth.items())


def _same_kind(files: Sequence[Path], truth: Path, method: str) -> Path:
    """Of several files of a case the one of the truth's format."""
    if len(files) == 1:
        return files[0]
    alike = [file for file in files if ending_of(file.name) == ending_of(truth.name)]
    if len(alike) != 1:
        names = " and ".join(file.name for file in files[:2])
        raise InputError(
            f"{method} has {names} in {files[0].parent} for one case; remove one of them"
        )
    return alike[0]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def checked_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """What `find_inputs` groups cases by.

    Raises:
        InputError: it is no regular expression.
    """
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise InputError(f"--group-by {pattern!r} is no regular expression: {error}") from error


def _groups(cases: Sequence[str], pattern: str | None) -> tuple[str, ...]:
    compiled = checked_pattern(pattern)
    if compiled is None:
        return tuple(cases)
    groups = []
    for case in cases:
        match = compiled.search(case)
        group = match and (match[1] if compiled.groups else match[0])
        if not group:
            raise InputError(f"--group-by {pattern!r} finds no patient in the name of case {case}")
        groups.append(group)
    return tuple(groups)


def _images(folder: Path, cases: Sequence[str]) -> tuple[Path, ...]:
    """The first channel's file of each case."""
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist")
    entries: dict[str, Path] = {}
    for entry in sorted(folder.iterdir(), reverse=True):
        kind = kind_of(entry)
        if not entry.name.startswith(".") and (kind or entry.is_dir()):
            ending = ending_of(entry.name) or entry.suffix if kind else ""
            entries[entry.name[: len(entry.name) - len(ending)]] = entry
    found = []
    for case in cases:
        image = entries.get(f"{case}_0000", entries.get(case))
        if image is None:
            raise InputError(
                f"{folder} holds no image of case {case}; it must be called {case} or {case}_0000"
            )
        found.append(image)
    return tuple(found)


def _described(path: Path) -> DatasetDescription:
    content = read_json(path, "give the dataset.json of the data set as --labels")
    return DatasetDescription.from_json(content, path, custom_names=True)


def _check_files(
    cases: Sequence[str],
    truth: Sequence[Path],
    predictions: Mapping[str, Sequence[Path]],
    images: Sequence[Path] | None,
    video: bool,
    track: Track,
) -> tuple[str, Seen]:
    """Read every file; gives the common kind, and the labels that occur."""
    kinds: dict[str, str] = {}
    seen: Seen = {name: {} for name in (TRUTH, *predictions)}
    for number, case in enumerate(track(cases, "checking")):
        true = read_label_map(truth[number], video=video)
        kinds.setdefault(true.kind, case)
        if len(kinds) > 1:
            (first, one), (second, other) = kinds.items()
            raise InputError(
                f"the truth mixes kinds: {one} is a {first} and {other} a {second}; compare them "
                f"apart"
            )
        seen[TRUTH][case] = values_of(true)
        if images is not None:
            _require_image_of(true, images[number], case)
        for method, files in predictions.items():
            found = read_label_map(files[number], video=video)
            require_same_grid(true, found, method, case)
            seen[method][case] = values_of(found)
    return next(iter(kinds)), seen


def _require_image_of(truth: LabelMap, image: Path, case: str) -> None:
    source = open_image(image)
    try:
        shape = tuple(source.shape)
    finally:
        source.close()
    if shape != truth.labels.shape:
        raise InputError(
            f"the image {image} of {case} has {shape_text(shape)} pixels and its truth "
            f"{shape_text(truth.labels.shape)}; give the image that was segmented"
        )


def values_of(found: LabelMap) -> set[int]:
    """The labels that occur."""
    return set(np.flatnonzero(np.bincount(found.labels.reshape(-1))).tolist())


def _classes(
    seen: Seen, described: DatasetDescription | None, path: Path | None
) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Class names with their labels, and the label to ignore; refuses labels of no class."""
    classes: dict[str, tuple[int, ...]] = {}
    ignored = None
    if described is None:
        known = set[int]().union(*seen[TRUTH].values()) - {0}
        classes = {str(label): (label,) for label in sorted(known)}
        source = "which the truth has nowhere; give --labels dataset.json if it is a class"
        if len(classes) > MOST_CLASSES:
            raise InputError(
                f"the truth holds {len(classes)} different labels; are these label maps? Give "
                f"--labels dataset.json if they are"
            )
    else:
        classes = {
            name: values
            for name, values in described.labels.items()
            if name != "ignore" and values != (0,)
        }
        ignored = described.labels.get("ignore", (None,))[0]
        known = set(described.foreground)
        source = f"which {path} does not name as a class"
    for method, cases in seen.items():
        allowed = known | {0} | ({ignored} if method == TRUTH else set())
        for case, found in cases.items():
            unknown = sorted(found - allowed)
            if unknown:
                whose = "the truth" if method == TRUTH else f"the prediction of {method}"
                have = ", ".join(map(str, sorted(known | {0})))
                raise InputError(
                    f"{whose} for {case} holds label {unknown[0]}, {source} (labels are {have})"
                )
    return classes, ignored
