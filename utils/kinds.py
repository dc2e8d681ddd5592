"""The kinds of settings, by the words that ``config.py`` has for them.

- ``bool``; ``str`` and ``path``: text that is not empty
- ``whole(1)``: a whole number, at least 1; ``multiple_of(32)``: 32, 64, ...
- ``number(0, 1)``: a number from 0 to 1, for which ``share`` is short; ``number(above=0)``
- ``one_of("a", "b")``; ``list_of(share)``; ``optional(path)``: a path or None
- ``gpus``: for GPU; ``protocol``: a name in ``utils.evaluation.protocols``
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from errors import UserError
from utils.evaluation.protocols import PROTOCOLS

_MAX = sys.float_info.max
_SWITCHES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class SettingsError(UserError):
    """A setting that is misspelt, missing, of the wrong type or out of its range."""


@dataclass(frozen=True)
class Kind:
    """What one setting may be."""

    type: type  # of the value, or of each value of a list
    expected: str  # the allowed values, in words
    metavar: str  # of the flag in --help
    allows: Callable[[Any], bool] = lambda value: True  # whether a value of the type is allowed
    several: bool = False  # the value is a list of different values, at least one
    optional: bool = False  # None is allowed, too

    def check(self, value: Any, found: str) -> Any:
        """A setting's value in the form that the code uses.

        Raises:
            SettingsError: it is not allowed; the message begins with ``found``.
        """
        if value is None and self.optional:
            return None
        is_list = isinstance(value, list | tuple)
        values = list(value) if is_list else [value]
        # type(), because bool is a kind of int to Python, but BATCH_SIZE = True is a mistake.
        types = (int, float) if self.type is float else (self.type,)
        allowed = all(type(one) in types and self.allows(one) for one in values)
        if not allowed or is_list != self.several or not 0 < len(values) == len(set(values)):
            raise SettingsError(f"{found}: expected {self.expected}")
        values = [self.type(one) for one in values]
        return values if self.several else values[0]

    def parse(self, given: str | list[str]) -> Any:
        """The value of a flag's text, or of the texts of a list.

        Text that is no value is returned as it is, and ``check`` refuses it.
        """
        texts = [given] if isinstance(given, str) else given
        if self.optional and [text.lower() for text in texts] == ["none"]:
            return None
        values = [self._parse_one(text) for text in texts]
        return values if self.several else values[0]

    def _parse_one(self, text: str) -> Any:
        try:
            return _SWITCHES.get(text.lower(), text) if self.type is bool else self.type(text)
        except ValueError:
            return text


def number(
    least: float = -_MAX, most: float = _MAX, above: float = -inf, below: float = inf
) -> Kind:
    """A finite number."""
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    words = " and ".join(f"{word} {n}" for word, n in bounds.items() if abs(n) < _MAX)
    if abs(least) < _MAX and abs(most) < _MAX:
        words = f"from {least} to {most}"
    return Kind(
        float,
        f"a number {words}",
        "X",
        lambda value: least <= value <= most and above < value < below,
    )


def whole(least: int, most: int = 1_000_000, factor: int = 1) -> Kind:
    """A whole number that ``factor`` divides."""
    multiple = f", a multiple of {factor}" if factor > 1 else ""
    return Kind(
        int,
        f"a whole number from {least} to {most}{multiple}",
        "N",
        lambda value: least <= value <= most and value % factor == 0,
    )


def multiple_of(factor: int, most: int = 1_000_000) -> Kind:
    """A whole number above 0 that ``factor`` divides."""
    return whole(factor, most, factor)


def one_of(*choices: str) -> Kind:
    """One of these values."""
    expected = " or ".join(map(repr, choices))
    return Kind(str, expected, "|".join(choices), lambda value: value in choices)


def list_of(kind: Kind) -> Kind:
    """A list of one or more values, which differ from each other."""
    return replace(kind, expected=f"a list of different values, each {kind.expected}", several=True)


def optional(kind: Kind) -> Kind:
    """A value of this kind, or None."""
    return replace(kind, expected=f"{kind.expected}, or None", optional=True)


_TEXT = Kind(str, "text in quotes, not empty", "TEXT", lambda value: value.strip() != "")
_GPUS = 'GPU indices in quotes, such as "0" or "0,1", or "" for the CPU'

KINDS = {
    "bool": Kind(bool, "True or False", "true|false"),
    "str": _TEXT,
    "path": replace(_TEXT, expected="a path in quotes, not empty", metavar="PATH"),
    "gpus": Kind(str, _GPUS, "TEXT", lambda value: re.fullmatch(r"([0-9]+(, *[0-9]+)*)?", value)),
    "share": number(0, 1),
    "protocol": replace(one_of(*PROTOCOLS), metavar="NAME"),
    **{word.__name__: word for word in (whole, number, multiple_of, one_of, list_of, optional)},
}
