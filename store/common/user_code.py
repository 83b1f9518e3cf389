"""Users' own models, fusions, algorithms and policies, named as `module:name`.

Importing a module runs it. So the rule is: wsa imports a module only if the person who started this
process typed its name (`type_in`). Stores and runs record such names for people to read. wsa compares
a recorded name with the typed ones, and never imports a module because a file names it.
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

ERRORS = (Exception, SystemExit)  # What such code may raise: some calls `sys.exit`.

_typed: set[str] = set()  # Names that this process's user typed. No name from a file is added.


def is_name(text: str) -> bool:
    """Whether `text` has the form `module:name`."""
    return _NAME.fullmatch(text) is not None


def type_in(names: Iterable[str]) -> None:
    """Allow importing the names that the user of this process typed."""
    _typed.update(name for name in names if is_name(name))


def load_typed(name: str, kind: type, flag: str, recorded_in: str = "") -> Any:
    """Return the class that `module:name` names, if the user typed that name.

    Args:
        name: `module:name`.
        kind: The required base class.
        flag: The option that takes such names, for messages.
        recorded_in: The file that names the class, for messages.

    Raises:
        MissingError: If the user did not type the name, or the module or the class does not exist.
        ConflictError: If the module raises, or the name is not a subclass of `kind`.
    """
    if name not in _typed:
        raise MissingError(
            "no-library",
            f"{recorded_in or 'The run'} names {name} ({flag}), someone's own code, and "
            "wsa never imports a module because a file names it. If it is on this machine and you trust it, name it "
            f"yourself: --trust {name}.",
        )
    try:
        cls = find(name)
    except MissingError:
        raise
    except ERRORS as error:
        raise raised(name, error) from error
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise ConflictError(
            "user-code",
            f"{flag} {name}: it is not a subclass of {kind.__module__}.{kind.__qualname__}. Derive "
            "it from that.",
        )
    return cls


def find(name: str, kind: Kind = "no-library", where: str = "") -> Any:
    """Import the callable that `module:name` names, also from the current folder.

    Args:
        name: `module:name`, typed by the user of this process.
        kind: Kind of the `MissingError`.
        where: This process, for messages; the host name if empty.

    Raises:
        MissingError: If there is no such module, or no such callable in it.
        Exception, SystemExit: Any of `ERRORS` that the module raises while it is imported.
    """
    module_name, _, attribute = name.partition(":")
    where = where or socket.gethostname()
    try:
        with current_folder():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise MissingError(
            kind,
            f"{name} cannot be imported on {where} ({error}). Install its package there, or put its "
            "folder into PYTHONPATH before the process starts.",
        ) from None
    found = getattr(module, attribute, None)
    if not callable(found):
        raise MissingError(
            kind,
            f"{module_name} on {where} has no callable {attribute!r}. Check the spelling of {name}.",
        )
    return found


def raised(name: str, error: BaseException) -> ConflictError:
    """Return a `ConflictError` that reports an error in a user's code."""
    why = " ".join(str(error).split())[:300]
    return ConflictError(
        "user-code", f"{name} raised {type(error).__name__} ({why}). Correct it, and run again."
    )


@contextmanager
def current_folder() -> Iterator[None]:
    """Append the current folder to `sys.path` while a user's module is imported."""
    folder = str(Path.cwd())
    listed = folder in sys.path
    if not listed:
        sys.path.append(folder)
    try:
        yield
    finally:
        if not listed:
            sys.path.remove(folder)
