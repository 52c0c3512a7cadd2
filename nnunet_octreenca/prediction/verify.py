"""A run repeated from its report, and compared with it case by case."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonMapping, JsonObject, read_json
from nnunet_octreenca.hashes import content_hash, labels_hash
from nnunet_octreenca.images.companions import with_companions
from nnunet_octreenca.integration.model import Model, load_model
from nnunet_octreenca.prediction.identity import VARIABLES, differences, versions
from nnunet_octreenca.prediction.label_files import read_labels
from nnunet_octreenca.prediction.report import FORM
from nnunet_octreenca.prediction.segmentation import segment_file

_ADVICE = "give a report that `nnunet_octreenca predict --report` wrote"


@dataclass
class Verdict:
    """How a case compares with its report.

    Attributes:
        case: its name.
        differs: what is not as it was, one sentence part each.
        notes: what could not be looked at, or matters only where labels differ.
    """

    case: str
    differs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For the terminal."""
        return f"{self.case}: {'; '.join([*(self.differs or ['same labels']), *self.notes])}"


def read_report(path: Path | str) -> JsonObject:
    """A report that can be repeated.

    Raises:
        InputError: it cannot be read, is no report, an older one, or has no segmented case.
    """
    content = read_json(path, _ADVICE)
    if content.get("form") != FORM:
        raise InputError(f"{path} is no report of this program, or an older one's; {_ADVICE}")
    if not content.get("cases"):
        raise InputError(f"{path} has no case that was segmented, so that nothing can be repeated")
    return content


def verify(
    report: JsonMapping,
    *,
    source: Path | None = None,
    model_folder: Path | None = None,
    results: Path | None = None,
    device: torch.device | str | None = None,
    tell: Callable[[str], object] = print,
) -> list[Verdict]:
    """Segment every case of a report again, as it was, and compare inputs, model and labels.

    Args:
        report: of `read_report`.
        source: where the images are now, a file or a folder; None for where they were.
        model_folder: where the model is now; None for where it was.
        results: the folder of the results now; None for where they were.
        device: None for one of the kind that it was.
        tell: takes a line about programs that differ, and one about each case.

    Returns:
        One verdict a case.

    Raises:
        OctreeNCAError: the model cannot be loaded.
    """
    with _as_it_was(report):
        model = _load(report, model_folder, device or report["device_type"])
        changed = _changed_files(report, model)
        for line in differences(report["versions"], versions(model)):
            tell(f"note: {line}")
        verdicts = []
        for case in report["cases"]:
            verdict = Verdict(case["case"])
            if changed:
                verdict.differs.append(f"model changed ({', '.join(changed)})")
            try:
                _compare(case, report, model, source, results, verdict)
            except Exception as error:  # of any library; the other cases are looked at
                verdict.differs.append(f"cannot be repeated ({type(error).__name__}: {error})")
            tell(verdict.line())
            verdicts.append(verdict)
    return verdicts


@contextmanager
def _as_it_was(report: JsonMapping) -> Iterator[None]:
    """The environment and the threads of the run, while this lasts."""
    before = {name: os.environ.pop(name, None) for name in VARIABLES}
    threads = torch.get_num_threads()
    os.environ.update(report["environment"])
    torch.set_num_threads(int(report["threads"]))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _load(report: JsonMapping, folder: Path | None, device: torch.device | str) -> Model:
    about = report["model"]
    names = {Path(name).name for name in about["files"] if name.startswith("fold_")}
    return load_model(
        folder or Path(report["working_folder"], about["folder"]),
        folds=about["folds"],
        checkpoint=names.pop(),
        device=device,
    )


def _changed_files(report: JsonMapping, model: Model) -> list[str]:
    now = {path.relative_to(model.folder).as_posix(): content_hash([path]) for path in model.files}
    before = report["model"]["files"]
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _compare(
    case: JsonMapping,
    report: JsonMapping,
    model: Model,
    source: Path | None,
    results: Path | None,
    verdict: Verdict,
) -> None:
    base = Path(report["working_folder"])
    files = [_found(base / name, source, len(case["files"])) for name in case["files"]]
    for name, file in zip(case["files"], files, strict=True):
        recorded = case["input_sha256"].get(name)
        if recorded is None:
            verdict.notes.append(f"the report has no hash of {file.name}")
        elif content_hash(with_companions(file)) != recorded:
            verdict.differs.append(f"input changed ({file})")
    before = _earlier_labels(case, base, results, verdict)
    labels = _repeat(case, report, model, files)
    if labels_hash(labels) != case["labels_sha256"]:
        verdict.differs.append(_difference(labels, before, case["shape"]))


def _found(recorded: Path, source: Path | None, files: int) -> Path:
    """Where an image is now."""
    path = recorded
    if source is not None:
        inside = source / recorded.name
        path = source if files == 1 and not inside.exists() else inside
    if not path.exists():
        raise InputError(f"{path} does not exist; give the folder of the images with -i")
    return path


def _earlier_labels(
    case: JsonMapping, base: Path, results: Path | None, verdict: Verdict
) -> Pixels | None:
    """The labels that were written, from the first file that still holds them."""
    found = None
    outputs = dict(zip(case["outputs_sha256"].items(), case["outputs"], strict=True))
    for (name, recorded), written in outputs.items():
        path = base / written if results is None else results / name
        if not path.exists():
            verdict.notes.append(f"{path} is no longer there")
        elif content_hash([path]) != recorded:
            verdict.differs.append(f"result changed ({path})")
        elif found is None:
            found = read_labels(path)
    return found


def _repeat(case: JsonMapping, report: JsonMapping, model: Model, files: list[Path]) -> Pixels:
    given = report["options"]
    with tempfile.TemporaryDirectory(prefix="octreenca_") as scratch:
        return segment_file(
            list(files),
            model,
            mirror=given["mirror"],
            seeds=report["seeds"],
            mpp=given["mpp"],
            series=given["series"],
            tissue=given["tissue"],
            float16=given["float16"],
            band_rows=case["bands_of"],
            scratch=scratch,
        )


def _difference(labels: Pixels, before: Pixels | None, shape: list[int]) -> str:
    if list(labels.shape) != shape:
        return f"labels differ in shape ({shape} before, {list(labels.shape)} now)"
    if before is None or before.size != labels.size:
        return "labels differ (in how many voxels, no file that is still there tells)"
    count = int(np.count_nonzero(before.reshape(labels.shape) != labels))
    return (
        f"labels differ in {count:,} of {labels.size:,} voxels ({100 * count / labels.size:.3g} %)"
    )
