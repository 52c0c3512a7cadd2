"""Checkpoints that hold data and nothing else, and how to read them without running code.

A pickle may name any function, to be called with any argument by whoever loads it. Ours hold
tensors, numbers, text, lists and dictionaries, and load with `torch.load(weights_only=True)`.
nnU-Net's, and our older ones, also hold NumPy's scalars and paths: these few names are allowed,
and stand-ins take their place that make plain numbers and text. Every other name is refused.
"""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import IO, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from nnunet_octreenca.errors import CheckpointError
from nnunet_octreenca.files import JsonObject

Checkpoint: TypeAlias = JsonObject
"""What a checkpoint holds; whoever reads a value of it checks its type."""

VERSIONS = "octreenca_versions"  # a key of ours: package to version
# torch's own switch: every torch.load of the process reads data only, whatever its caller says.
FORCE_VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_NUMBER_KINDS = "biuf"  # of NumPy's types: booleans, whole numbers, real numbers
_PLAIN = (type(None), bool, int, float, str)
_IN_PROGRESS = object()
# In a pickle: the name of a class that is made with a size.
_ALLOCATES = re.compile(rb"c(?:torch(?:\.\w+)*|builtins|__builtin__)\n(bytearray|\w*Tensor)\n")


def read_checkpoint(
    source: Path | str | IO[bytes],
    *,
    name: str | None = None,
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """Read a checkpoint of ours or of nnU-Net's; nothing in it is run.

    Args:
        source: the file, or its content.
        name: for errors; the file's path if left out.
        device: where its tensors go.

    Returns:
        What `plain` makes of the dictionary.

    Raises:
        CheckpointError: it names functions or classes that a checkpoint does not need, is damaged,
            or is no dictionary.
    """
    name = str(source) if name is None else name
    try:
        _check_records(source, name)
        with stock_names_allowed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged files, which get our sentence
            loaded = torch.load(source, map_location=device, weights_only=True)
    except (CheckpointError, FileNotFoundError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise refusal(name, error) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{name} holds a {type(loaded).__name__} where nnU-Net's checkpoints hold a "
            f"dictionary; it is not a checkpoint of a training"
        )
    converted: Checkpoint = plain(loaded, name)
    return converted


def refusal(name: str, error: Exception) -> CheckpointError:
    """The sentence for a checkpoint that torch did not read: dangerous, or damaged."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named:
        return CheckpointError(
            f"{name} asks for {named[1]}, which no checkpoint needs: loading it could run any "
            f"code. It was refused and nothing of it was run. Get the model from a source that you "
            f"trust, and do not open this file with other programs"
        )
    if isinstance(error, pickle.UnpicklingError):
        return CheckpointError(
            f"{name} holds more than data, or is damaged; it was refused and nothing of it was "
            f"run. Copy the file again, or get the model from a source that you trust"
        )
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return CheckpointError(
        f"{name} cannot be read as nnU-Net's checkpoint ({reason}); it may be damaged: copy it "
        f"again, or use another checkpoint"
    )


@contextmanager
def stock_names_allowed() -> Iterator[None]:
    """Context in which torch reads what nnU-Net puts into its checkpoints besides tensors."""
    with torch.serialization.safe_globals([(made, name) for name, made in STAND_INS.items()]):
        yield


@contextmanager
def data_only(name: str) -> Iterator[None]:
    """Context in which every `torch.load`, nnU-Net's own among them, reads data only.

    Raises:
        CheckpointError: the file that was read in the context asks for more; `name` says which.
    """
    before = os.environ.get(FORCE_VARIABLE)
    os.environ[FORCE_VARIABLE] = "1"
    try:
        with stock_names_allowed():
            yield
    except pickle.UnpicklingError as error:
        raise refusal(name, error) from error
    finally:
        if before is None:
            os.environ.pop(FORCE_VARIABLE, None)
        else:
            os.environ[FORCE_VARIABLE] = before


def plain(value: Any, name: str) -> Any:
    """A copy of tensors, numbers, text, lists, tuples and dictionaries only.

    NumPy's scalars become numbers, its arrays lists, paths and devices text, and dictionaries of
    any class plain ones. Tensors are not copied.

    Args:
        value: of a checkpoint.
        name: of the checkpoint, for errors.

    Raises:
        CheckpointError: an object of another class, a tensor that claims more numbers than it
            stores, or a container within itself.

    >>> plain({"loss": [np.float64(0.5)], "folder": Path("a"), "fold": np.int64(0)}, "")
    {'loss': [0.5], 'folder': 'a', 'fold': 0}
    """
    try:
        return _plain(value, name, {})
    except RecursionError as error:
        raise CheckpointError(f"{name} is nested too deeply for a checkpoint") from error


def _plain(value: Any, name: str, known: dict[int, Any]) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        return _plain_tensor(value, name)
    if isinstance(value, _Array):
        value = value.array
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return _plain(value.item(), name, known)
    if isinstance(value, np.ndarray) and value.dtype.kind in _NUMBER_KINDS:
        return value.tolist()
    if isinstance(value, (PurePath, torch.device, torch.dtype)):
        return str(value)
    if isinstance(value, (bool, int, float, str)):  # of a subclass, such as an enumeration
        base = next(kind for kind in (bool, int, float, str) if isinstance(value, kind))
        return base(value)
    if not isinstance(value, (list, tuple, Mapping)):
        raise CheckpointError(
            f"{name} holds an object of {type(value).__module__}.{type(value).__qualname__}; a "
            f"checkpoint may hold tensors, numbers, text, lists and dictionaries only. Convert it "
            f"before it is saved"
        )
    # What is shared stays shared: a small file could grow without end otherwise.
    found = known.get(id(value))
    if found is _IN_PROGRESS:
        raise CheckpointError(f"{name} holds a {type(value).__name__} that contains itself")
    if found is None:
        known[id(value)] = _IN_PROGRESS
        found = known[id(value)] = _plain_container(value, name, known)
    return found


def _plain_container(value: Any, name: str, known: dict[int, Any]) -> Any:
    if isinstance(value, Mapping):
        return {
            _plain(key, name, known): _plain(inner, name, known) for key, inner in value.items()
        }
    converted = [_plain(inner, name, known) for inner in value]
    return tuple(converted) if isinstance(value, tuple) else converted


def _plain_tensor(value: Tensor, name: str) -> Tensor:
    usual = (
        type(value) in (Tensor, torch.nn.Parameter)
        and value.layout is torch.strided
        and not value.is_quantized
        and not value.is_meta
    )
    if not usual or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(
            f"{name} holds a tensor of shape {tuple(value.shape)} that is not stored whole; a "
            f"training does not save such tensors"
        )
    return value.detach()


def _check_records(source: Path | str | IO[bytes], name: str) -> None:
    """Refuse what would take any amount of memory: packed records, and buffers of a given size.

    torch never packs the records of its zip files. Its reader allows a few constructors that
    allocate as many bytes as they are asked for; no training saves one.
    """
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise CheckpointError(
                    f"{name} is compressed inside, which torch.save never does; it may unpack to "
                    f"any size, and was refused"
                )
            pickles = [archive.read(each) for each in records if each.filename.endswith(".pkl")]
    elif isinstance(source, (str, Path)):
        pickles = [Path(source).read_bytes()]
    else:
        source.seek(0)
        pickles = [source.read()]
    if not isinstance(source, (str, Path)):
        source.seek(0)
    for content in pickles:
        found = _ALLOCATES.search(content)
        if found:
            raise CheckpointError(
                f"{name} asks for {found[1].decode()}, which could take any amount of memory and "
                f"which no checkpoint needs; it was refused"
            )


class _Type:
    """Stands for numpy.dtype: the types of numbers only."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in _NUMBER_KINDS:
            raise pickle.UnpicklingError(f"an array of {code!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


class _Array:
    """Stands for numpy.ndarray, filled by its pickled state."""

    array: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        flat = np.frombuffer(_bytes(data), kind.dtype)
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _bytes(data: Any) -> bytes:
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("an array that is not bytes")
    return data


def _scalar(kind: _Type, data: Any) -> bool | int | float:
    (number,) = np.frombuffer(_bytes(data), kind.dtype).tolist()
    found: bool | int | float = number
    return found


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _posix_path(*parts: str) -> str:
    return PurePosixPath(*map(str, parts)).as_posix()


def _windows_path(*parts: str) -> str:
    return PureWindowsPath(*map(str, parts)).as_posix()


# nnU-Net's logs are NumPy's scalars; pickles of NumPy 1 and 2 name its modules differently.
STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _Type,
    "numpy.ndarray": _Array,
    **{
        f"numpy.{core}.multiarray.{name}": made
        for core in ("core", "_core")
        for name, made in (("scalar", _scalar), ("_reconstruct", _reconstruct))
    },
    **{
        f"pathlib{module}.{pure}{system}Path": made
        for module in ("", "._local")  # Python 3.13's
        for pure in ("", "Pure")
        for system, made in (("", _posix_path), ("Posix", _posix_path), ("Windows", _windows_path))
    },
}  # fmt: skip
