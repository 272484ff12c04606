"""Ranges: what a setting can be, said where its field is declared: `b1: Annotated[float, Range("[0, 1)")]`.

In: a declared type and a value. Out: BadInput where the value is of another kind or not in the range. config.py checks every
setting; a number that is none (nan) is in no range.
"""

import dataclasses
import difflib
import typing
from collections.abc import Collection
from typing import Annotated

from msmjax.artifact import BadInput


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval as mathematicians write it: "[0, 1)" has 0 and not 1; infinity is a value only where "inf]" says so."""

    text: str

    def __contains__(self, value: float) -> bool:
        low, high = (float(end) for end in self.text[1:-1].split(","))
        return (low <= value if self.text[0] == "[" else low < value) and (value <= high if self.text[-1] == "]" else value < high)


Count = Annotated[int, Range("[1, inf)")]
Natural = Annotated[int, Range("[0, inf)")]
Positive = Annotated[float, Range("(0, inf)")]
NotNegative = Annotated[float, Range("[0, inf)")]
Share = Annotated[float, Range("[0, 1]")]


def plain(declared: type) -> type:
    """The type without its range."""
    return typing.get_args(declared)[0] if typing.get_origin(declared) is Annotated else declared


def check(declared: type, value: object, where: str) -> None:
    """Raises BadInput, naming `where`, unless the value is of the declared type, part for part, and in its range.

    A tuple may be given as a list, a whole number for a float, and whatever is declared by a class is that class's to check.
    """
    expected = plain(declared)
    origin, parts = typing.get_origin(expected), typing.get_args(expected)
    if origin is tuple:
        repeated = parts[-1] is Ellipsis
        if not isinstance(value, tuple | list) or not (repeated or len(value) == len(parts)):
            raise BadInput(f"{where}={value!r}: must be {_said(expected)}")
        for index, part in enumerate(value):
            check(parts[0] if repeated else parts[index], part, f"{where}[{index}]")
    elif origin is dict:
        if not hasattr(value, "items"):
            raise BadInput(f"{where}={value!r}: must be {_said(expected)}")
        for key, part in value.items():
            check(parts[1], part, f"{where}.{key}")
    elif expected in (int, float, str, bool):
        if not (type(value) is expected or (expected is float and type(value) is int)):
            raise BadInput(f"{where}={value!r}: must be {_said(expected)}")
        if type(value) is int and abs(value) >= 2**63:
            raise BadInput(f"{where}: a number of {value.bit_length()} bits; must have at most 63")
        for allowed in typing.get_args(declared)[1:]:
            if value not in allowed:
                raise BadInput(f"{where}={value!r}: must be in {allowed.text}")


def known(name: str, names: Collection[str], where: str, what: str) -> None:
    """Raises BadInput where a name is none of `names`."""
    if name not in names:
        raise BadInput(f"{where}: no {what} {name!r}{suggestion(name, names)}")


def suggestion(name: str, names: Collection[str]) -> str:
    """What to write instead: the closest known name, or all of them."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; one of {', '.join(names)}"


def _said(declared: type) -> str:
    """A type in words."""
    origin, parts = typing.get_origin(declared), [plain(part) for part in typing.get_args(declared)]
    if origin is dict:
        return "keys with values"
    if origin is tuple and parts[-1] is Ellipsis:
        return f"a tuple of parts that are {_said(parts[0])}"
    if origin is tuple:
        return f"({', '.join(part.__name__ for part in parts)})"
    return f"of type {declared.__name__}"
