"""Options of the commands that share, check and sweep a store.

This module imports nothing slow, so that `--help` is fast.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import platformdirs
from tyro.conf import FlagCreatePairsOff, Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from wsa.store.common.games import spelled


def commas(
    metavar: str, of: Callable[[str], Any] = str
) -> PrimitiveConstructorSpec[tuple[Any, ...]]:
    """Parse one word with commas, such as vit,resnet,clip; tyro's own lists use spaces."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: tuple(
            of(word.strip()) for word in words[0].split(",") if word.strip()
        ),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda values: [",".join(map(str, values))],
    )


def own_or(
    choices: Sequence[str], own: str, check: Callable[[str], None]
) -> PrimitiveConstructorSpec[str]:
    """Parse one of some choices, or the name of a user's own class, as module:Class."""

    def checked(word: str) -> str:
        check(word)
        return word

    return _one(f"{{{','.join([*choices, own])}}}", checked)


def _one(metavar: str, of: Callable[[str], str]) -> PrimitiveConstructorSpec[str]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: of(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )


def _local(path: str) -> str:
    """Return a path of this machine; `Path` would take a URL for a folder of that name."""
    if "://" in path:
        raise ValueError(f"{path} is a URL, but only stores are kept in buckets; give a local path")
    return path


def _without_folders(name: str) -> str:
    if "/" in name:
        raise ValueError(f"{name} has a '/', but it becomes part of a folder's name")
    return name


def _shown(default: str) -> str:
    """Show a default in the help, unless it only says that the option was not given."""
    return "" if default in ("False", "None", "''", "") else f"(default: {default})"


_HINT = arg(help_behavior_hint=_shown)
Switch = Annotated[bool, FlagCreatePairsOff, _HINT]  # Off unless given: there is no --no-FLAG.
Text = Annotated[str, _HINT]
FileName = Annotated[str, _one("STR", _without_folders), _HINT]
LocalPath = Annotated[str, _one("STR", _local), _HINT]
Game = Annotated[str, _one("STR", spelled), _HINT]
Games = Annotated[tuple[str, ...], commas("NAME,...", spelled), _HINT]
Names = Annotated[tuple[str, ...], commas("NAME,..."), _HINT]
Words = Annotated[tuple[str, ...], _HINT]
Pairs = Annotated[tuple[str, ...], commas("ALIAS=FILE,..."), _HINT]
Integers = Annotated[tuple[int, ...], commas("INT,...", int)]
OptionalInt = Annotated[int | None, arg(help_behavior_hint=_shown, metavar="INT")]
OptionalFloat = Annotated[float | None, arg(help_behavior_hint=_shown, metavar="FLOAT")]


def default_store() -> str:
    """Return `WSA_STORE`, or a folder in the user's data folder."""
    named = os.environ.get("WSA_STORE")
    if named:
        return named
    try:
        return str(platformdirs.user_data_path("wsa") / "store")
    except RuntimeError:  # A container's or a batch job's user may have no home.
        return ""


@dataclasses.dataclass(frozen=True)
class StoreOptions:
    """Options of every verb that reads a store."""

    store: str = dataclasses.field(default_factory=default_store)
    """Folder or URL of the store."""
    json: Switch = False
    """Print the result as JSON."""


@dataclasses.dataclass(frozen=True)
class InitOptions(StoreOptions):
    """Options of `wsa init`."""

    shared: Switch = False
    """Let a group write: everything in the store, now and later, gets its folder's group and permissions."""
    group: Text = ""
    """With --shared: the group; the folder's own if not given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeOptions(StoreOptions):
    """Options of `wsa merge`."""

    url: Annotated[Positional[str], arg(metavar="URL")]
    """The other store: a folder or a URL."""
    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be copied and what it saves, then stop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareOptions(MergeOptions):
    """Options of `wsa push` and `wsa pull`."""

    game: Games = ()
    """ALE games; all if not given."""
    models: Names = ()
    """Aliases or keys; every model that has encoded one of the games if not given."""
    no_frames: Switch = False
    """Do not copy frames: rows and embeddings are enough to train, but not to encode."""


@dataclasses.dataclass(frozen=True)
class CompletionOptions:
    """Options of `wsa completion`."""

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """Your shell."""


@dataclasses.dataclass(frozen=True)
class DuOptions(StoreOptions):
    """Options of `wsa du`."""

    by: Literal["game", "policy", "model", "author"] = "game"
    """What to sum over."""


@dataclasses.dataclass(frozen=True)
class VerifyOptions(StoreOptions):
    """Options of `wsa verify`."""

    sample: str = "100%"
    """Share of the objects to read, chosen at random each time: 1% or 0.01."""
    repair: Switch = False
    """Move damaged objects to damaged/, so that you can make or fetch them again."""


@dataclasses.dataclass(frozen=True)
class SweepOptions(StoreOptions):
    """Options of `wsa sweep`."""

    grace_hours: float = 24.0
    """Minimum age of a leftover. No commit may take longer than this."""
    yes: Switch = False
    """Remove the leftovers; otherwise they are only listed."""
