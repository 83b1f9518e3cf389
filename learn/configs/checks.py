"""Whether hyperparameters are in their ranges, told by the names that users give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from wsa.store.common.errors import UsageError


def check_seed(seed: int, option: str = "--seed") -> None:
    """Refuse a seed that leaves no room for those of environments, which are seed + i.

    Raises:
        UsageError: It is out of range.
    """
    if not 0 <= seed < 2**31 - 1000:
        raise UsageError("bad-option", f"{option} must be from 0 to {2**31 - 1001}, not {seed}.")


def check_ranges(
    config: Any,
    *,
    counts: Sequence[str],
    shares: Sequence[str],
    positive: Sequence[str],
    optional: Sequence[str],
) -> None:
    """Refuse what no run can take.

    Args:
        config: Hyperparameters.
        counts: Fields that must be at least 1.
        shares: Fields that must be from 0 to 1.
        positive: Fields that must be finite and above 0.
        optional: Fields that must be at least 0.

    Raises:
        UsageError: One is not.
    """
    kinds: list[tuple[Sequence[str], str, Callable[[float], bool]]] = [
        (counts, "at least 1", lambda value: value >= 1),
        (shares, "from 0 to 1", lambda value: 0 <= value <= 1),
        (positive, "positive", lambda value: 0 < value < inf),
        (optional, "at least 0", lambda value: value >= 0),
    ]
    for fields, least, right in kinds:
        for field in fields:
            value = getattr(config, field)
            if not right(value):
                option = field.replace("_", "-")
                raise UsageError("bad-option", f"--{option} must be {least}, not {value}.")
