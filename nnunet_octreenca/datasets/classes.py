"""Which values of a mask are which class."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError

_UNDECLARED = 255  # more classes than 254 do not fit a label image of one byte
_VALUES = 1 << 16


@dataclass(frozen=True)
class Classes:
    """The classes of a data set and the mask values that stand for them.

    Attributes:
        foreground: values of each class, in the order of the labels 1, 2, ...
        background: values that become label 0.
        ignore: values of unannotated pixels; they become the last label, `ignore`.

    Raises:
        InputError: no class, too many, or a value that is used twice or no value of a mask.

    >>> Classes({"liver": (21,), "fat": (12,)}, ignore=(255,)).labels
    {'background': 0, 'liver': 1, 'fat': 2, 'ignore': 3}
    """

    foreground: Mapping[str, tuple[int, ...]]
    background: tuple[int, ...] = (0,)
    ignore: tuple[int, ...] = ()
    _table: NDArray[np.uint8] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.foreground) <= _UNDECLARED - 2:
            raise InputError(
                f"{len(self.foreground)} classes were declared; a data set has 1 to "
                f"{_UNDECLARED - 2}. Declare one with --class NAME=VALUE"
            )
        for name in self.foreground:
            if name in ("background", "ignore"):
                raise InputError(f"a class cannot be called {name!r}; declare it with --{name}")
        table = np.full(_VALUES, _UNDECLARED, np.uint8)
        groups = [self.background, *self.foreground.values(), self.ignore]
        for label, values in enumerate(groups):
            for value in values:
                if not 0 <= value < _VALUES:
                    raise InputError(f"mask values are 0 to {_VALUES - 1}, not {value}")
                if table[value] != _UNDECLARED:
                    raise InputError(f"the mask value {value} is declared twice")
                table[value] = label
        object.__setattr__(self, "_table", table)

    @property
    def labels(self) -> dict[str, int]:
        """nnU-Net's `labels` of dataset.json."""
        names = ["background", *self.foreground, *(["ignore"] if self.ignore else [])]
        return {name: label for label, name in enumerate(names)}

    def apply(self, mask: Pixels, file: object) -> NDArray[np.uint8]:
        """The labels of a mask.

        Args:
            mask: (rows, columns) of whole numbers, or (rows, columns, samples) of which all
                samples are the same (a grey picture saved as RGB) but for an opaque alpha.
            file: named if something is wrong.

        Raises:
            InputError: a value that was not declared, or a coloured mask.
        """
        mask = _one_sample(mask, file)
        if mask.dtype.kind not in "ui":
            raise InputError(f"{file} holds {mask.dtype} samples; a mask must hold integers")
        outside = mask.size > 0 and (int(mask.max()) >= _VALUES or int(mask.min()) < 0)
        labels = self._table[np.clip(mask, 0, _VALUES - 1) if outside else mask]
        unknown = labels == _UNDECLARED
        if outside or unknown.any():
            values = np.unique(mask[unknown] if not outside else mask)
            raise InputError(
                f"{file} holds {_listed(values)}, which belong(s) to no class. Declare it with "
                f"--class NAME=VALUE, --background VALUE or --ignore VALUE, or correct the mask"
            )
        return labels


def _one_sample(mask: Pixels, file: object) -> Pixels:
    if mask.ndim == 2:
        return mask
    first = mask[..., 0]
    coloured = mask[..., :3] if mask.shape[-1] > 2 else mask[..., :1]
    if (coloured != first[..., None]).any():
        raise InputError(
            f"{file} is a colour image; a mask holds one value per pixel. Save it as a greyscale "
            f"image whose values are the classes"
        )
    return first


def _listed(values: Pixels, most: int = 6) -> str:
    text = ", ".join(str(value) for value in values[:most])
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return f"the value(s) {text}{more}"


def parse_pairs(pairs: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Classes and their values from `NAME=VALUE[,VALUE]`.

    Raises:
        InputError: a pair that cannot be read, or a name given twice.

    >>> parse_pairs(["vessel=255", "other=1,2"])
    {'vessel': (255,), 'other': (1, 2)}
    """
    foreground: dict[str, tuple[int, ...]] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (equals and name.strip()):
            raise InputError(f"--class {pair} must be NAME=VALUE[,VALUE], such as --class liver=21")
        if name.strip() in foreground:
            raise InputError(f"the class {name.strip()!r} is declared twice")
        foreground[name.strip()] = parse_values(text, f"--class {pair}")
    return foreground


def parse_values(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers between commas.

    Raises:
        InputError: something else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"{option}: {text!r} is not an integer or a comma-separated list of integers"
        ) from error
