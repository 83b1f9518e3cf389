"""All errors that wsa raises on purpose, sorted by what the caller should do about them.

    WsaError
    ├── UsageError      exit 2   the command or an option is invalid: change the command
    ├── MissingError    exit 3   something does not exist yet: make it first (the message says how)
    ├── ConflictError   exit 4   two things disagree and nothing was written: choose one
    ├── DamagedError    exit 5   stored bytes are not what was committed: verify, then re-encode
    └── StorageError    exit 6   the disk or the bucket refused: free space, or try again later

Each instance has a `kind`, a stable code for scripts to compare; an `exit_code`; and a message of
one or a few lines: what was found, where, and what to do. Kinds are added, never removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import ClassVar, Literal

Kind = Literal[
    "bad-name",
    "bad-option",
    "unknown-game",
    "unknown-model",
    "no-store",
    "no-frames",
    "not-encoded",
    "no-weights",
    "no-library",
    "no-gpu",
    "no-run",
    "other-format",
    "other-weights",
    "other-bytes",
    "model-drift",
    "step-error",
    "not-finite",
    "model-failed",
    "user-code",
    "run-exists",
    "bad-record",
    "bad-array",
    "bad-bytes",
    "lost-file",
    "no-space",
    "no-permission",
    "no-memory",
    "worker-died",
    "unavailable",
]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class WsaError(Exception):
    """Base class of all errors that wsa raises on purpose.

    Args:
        kind: A stable code for this failure.
        message: What was found and where, ending with what to do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, kind: Kind, message: str) -> None:
        # Anyone may have written the names and values of a store: no control characters from them.
        super().__init__(_CONTROL.sub("?", message))
        self.kind: Kind = kind

    def reworded(self, message: str) -> WsaError:
        """Return an error of the same class and kind with another message, without a traceback."""
        return _make(type(self), self.kind, message)

    def __reduce__(self) -> tuple[Callable[..., WsaError], tuple[object, ...]]:
        """Keep the kind when the error travels between processes."""
        return _make, (type(self), self.kind, str(self))


def _make(error: type[WsaError], kind: Kind, message: str) -> WsaError:
    """Create an error of any class; the constructors of the classes differ."""
    made = error.__new__(error)
    WsaError.__init__(made, kind, message)
    return made


class UsageError(WsaError, ValueError):
    """The command or an option is invalid.

    Args:
        message: What was found and where, ending with what to do about it.
        kind: A stable code for this failure.
    """

    exit_code = 2

    def __init__(self, message: str, *, kind: Kind = "bad-option") -> None:
        super().__init__(kind, message)


class MissingError(WsaError, LookupError):
    """Something that is needed does not exist yet."""

    exit_code = 3


class ConflictError(WsaError):
    """Two things disagree; nothing was written."""

    exit_code = 4


class DamagedError(WsaError):
    """Stored bytes are not what was committed."""

    exit_code = 5


class StorageError(WsaError, OSError):
    """The disk or the bucket refused a read or a write."""

    exit_code = 6


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a cluster sends before it ends a job: like Ctrl-C, but with exit code 143."""

    exit_code = 143


HIDDEN = "***"

# Up to the last @ of a word, since passwords may contain slashes.
_USER = re.compile(r"(?<=://)\S*@")
_QUERY = re.compile(r"(\w://\S*?)([?#])\S*")
_SECRET = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|ACCOUNT_KEY|SAS_KEY", re.IGNORECASE
)
# A shorter value is hardly a secret, and replacing it would hide ordinary words.
_SHORTEST = 8


def redact(text: str) -> str:
    """Hide secrets in a text: user names, passwords and queries of URLs, and the values of
    environment variables whose names suggest a secret."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET.search(name):
            text = text.replace(value, HIDDEN)
    return _QUERY.sub(rf"\1\2{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))
