"""Options of a command as it parses them, from flags given as keywords."""

from __future__ import annotations

from typing import Any

from wsa import cli


def options(verb: str, **flags: Any) -> Any:
    """`options("learn", online=True, algo="ppo")` is what `wsa learn --online --algo ppo` takes."""
    arguments = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if value is None:  # As if it had not been given.
            continue
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            word = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            arguments.append(f"--{flag}={word}")
    return cli.parse(verb, arguments)
