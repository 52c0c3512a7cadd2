"""Registration: nnU-Net looks classes up by name in its own folders, so we place shims there.

This is the third of the ways that nnU-Net's documentation describes. Where nnunetv2 is
read-only, `nnUNet_extTrainer` does the same for trainers.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.files import atomic_write
from nnunet_octreenca.integration.nnunet_version import nnunet_version

_HERE = Path(__file__).parent
TRAINER_SHIMS = _HERE / "trainer_shims"
CLASS_SHIMS = _HERE / "class_shims"


class Shim(NamedTuple):
    """One of our files and where nnU-Net looks for it."""

    source: Path
    target: Path

    @property
    def state(self) -> str:
        """ "registered", "outdated" (of another version of ours) or "missing"."""
        if not self.target.is_file():
            return "missing"
        same = self.target.read_bytes() == self.source.read_bytes()
        return "registered" if same else "outdated"


def nnunet_folder() -> Path:
    """Folder of the installed nnunetv2 package.

    Raises:
        EnvironmentMismatchError: nnU-Net is missing or too old.
    """
    nnunet_version()
    spec = find_spec("nnunetv2")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentMismatchError(
            "the package nnunetv2 cannot be imported; run `pip install 'nnunetv2>=2.8'`"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def shims() -> list[Shim]:
    """All shims and their destinations."""
    nnunet = nnunet_folder()
    return [
        Shim(
            TRAINER_SHIMS / "octreenca_trainers.py",
            nnunet / "training" / "nnUNetTrainer" / "octreenca_trainers.py",
        ),
        *(
            Shim(CLASS_SHIMS / "octreenca_class.py", nnunet / target)
            for target in (
                "experiment_planning/experiment_planners/octreenca_planner.py",
                "preprocessing/preprocessors/octreenca_preprocessor.py",
                "imageio/octreenca_reader.py",
            )
        ),
    ]


def register() -> list[Shim]:
    """Make the trainers, the planner, the preprocessor and the readers known to nnU-Net.

    Writes small files into the installed nnunetv2, which import this package when nnU-Net asks
    for one of its classes. Needed once, and after every update of either; again does no harm.
    `nnunet_octreenca register --undo` removes them.

    Returns:
        The files that were written, each with its `target`.

    Raises:
        EnvironmentMismatchError: nnU-Net is missing or too old, or its folder cannot be written;
            then the message holds the line that makes the trainers known all the same.

    >>> {shim.state for shim in register()}
    {'registered'}
    """
    written = shims()
    try:
        for shim in written:
            with atomic_write(shim.target) as temporary:
                temporary.write_bytes(shim.source.read_bytes())
    except OSError as error:
        unregister_what_is_possible(written)
        raise EnvironmentMismatchError(
            f"nnU-Net's folder cannot be written ({error}). Set this environment variable "
            f"instead to make the trainers known (for plans use `nnunet_octreenca extend_plans`):\n"
            f"{external_trainer_line()}"
        ) from error
    return written


def unregister() -> list[Shim]:
    """Remove the shims.

    Returns:
        Those that were there.

    Raises:
        EnvironmentMismatchError: nnunetv2's folder cannot be written.
    """
    there = [shim for shim in shims() if shim.state != "missing"]
    try:
        for shim in there:
            shim.target.unlink()
    except OSError as error:
        raise EnvironmentMismatchError(
            f"{shim.target} cannot be removed ({error}); remove it as the user who "
            f"installed nnU-Net"
        ) from error
    return there


def unregister_what_is_possible(written: list[Shim]) -> None:
    """Remove a partial registration when writing fails."""
    for shim in written:
        try:
            shim.target.unlink(missing_ok=True)
        except OSError:
            continue


def external_trainer_line() -> str:
    """The environment variable that lets nnU-Net find the trainers without registration."""
    return f"nnUNet_extTrainer={TRAINER_SHIMS}"
