"""What a value of a JSON file must be: a test and the words for it.

Files of others may hold anything: text where a number is expected, 10^9 steps, NaN, a name that
leaves its folder. Nothing here imports, allocates or opens what a value says.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from reprlib import Repr
from typing import Any, NamedTuple

from nnunet_octreenca.files import JsonMapping

MAX_DEPTH = 40  # of lists and objects within one another; nnU-Net's own files have six
_MAX_NAME = 200  # characters; file systems allow 255 bytes
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80
# Names that Windows gives to devices, whatever the ending.
DEVICE_NAME = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])( *\.|$)")


class Rule(NamedTuple):
    """A test, and what a value must be to pass it; a TypeError in the test is a no."""

    good: Callable[[Any], bool]
    wanted: str

    def accepts(self, value: object) -> bool:
        """Whether a value passes."""
        try:
            return bool(self.good(value))
        except TypeError:
            return False


def whole(low: int, high: int) -> Rule:
    """A whole number, and no truth value.

    >>> whole(1, 9).accepts(3), whole(1, 9).accepts(10**9), whole(0, 9).accepts(True)
    (True, False, False)
    """
    return Rule(
        lambda value: type(value) is int and low <= value <= high,
        f"a whole number within [{low}, {high}]",
    )


def number(low: float = -1e30, high: float = 1e30, *, above: bool = False) -> Rule:
    """A finite number; `above`: `low` itself is excluded."""

    def good(value: Any) -> bool:
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return bool(low < value <= high if above else low <= value <= high)

    unbounded = (low, high) == (-1e30, 1e30)
    limits = "" if unbounded else f" within {'(' if above else '['}{low:g}, {high:g}]"
    return Rule(good, f"a finite number{limits}")


def flag() -> Rule:
    """true or false."""
    return Rule(lambda value: isinstance(value, bool), "true or false")


def optional(rule: Rule) -> Rule:
    """null, or what a rule accepts."""
    return Rule(lambda value: value is None or rule.accepts(value), f"null or {rule.wanted}")


def one_or_list(rule: Rule, lengths: Collection[int]) -> Rule:
    """A value, or a list of so many.

    >>> levels = one_or_list(whole(1, 9), (2,))
    >>> levels.accepts(3), levels.accepts([3, 4]), levels.accepts([3, 10]), levels.accepts([3])
    (True, True, False, False)
    """
    many = some(rule, lengths)
    return Rule(
        lambda value: rule.accepts(value) or many.accepts(value), f"{rule.wanted}, or {many.wanted}"
    )


def some(rule: Rule, lengths: Collection[int]) -> Rule:
    """A list of so many values."""
    counts = f"{min(lengths)} to {max(lengths)}" if len(lengths) > 3 else " or ".join(
        map(str, lengths)
    )  # fmt: skip
    return Rule(
        lambda value: (
            isinstance(value, (list, tuple))
            and len(value) in lengths
            and all(map(rule.accepts, value))
        ),
        f"a list of {counts}, each {rule.wanted}",
    )


def one_of(names: Collection[str], otherwise: str = "") -> Rule:
    """One of some names; `otherwise` says what to do about another."""
    advice = f"; {otherwise}" if otherwise else ""
    return Rule(lambda value: value in names, f"one of {', '.join(sorted(names))}{advice}")


def identifier() -> Rule:
    """The name of a class or function, without a module."""
    return Rule(
        lambda value: isinstance(value, str) and value.isidentifier() and len(value) <= _MAX_NAME,
        "the bare name of a class or function",
    )


def file_name() -> Rule:
    """A name that may become a folder's, on every system.

    >>> [file_name().accepts(n) for n in ("nnUNetPlans_2d", "../x", "a/b", "C:x", "aux", "a.", "")]
    [True, False, False, False, False, False, False]
    """
    return Rule(_is_file_name, "a name without path separators, colons, '..' or control characters")


def _is_file_name(value: Any) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value) <= _MAX_NAME
        and value == value.strip()
        and not value.endswith(".")
        and ".." not in value
        and not re.search(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f\ud800-\udfff]', value)
        and not DEVICE_NAME.match(value)
    )


def short(value: object) -> str:
    """A value for a sentence, shortened.

    >>> short("a" * 500)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'"
    """
    return _SHORT.repr(value)


def broken(
    values: JsonMapping,
    rules: Mapping[str, Rule],
    *,
    required: Collection[str] = (),
    place: str = "",
) -> Iterator[str]:
    """A sentence for each key that is missing or whose value breaks its rule.

    Args:
        values: of a JSON object.
        rules: of its keys; keys without one are not looked at.
        required: keys that must be there.
        place: of the object in the file, "configurations.2d." or empty.
    """
    for key, rule in rules.items():
        if key not in values:
            if key in required:
                yield f"{place}{key} is missing; it must be {rule.wanted}"
        elif not rule.accepts(values[key]):
            yield f"{place}{key} is {short(values[key])}, but must be {rule.wanted}"


def too_deep(content: object) -> bool:
    """Whether lists and objects stand more than MAX_DEPTH within one another."""
    layer = [content]
    for _ in range(MAX_DEPTH):
        layer = [
            inner
            for value in layer
            if isinstance(value, (list, dict))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not layer:
            return False
    return True
