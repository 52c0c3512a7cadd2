"""What a worker must know of a run: the model itself, and how and where to segment."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nnunet_octreenca
from nnunet_octreenca.calibration_record import FILE
from nnunet_octreenca.files import JsonMapping
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.integration.model import Model, load_model
from nnunet_octreenca.prediction.earlier import Destination, Identity
from nnunet_octreenca.prediction.folder import Run
from nnunet_octreenca.prediction.identity import environment
from nnunet_octreenca.prediction.options import Options

# Labels may differ by more than rounding, or a worker may not understand the client.
_COMPARED = ("nnunet_octreenca", "nnunetv2", "torch", "numpy", "engine")


@dataclass(frozen=True)
class SentModel:
    """A model's files, some 300 KB: workers need not see its folder.

    Attributes:
        name: of the folder.
        files: name below the folder to content.
        folds, checkpoint: as `load_model` takes them.
    """

    name: str
    files: Mapping[str, bytes]
    folds: tuple[str, ...]
    checkpoint: str

    @classmethod
    def of(cls, model: Model) -> "SentModel":
        """The files that a model was loaded from, its calibration among them if it has one."""
        paths = [*model.files, model.folder / FILE]
        files = {
            path.relative_to(model.folder).as_posix(): path.read_bytes()
            for path in paths
            if path.is_file()
        }
        return cls(model.folder.name, files, model.folds, model.files[-1].name)

    def load(self, folder: Path, device: str) -> Model:
        """Write the files below a folder of this process alone, and load them."""
        for name, content in self.files.items():
            path = folder / self.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return load_model(
            folder / self.name, folds=self.folds, checkpoint=self.checkpoint, device=device
        )


@dataclass(frozen=True)
class Settings:
    """One run, as it is sent to every worker.

    Attributes:
        run: its name.
        model: to segment with.
        source: file or folder of the images, absolute; or the URL of one.
        output: folder of the results, absolute; or its URL.
        destination: of the results; of a URL without the folder, which is each worker's own.
        samples: some of the cases, to see whether a worker can read them.
        scratch: folder for what is fetched from URLs; None for a worker's own.
        scratch_limit: bytes that may lie there at a time; None for what is free.
        options: how images are segmented.
        began: when, in UTC.
        hash_inputs: read every image once more for its SHA-256.
        device: "cpu" or "cuda".
        threads: of a task; None for a worker's processors shared among its threads.
        identity: of the results, on the client.
        versions: of the programs that must be the same everywhere.
        environment: of the client, what labels may depend on.
        package: the folder that the client has this package in.
    """

    run: str
    model: SentModel
    source: str
    output: str
    destination: Destination
    samples: tuple[Case, ...]
    scratch: str | None
    scratch_limit: int | None
    options: Options
    began: str
    hash_inputs: bool
    device: str
    threads: int | None
    identity: Identity
    versions: Mapping[str, str]
    environment: Mapping[str, str]
    package: str

    @classmethod
    def of(
        cls,
        name: str,
        run: Run,
        source: str,
        output: str,
        *,
        samples: Sequence[Case],
        scratch: str | None,
        scratch_limit: int | None,
        device: str,
        threads: int | None,
    ) -> "Settings":
        """Of a run as `predict` prepares it."""
        versions = compared_versions(run.identity.versions)
        if device != run.model.device.type:  # a client needs no GPU
            del versions["engine"]
        return cls(
            name,
            SentModel.of(run.model),
            source,
            output,
            run.destination,
            tuple(samples),
            scratch,
            scratch_limit,
            run.options,
            run.began.isoformat(timespec="seconds"),
            run.hash_inputs,
            device,
            threads,
            run.identity,
            versions,
            environment(),
            package_folder(),
        )

    def identity_record(self) -> JsonMapping:
        """What two runs on the same folder must share to be the same run."""
        return {
            "model": self.identity.model,
            "settings": dict(self.identity.settings),
            "source": self.source,
            "formats": list(self.destination.formats or ()),
            "quality": self.options.quality,
            "probabilities": self.options.probabilities,
        }


def package_folder() -> str:
    """Where this process has imported the package from."""
    return str(Path(nnunet_octreenca.__file__).absolute().parent)


def compared_versions(versions: Mapping[str, str]) -> dict[str, str]:
    """Those of `identity.versions` that must be the same on every machine of a run."""
    import distributed

    found = {name: versions[name] for name in _COMPARED}
    found["distributed"] = distributed.__version__
    found["python"] = ".".join(platform.python_version_tuple()[:2])
    return found
