"""Ranges of options, declared on the field that they limit."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from wsa.store.common.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number may be; infinity and NaN are never allowed.

    Attributes:
        least: Smallest value.
        most: Largest value.
        above: Whether `least` itself is excluded.
        below: Whether `most` itself is excluded.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` is finite and within the range."""
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high and math.isfinite(value)

    def __str__(self) -> str:
        if self.most == math.inf:
            if self.above:
                return "positive" if self.least == 0 else f"above {self.least:.12g}"
            return f"at least {self.least:.12g}"
        return f"from {self.least:.12g} to {'below ' if self.below else ''}{self.most:.12g}"


COUNT = Range(1)
OPTIONAL_COUNT = Range(0)
SHARE = Range(0, 1)
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
# Leaves room for the seeds of environments, which are seed + i.
SEED = Range(0, 2**31 - 1001)


def check_ranges(options: Any, flags: Mapping[str, str] | None = None) -> None:
    """Check every field of a dataclass or struct that declares a `Range`.

    Args:
        options: Values to check; of a tuple each number.
        flags: What a field is called on the command line, where that is not its own name.

    Raises:
        UsageError: A value lies outside; the message names the option.
    """
    hints = typing.get_type_hints(type(options), include_extras=True)
    for name, hint in hints.items():
        for limit in getattr(hint, "__metadata__", ()):
            if not isinstance(limit, Range):
                continue
            value = getattr(options, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and not limit.holds(number):
                    option = (flags or {}).get(name, name.replace("_", "-"))
                    raise UsageError("bad-option", f"--{option} must be {limit}, not {number}.")
