"""Ranges of options, declared on the fields that they limit."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from wsa.store.common.errors import UsageError

# Above this, libraries fail with overflows, and a float no longer holds every whole number.
LARGEST = 2**53


@dataclasses.dataclass(frozen=True)
class Range:
    """Allowed range of a finite number.

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
        """Whether `value` is finite and in the range."""
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high and math.isfinite(value)

    def __str__(self) -> str:
        if self.most == math.inf:
            if self.above:
                return "positive" if self.least == 0 else f"above {self.least:.12g}"
            return f"at least {self.least:.12g}"
        most = f"below {self.most:.12g}" if self.below else f"{self.most:.12g}"
        if self.above:
            return f"above {self.least:.12g} and {most if self.below else f'at most {most}'}"
        return f"from {self.least:.12g} to {most}"


COUNT = Range(1)
OPTIONAL_COUNT = Range(0)
SHARE = Range(0, 1)
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
# Leaves room for the seeds of the environments, seed + i.
SEED = Range(0, 2**31 - 1001)


def check_ranges(options: Any, flags: Mapping[str, str] | None = None) -> None:
    """Check every field of a dataclass or struct that declares a `Range`.

    Declare a field as `Annotated[int, COUNT]`, or as `Annotated[int, COUNT] | None` if it is
    optional. In a tuple, every number is checked.

    Args:
        flags: Flag names of fields whose flag differs from the field's name.

    Raises:
        UsageError: If a value is outside its range, or above `LARGEST`; the message names the
            option.
    """
    for name, hint in typing.get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name)
        numbers = value if isinstance(value, tuple) else (value,)
        for limit in _ranges(hint):
            for number in numbers:
                if number is None or (limit.holds(number) and number <= LARGEST):
                    continue
                option = (flags or {}).get(name, name.replace("_", "-"))
                allowed = f"at most {LARGEST}" if limit.holds(number) else limit
                raise UsageError(f"--{option} must be {allowed}, not {number}.")


def _ranges(hint: Any) -> Iterator[Range]:
    """Yield the ranges of a type, including those of a union's members."""
    if typing.get_origin(hint) is typing.Annotated:
        yield from (limit for limit in hint.__metadata__ if isinstance(limit, Range))
        yield from _ranges(hint.__origin__)
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _ranges(part)
