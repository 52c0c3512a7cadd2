"""What an earlier run left of a case: whether it is finished, and what may be replaced."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.files import JsonMapping
from nnunet_octreenca.hashes import content_hash, stamp
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.images.companions import all_files
from nnunet_octreenca.labels.formats import FORMATS, check_formats, default_formats, output_path
from nnunet_octreenca.prediction.identity import differences
from nnunet_octreenca.prediction.quality_files import possible_files
from nnunet_octreenca.result_record import (
    FINISHED,
    WRITING,
    CaseRecord,
    lock_name,
    overlay_path,
    read_case_record,
    record_path,
    write_case_record,
)


@dataclass(frozen=True)
class Destination:
    """Where results go.

    Attributes:
        folder: for all results; made if it is not there.
        formats: of `labels.formats`; None for the kind's usual ones.
        overwrite: replace results.
        resume: leave finished cases, and write what is missing of the others.
    """

    folder: Path
    formats: tuple[str, ...] | None = None
    overwrite: bool = False
    resume: bool = False


@dataclass(frozen=True)
class Identity:
    """What makes results of the same image the same.

    Attributes:
        model: SHA-256 of its files (`identity.model_hash`).
        settings: of `identity.settings`.
        versions: of `identity.versions`.
    """

    model: str
    settings: JsonMapping
    versions: Mapping[str, str]


def expected_outputs(folder: Path, case_name: str, formats: Sequence[str]) -> dict[str, Path]:
    """Name below the folder to path of all results of a case, the overlay last."""
    paths = [output_path(name, folder / case_name) for name in formats]
    paths.append(overlay_path(folder, case_name))
    return {path.relative_to(folder).as_posix(): path for path in paths}


def possible_outputs(folder: Path, case_name: str) -> list[Path]:
    """All that a run may write for a case, its record and its lock among it."""
    names = expected_outputs(folder, case_name, tuple(FORMATS))
    record = record_path(folder, case_name)
    quality = possible_files(folder, case_name)
    return [*names.values(), *quality, record, record.with_name(lock_name(case_name))]


def finished_record(case: Case, destination: Destination, identity: Identity) -> CaseRecord | None:
    """The record of a case that is finished with the same model, options, image and formats.

    Raises:
        OutputError: it is finished with another model or other options.
    """
    folder = destination.folder
    record = read_case_record(record_path(folder, case.name))
    if record is None or record.state != FINISHED:
        return None
    require_same(record, identity, folder)
    formats = destination.formats or default_formats(record.kind, case.files[0])
    outputs = expected_outputs(folder, case.name, formats)
    done = set(formats) <= set(record.formats) and all(path.exists() for path in outputs.values())
    return record if done and record.stamp == stamp(all_files(case.files)) else None


def require_same(record: CaseRecord, identity: Identity, folder: Path) -> None:
    """Refuse a model or options other than those that a case was finished with.

    Raises:
        OutputError: they are others.
    """
    known = {name: value for name, value in identity.settings.items() if name in record.settings}
    changed = differences({name: record.settings[name] for name in known}, known)
    if record.model != identity.model:
        changed.append(
            f"the model was {record.model[:12]} and is {identity.model[:12]} (SHA-256 of its files)"
        )
    if changed:
        raise OutputError(
            f"{record.case} is finished in {folder} with another model or other options "
            f"({'; '.join(changed)}); give another folder with -o, or --overwrite to replace it"
        )


@dataclass
class Earlier:
    """The earlier results of a case that is to be segmented, and the record of the new ones.

    Attributes:
        folder: of the results.
        destination: of the results.
        record: of the earlier run; None where there is none.
        same: that run had the same image, model and options, and finished.
        wanted: formats asked for.
        formats: all that may be written: those asked for and those of the earlier run, which
            must not be left with other labels than the new ones.
        now: the record of this run.
    """

    folder: Path
    destination: Destination
    record: CaseRecord | None
    same: bool
    wanted: tuple[str, ...]
    formats: tuple[str, ...]
    now: CaseRecord

    @classmethod
    def of(
        cls,
        case: Case,
        destination: Destination,
        identity: Identity,
        kind: str,
        formats: Sequence[str],
        stamp_now: str,
    ) -> "Earlier":
        """Look at what there is.

        Args:
            case: its files.
            destination: of the results.
            identity: of the model and the options.
            kind: of the image.
            formats: asked for.
            stamp_now: of the image's files.

        Raises:
            OutputError: it is finished with another model or other options, and may not be
                replaced.
        """
        folder = destination.folder
        record = read_case_record(record_path(folder, case.name))
        same, wanted = False, tuple(formats)
        if record is not None and destination.resume and record.state == FINISHED:
            require_same(record, identity, folder)
            same = record.stamp == stamp_now
        both = wanted
        if record is not None and destination.resume:
            there = [name for name in record.formats if _is_there(name, folder / case.name)]
            both += _compatible(there, wanted, kind)
        now = CaseRecord(
            case=case.name,
            state=WRITING,
            kind=kind,
            formats=[],
            outputs={},
            others=[],
            files=[Path(path).name for path in case.files],
            stamp=stamp_now,
            model=identity.model,
            settings=dict(identity.settings),
            versions=dict(identity.versions),
            shape=[],
            labels="",
            ended="",
        )
        return cls(folder, destination, record, same, wanted, both, now)

    def require_replaceable(self, inputs: Sequence[Path]) -> None:
        """Refuse to write over what this program did not write, or what was changed since.

        Raises:
            OutputError: it would.
        """
        for name, path in expected_outputs(self.folder, self.now.case, self.formats).items():
            if any(path.resolve() == Path(file).resolve() for file in inputs):
                raise OutputError(f"{path} is the image itself; give another folder with -o")
            if not path.exists() or self.destination.overwrite:
                continue
            if not self.destination.resume:
                raise OutputError(
                    f"{path} exists already; --overwrite replaces it, --continue leaves finished "
                    f"cases"
                )
            if self.record is None or name not in self.record.outputs:
                raise OutputError(
                    f"{path} exists already, and no record says that an earlier run wrote it; move "
                    f"it away, or give --overwrite to replace it"
                )
            recorded = self.record.outputs[name]
            if recorded is not None and content_hash([path]) != recorded:
                raise OutputError(
                    f"{path} was changed since an earlier run wrote it, and would be replaced "
                    f"because the case is not finished; move it away, or give --overwrite"
                )

    def begin(
        self, shape: Sequence[int], labels: str, tell: Callable[[str], object]
    ) -> tuple[str, ...]:
        """Record that results are being written.

        Args:
            shape: of the labels.
            labels: their hash.
            tell: takes a line where earlier results are replaced.

        Returns:
            The formats to write: those that are missing if the earlier ones have the same labels,
            else all.
        """
        before, write = self.record, self.formats
        kept: tuple[str, ...] = ()
        if before is not None and self.same and before.labels == labels:
            kept = tuple(
                name
                for name in self.formats
                if name in before.formats and self._path(name).exists()
            )
            write = tuple(name for name in self.wanted if name not in kept)
        elif before is not None and self.same:
            changed = "; ".join(differences(before.versions, self.now.versions))
            tell(
                f"{self.now.case}: the labels are not those of the earlier run "
                f"({changed or 'with the same versions'}); all formats are written again"
            )
        outputs: dict[str, str | None] = {}
        for name in (*kept, *write):
            path = self._path(name).name
            outputs[path] = before.outputs.get(path) if before and name in kept else None
        outputs[overlay_path(self.folder, self.now.case).relative_to(self.folder).as_posix()] = None
        others = [] if before is None else [*before.outputs, *before.others]
        self.now = replace(
            self.now,
            formats=[*kept, *write],
            outputs=outputs,
            others=[name for name in dict.fromkeys(others) if name not in outputs],
            shape=list(shape),
            labels=labels,
        )
        write_case_record(self.folder, self.now)
        return write

    def names_beside_overlay(self) -> list[str]:
        """Names of all results but the overlay, those of earlier runs included."""
        return [name for name in (*self.now.outputs, *self.now.others) if "/" not in name]

    def finish(self) -> CaseRecord:
        """Record that all is written, with the hashes of the files."""
        outputs: dict[str, str | None] = {
            name: found or content_hash([self.folder / name])
            for name, found in self.now.outputs.items()
        }
        ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.now = replace(self.now, state=FINISHED, outputs=outputs, ended=ended)
        write_case_record(self.folder, self.now)
        return self.now

    def _path(self, name: str) -> Path:
        return output_path(name, self.folder / self.now.case)


def _is_there(format_name: str, stem: Path) -> bool:
    return format_name in FORMATS and output_path(format_name, stem).exists()


def _compatible(formats: Sequence[str], wanted: Sequence[str], kind: str) -> tuple[str, ...]:
    """Earlier formats beside those asked for, without those of the same file name."""
    endings = {FORMATS[name].ending for name in wanted}
    found = []
    for name in formats:
        if FORMATS[name].ending not in endings and kind in FORMATS[name].kinds:
            check_formats([name], kind)
            found.append(name)
            endings.add(FORMATS[name].ending)
    return tuple(found)
