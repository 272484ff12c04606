"""Ranges: which numbers a setting can have, said where its field is declared: `b1: Annotated[float, Range("[0, 1)")]`.

In: a declared type and a value. Out: BadInput where the value is not in the range. config.py checks every setting; a number that is
none (nan) is in no range.
"""

import dataclasses
import typing
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
    """Raises BadInput, naming `where`, unless the value is of the declared type and in its range."""
    expected = plain(declared)
    if expected not in (int, float, str, bool):
        return
    if not (type(value) is expected or (expected is float and type(value) is int)):
        raise BadInput(f"{where}={value!r}: must be of type {expected.__name__}")
    for allowed in typing.get_args(declared)[1:]:
        if value not in allowed:
            raise BadInput(f"{where}={value!r}: must be in {allowed.text}")
