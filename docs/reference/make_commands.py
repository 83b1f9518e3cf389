"""Write docs/reference/commands.md from the commands' own help.

python docs/reference/make_commands.py
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from wsa import cli
from wsa.learn.configs.algorithms import OFFLINE, ONLINE, CQLConfig
from wsa.learn.configs.study import KINDS

DEFAULT = CQLConfig  # Of `wsa learn` without --algo.


def page() -> str:
    """The page, the same on every machine: 100 columns, no color, no folder of this user."""
    with mock.patch.dict(os.environ, COLUMNS="100", NO_COLOR="1", WSA_STORE="$WSA_STORE"):
        return _page()


def _page() -> str:
    parts = [
        "# Commands\n\n",
        "This page shows the help of every command, made by `docs/reference/make_commands.py`.\n\n",
        f"```text\n{_help([])}```\n",
    ]
    for name, verb in cli.VERBS.items():
        parts.append(f"\n## wsa {name}\n\n{verb.what[0].upper() + verb.what[1:]}.\n\n")
        parts.append(f"```text\n{_help([name])}```\n")
        if name == "learn":
            parts.extend(_of_other_algorithms())
        if name == "study":
            parts.extend(
                f"\n### wsa study {kind}\n\n```text\n{_help([name, *kind.split()])}```\n"
                for kind in (*KINDS, "scale --during")
            )
    return "".join(parts)


def _of_other_algorithms() -> Iterator[str]:
    """Groups of options that `wsa learn` has with another --algo."""
    for name, online in [*((n, False) for n in OFFLINE), *((n, True) for n in ONLINE)]:
        flags = ["--algo", name, *(["--online"] if online else [])]
        if OFFLINE.get(name) is DEFAULT and not online:
            continue
        yield f"\n### wsa learn {' '.join(flags)}\n\nThese groups replace those above:\n\n"
        kinds = (" algorithm", " data", " live models") if online else (" algorithm",)
        groups = re.split(r"^(?= \S.*\n -{9})", _help(["learn", *flags]), flags=re.MULTILINE)
        text = "".join(g for g in groups if g.startswith(kinds)).partition("\nexample:")[0]
        yield f"```text\n{text.rstrip()}\n```\n"


def _help(verb: list[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main([*verb, "--help"])
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


if __name__ == "__main__":
    Path(__file__).with_name("commands.md").write_text(page())
