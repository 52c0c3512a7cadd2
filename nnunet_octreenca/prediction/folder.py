"""All cases of a file or a folder, one after the other, and what became of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter

import torch

from nnunet_octreenca.errors import OctreeNCAError
from nnunet_octreenca.images.cases import Case, list_cases
from nnunet_octreenca.inference.ensemble import Progress
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.prediction.case import CaseResult, Destination, finished, segment_case
from nnunet_octreenca.prediction.options import Options, model_and_options


@dataclass(frozen=True)
class Failure:
    """A case that could not be segmented.

    Attributes:
        case: its name.
        files: that it should have been read from.
        error: the type of the error.
        sentence: what was wrong and what to do.
    """

    case: str
    files: list[str]
    error: str
    sentence: str


@dataclass
class Run:
    """Cases that one model segments into one folder.

    Attributes:
        model: the networks.
        destination: of the results.
        options: how they are segmented.
        done: the cases that were segmented.
        failed: those that could not be.
        left_out: names of those that were finished before.
        began: when, in UTC.
        seconds: that the cases took so far.
    """

    model: Model
    destination: Destination
    options: Options = field(default_factory=Options)
    done: list[CaseResult] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    began: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    seconds: float = 0.0

    def cases(self, source: Path | str, tell: Callable[[str], object] | None = None) -> list[Case]:
        """The cases of a file or a folder.

        Args:
            source: the file or folder.
            tell: takes a line about what a folder holds and what is left out.

        Raises:
            InputError: nothing readable is there, or what `images.cases.list_cases` refuses.
        """
        model = self.model
        return list_cases(
            source,
            model.channels,
            frames=model.preprocessing.dimension == 3,
            output=self.destination.folder,
            tell=tell,
        )

    def segment(
        self,
        case: Case,
        *,
        tell: Callable[[str], object] = print,
        progress: Progress | None = None,
    ) -> CaseResult | None:
        """Segment a case, or leave it out if it is finished and the destination's
        `resume` says so.

        Args:
            case: its files.
            tell: takes lines about it.
            progress: told of every band.

        Returns:
            What was done; None if it was left out.

        Raises:
            OctreeNCAError, OSError, MemoryError: the case failed; `failed` has it too.
        """
        if self.destination.resume and finished(case, self.destination):
            self.left_out.append(case.name)
            tell(f"{case.name}: finished before, left out")
            return None
        began = perf_counter()
        try:
            result = segment_case(
                case, self.model, self.destination, self.options, tell=tell, progress=progress
            )
        except (OctreeNCAError, OSError, MemoryError) as error:
            sentence = str(error) or "memory ran out; give less with --memory"
            files = [str(path) for path in case.files]
            self.failed.append(Failure(case.name, files, type(error).__name__, sentence))
            raise
        finally:
            self.seconds += perf_counter() - began
        self.done.append(result)
        return result


def predict(
    source: Path | str,
    output: Path | str,
    model: Model | Path | str,
    *,
    formats: Sequence[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    mirror: bool = True,
    seeds: Sequence[int] | None = None,
    mpp: float | None = None,
    series: str | None = None,
    tissue: bool = False,
    float16: bool = False,
    memory: int | None = None,
    band_rows: int | None = None,
    device: torch.device | str = "cpu",
    tell: Callable[[str], object] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Segment one case or a folder of cases and write the results.

    What `nnunet_octreenca predict` does. Images of any size fit: they are streamed in bands, and
    only the labels are held, one byte a cell.

    Args:
        source: a file, or a folder of cases as `nnunet_octreenca predict -i` takes it.
        output: folder for the results.
        model: from `load_model`, or the folder TRAINER__PLANS__CONFIGURATION of a training.
        formats: of the results, such as ("ome.tif", "geojson"); None for what is usual for the
            kind of image. A picture
            overlays/CASE_overlay.png is always written.
        overwrite: replace results; otherwise a case whose results exist fails.
        resume: leave out cases that are finished, and write only results that are missing.
        mirror: average mirrored copies along the axes that the training allows.
        seeds: of the fire draws; the logits are averaged over them. None for the model's one.
        mpp: microns per pixel to read slides at; None for their finest level.
        series: SeriesInstanceUID to read, where a folder holds several DICOM series.
        tissue: leave out bands of a slide without tissue; their label is 0.
        float16: keep states in float16, which halves them and changes some labels.
        memory: bytes that the process may use in all; None for what is free.
        band_rows: rows (2-D) or planes (3-D) of a band; None for the planner's choice. It does
            not change the labels of a single pass.
        device: where the networks go, if `model` is a folder.
        tell: takes a line about the folder and about every case; None for silence.
        progress: called with a stage and a number of rows: "total" once a case, then "read" and
            "segment".

    Returns:
        The run: `done` holds for each case its kind, shape, files written, shares of the classes
        and seconds. A folder goes on after a bad case: `failed` holds those.

    Raises:
        InputError: the source holds no case, an option cannot be used, or the folder is no model's.
        CheckpointError, PlansError: the model is damaged, or another network's.
        OctreeNCAError, OSError, MemoryError: what a single case failed with; no result is half
            written.

    Examples:
        >>> run = predict("image.png", "results", "model", mirror=False, overwrite=True)
        >>> run.done[0].kind, run.done[0].shape
        ('picture', [48, 40])
        >>> from pathlib import Path
        >>> [Path(path).name for path in run.done[0].outputs]
        ['image.png', 'image_overlay.png']
    """
    model, options = model_and_options(
        model,
        device,
        mirror=mirror,
        seeds=seeds,
        mpp=mpp,
        series=series,
        tissue=tissue,
        float16=float16,
        memory=memory,
        band_rows=band_rows,
    )
    destination = Destination(Path(output), tuple(formats) if formats else None, overwrite, resume)
    run = Run(model, destination, options)
    cases = run.cases(source, tell)
    for case in cases:
        try:
            run.segment(case, tell=tell or _silent, progress=progress)
        except (OctreeNCAError, OSError, MemoryError):
            if len(cases) == 1:
                raise
    return run


def _silent(line: str) -> None:
    pass
