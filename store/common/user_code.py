"""Code of users' own, named as `module:name`: models, fusions, algorithms and policies.

Importing a module runs it, so the one rule is: a module is imported only where its name was typed by
the person who started this process. Stores and runs record such names for people to read; what they say
is compared with what was typed (`type_in`) and never imported because it stands there.
"""

from __future__ import annotations

import importlib
import re
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsa.store.common.errors import ConflictError, Kind, MissingError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")

_typed: set[str] = set()  # Of this process: nothing that is read ever adds to it.


def is_name(text: str) -> bool:
    """Whether `text` is spelled `module:name`."""
    return _NAME.fullmatch(text) is not None


def type_in(names: Iterable[str]) -> None:
    """Note what the user of this process typed, and so allows to be imported."""
    _typed.update(name for name in names if is_name(name))


def load_typed(name: str, kind: type, flag: str, recorded_in: str = "") -> Any:
    """The class that `module:name` names, if the user typed it.

    Args:
        name: `module:name`.
        kind: What it must be a subclass of.
        flag: The option that takes such names.
        recorded_in: The file that names it, for the message.

    Raises:
        MissingError: The user did not type it; no such module here, or no such name in it.
        ConflictError: Its module raises, or it is something else.
    """
    if name not in _typed:
        raise MissingError(
            "no-library",
            f"{recorded_in or 'The run'} names {name} ({flag}), someone's own code, and "
            "wsa never imports a module because a file names it. If it is on this machine and you trust it, name it "
            f"yourself: --trust {name}.",
        )
    try:
        found = find(name)
    except MissingError:
        raise
    except Exception as error:
        raise raised(name, error) from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConflictError(
            "user-code",
            f"{flag} {name}: it is no subclass of {kind.__module__}.{kind.__qualname__}. Derive it from "
            "that.",
        )
    return found


def find(name: str, kind: Kind = "no-library", where: str = "") -> Any:
    """The object that `module:name` names; a module in the current folder is found too.

    Args:
        name: `module:name`, typed by the user of this process.
        kind: Of the error where there is none.
        where: This process, in words.

    Raises:
        MissingError: No such module, or no such name in it.
        Exception: Whatever the module raises while it is imported.
    """
    place, _, attribute = name.partition(":")
    where = where or socket.gethostname()
    try:
        with current_folder():
            module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise MissingError(
            kind,
            f"{name} cannot be imported by {where} ({error}). Install its package there, or put its "
            "folder into PYTHONPATH before the process starts.",
        ) from None
    found = getattr(module, attribute, None)
    if not callable(found):
        raise MissingError(
            kind,
            f"{place} of {where} has no callable {attribute!r}. Write module:callable as it is "
            "spelled there.",
        )
    return found


def raised(name: str, error: Exception) -> ConflictError:
    """What to tell of an error in a user's code."""
    why = " ".join(str(error).split())[:300]
    return ConflictError(
        "user-code", f"{name} raised {type(error).__name__} ({why}). Correct it, and run again."
    )


@contextmanager
def current_folder() -> Iterator[None]:
    """Look in the current folder too, after all others, while a user's module is imported."""
    folder = str(Path.cwd())
    there = folder in sys.path
    if not there:
        sys.path.append(folder)
    try:
        yield
    finally:
        if not there:
            sys.path.remove(folder)
