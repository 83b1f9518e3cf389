"""Every error wsa raises on purpose, sorted by what the caller should do about it.

    WsaError
    ├── UsageError      exit 2   the command asks for something that cannot be: change the command
    ├── MissingError    exit 3   something is not there yet: make it first (the message says how)
    ├── ConflictError   exit 4   two things disagree and nothing was written: choose one
    ├── DamagedError    exit 5   stored bytes are not what was committed: verify, then re-encode
    └── StorageError    exit 6   the disk or the bucket refused: free space, or try again later

Each instance carries `kind`, a stable code that scripts may compare, `exit_code`, and a message of
one or a few lines: what was found, where, and what to do. Kinds are only ever added.
"""

from __future__ import annotations

import os
import re
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
        # Names and values from a store may be anybody's: none of them may speak to a terminal.
        super().__init__(_CONTROL.sub("?", message))
        self.kind: Kind = kind

    def __reduce__(self) -> tuple[type[WsaError], tuple[str, str]]:
        """Travel whole between processes, kind included."""
        return type(self), (self.kind, str(self))


class UsageError(WsaError, ValueError):
    """The command asks for something impossible."""

    exit_code = 2


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
    """SIGTERM, as a cluster sends it before it takes the machine: like Ctrl-C, but exit code 143."""

    exit_code = 143


HIDDEN = "***"


# Up to the last @ of a word, as passwords may hold slashes; then what a query gives its names.
_USER = re.compile(r"(?<=://)\S*@")


_QUERY = re.compile(r"(\w://\S*?)([?#])\S*")


_SECRET = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|ACCOUNT_KEY|SAS_KEY", re.IGNORECASE
)


# A shorter value is no secret worth the name, and would blot out words.
_SHORTEST = 8


def redact(text: str) -> str:
    """The text without user names, passwords and queries of URLs, and without the values of
    environment variables that are named like secrets."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET.search(name):
            text = text.replace(value, HIDDEN)
    return _QUERY.sub(rf"\1\2{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))
