"""Options as they are written on the command line, for messages and reports."""

from __future__ import annotations

from typing import Any

_ON_ONLY = ("online", "record", "save_best")  # Options without a --no-FLAG.


def flag_value(value: Any) -> Any:
    """Write an option's value as on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def as_flag(name: str, value: Any) -> str:
    """Write an option with its value as on the command line."""
    flag = name.replace("_", "-")
    if value is None:
        return f"no --{flag}"
    if isinstance(value, bool):
        off = "no --" if name in _ON_ONLY else "--no-"
        return f"--{flag}" if value else f"{off}{flag}"
    return f"--{flag} {flag_value(value)}"


def differing(name: str, there: Any, here: Any) -> str:
    """Write how an option of an earlier command differs: `--seed 1, not 9`, or `--no-double-q`."""
    if isinstance(here, bool) or here is None:
        return as_flag(name, there)
    return f"{as_flag(name, there)}, not {flag_value(here)}"
