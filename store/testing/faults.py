"""Backends for tests: one in memory, and one with faults at chosen calls.

Both implement `wsa.store.backends.base.Backend`, so any code that runs on a real store runs on them.
This module needs only the standard library.
"""

from __future__ import annotations

import collections
import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from wsa.store.backends.base import MAX_FILE_BYTES, Backend, Entry, too_large
from wsa.store.common.errors import DamagedError, StorageError

Verb = Literal["get", "put_new", "list", "delete", "stat"]
Fault = Literal["fail", "stall", "cut", "lose", "late", "full", "kill"]


class MemoryBackend:
    """A dictionary of files: the simplest backend, and the reference for all others.

    Args:
        clock: Returns the backend's time in seconds since 1970; may be replaced at any time.
        at_once: Useful number of concurrent small reads.

    Attributes:
        files: Bytes and time of publication by path; tests may change both.
    """

    def __init__(
        self,
        url: str = "memory://store",
        clock: Callable[[], float] = time.time,
        at_once: int = 1,
    ) -> None:
        self.url = url
        self.clock = clock
        self.at_once = at_once
        self.files: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    def get(self, path: str, most: int = MAX_FILE_BYTES) -> bytes:
        """Read a file of at most `most` bytes; `FileNotFoundError` if there is none."""
        found = self.files.get(self._inside(path))
        if found is None:
            raise FileNotFoundError(path)
        if len(found[0]) > most:
            raise too_large(f"{self.url}/{path}", len(found[0]), most)
        return found[0]

    def put_new(self, path: str, data: bytes) -> bool:
        """Publish a file unless one exists, and return whether this call published it."""
        with self._lock:
            new = (bytes(data), self.clock())
            return self.files.setdefault(self._inside(path), new) is new

    def list(self, prefix: str) -> Iterator[Entry]:
        """List all files below the folder `prefix`, in no order."""
        folder = f"{self._inside(prefix)}/" if prefix else ""
        with self._lock:
            found = list(self.files.items())
        for path, (data, modified) in found:
            if path.startswith(folder):
                yield Entry(path, len(data), modified)

    def delete(self, path: str) -> None:
        """Remove a file, if there is one."""
        with self._lock:
            self.files.pop(self._inside(path), None)

    def stat(self, path: str) -> int | None:
        """Return a file's length in bytes, or None if there is no such file."""
        found = self.files.get(self._inside(path))
        return None if found is None else len(found[0])

    def _inside(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise DamagedError(
                "bad-record", f"{path!r} leads out of the store {self.url}. Remove what names it."
            )
        return path


class Killed(BaseException):
    """Simulates SIGKILL: as a `BaseException`, it is not caught by `except Exception`."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a backend.

    Attributes:
        number: Number of earlier calls of all methods.
        verb: The method.
        nth: Number of earlier calls of this method.
        path: The path or prefix argument.
    """

    number: int
    verb: Verb
    nth: int
    path: str


# Faults by `Call.number` or by (`Call.verb`, `Call.nth`), or a function of the call.
Plan = Mapping[int | tuple[Verb, int], Fault] | Callable[[Call], Fault | None]


def random_plan(
    seed: int, rate: float, faults: tuple[Fault, ...] = ("fail", "cut", "lose", "full")
) -> Callable[[Call], Fault | None]:
    """Return a plan that gives each call a fault with probability `rate`, determined by `seed`."""

    def plan(call: Call) -> Fault | None:
        rng = random.Random(f"{seed} {call.number}")
        return rng.choice(faults) if rng.random() < rate else None

    return plan


class FaultyBackend:
    """Another backend, with faults at chosen calls.

    | fault | what the caller sees | what happens in the inner backend |
    | --- | --- | --- |
    | `fail` | `StorageError` unavailable | nothing |
    | `stall` | the result, after `on_stall` has returned | the call |
    | `cut` | `get` returns the first half; `list` fails halfway; others like `fail` | nothing |
    | `lose` | `StorageError` unavailable | the call |
    | `late` | `StorageError` unavailable | a put happens after the next call, as on a network |
    | `full` | `put_new` raises `StorageError` no-space; others succeed | nothing is stored |
    | `kill` | `Killed`, at this and every later call | nothing from now on |

    Args:
        inner: The backend that has the files.
        plan: The fault of each call.
        on_stall: Called during a stalled call; by default it sleeps 0.1 s.

    Attributes:
        calls: All calls so far, including those that failed.
        dead: Whether a call was killed.
    """

    def __init__(
        self,
        inner: Backend,
        plan: Plan | None = None,
        on_stall: Callable[[Call], None] = lambda call: time.sleep(0.1),
    ) -> None:
        self.inner = inner
        self.url, self.at_once = inner.url, inner.at_once
        self.calls: list[Call] = []
        self.dead = False
        self._on_the_way: list[tuple[str, bytes]] = []
        self._counts: collections.Counter[Verb] = collections.Counter()
        self._plan = plan or {}
        self._on_stall = on_stall
        self._lock = threading.Lock()

    def get(self, path: str, most: int = MAX_FILE_BYTES) -> bytes:
        """Read a file, or the first half of it."""
        fault = self._begin("get", path)
        try:
            data = self.inner.get(path, most)
        finally:
            self._end(fault, path)
        return data[: len(data) // 2] if fault == "cut" else data

    def put_new(self, path: str, data: bytes) -> bool:
        """Publish a file unless one exists, and return whether this call published it."""
        fault = self._begin("put_new", path)
        if fault == "full":
            raise StorageError("no-space", f"No room left at {path} (by plan). Free some space.")
        if fault == "late":
            self._on_the_way.append((path, data))
            raise _unavailable(path)
        won = self.inner.put_new(path, data)
        self._end(fault, path)
        return won

    def list(self, prefix: str) -> Iterator[Entry]:
        """List all files below the folder `prefix`, or half of them and raise an error."""
        fault = self._begin("list", prefix)
        found = list(self.inner.list(prefix))
        self._end(fault, prefix)
        return _half(found, prefix) if fault == "cut" else iter(found)

    def delete(self, path: str) -> None:
        """Remove a file, if there is one."""
        fault = self._begin("delete", path)
        self.inner.delete(path)
        self._end(fault, path)

    def stat(self, path: str) -> int | None:
        """Return a file's length in bytes, or None if there is no such file."""
        fault = self._begin("stat", path)
        found = self.inner.stat(path)
        self._end(fault, path)
        return found

    def settle(self) -> None:
        """Complete the puts that are delayed."""
        while self._on_the_way:
            self.inner.put_new(*self._on_the_way.pop())

    def _begin(self, verb: Verb, path: str) -> Fault | None:
        """Count a call, and apply the faults that precede its work."""
        with self._lock:
            call = Call(len(self.calls), verb, self._counts[verb], path)
            self._counts[verb] += 1
            self.calls.append(call)
            if callable(self._plan):
                fault = self._plan(call)
            else:
                fault = self._plan.get(call.number) or self._plan.get((verb, call.nth))
            self.dead |= fault == "kill"
            if self.dead:
                raise Killed
        if fault == "fail" or (fault == "cut" and verb not in ("get", "list")):
            raise _unavailable(path)
        if fault == "stall":
            self._on_stall(call)
        return fault

    def _end(self, fault: Fault | None, path: str) -> None:
        """Apply the faults that follow a call's work."""
        self.settle()
        if self.dead:  # Killed by another thread's call; delayed puts may still have arrived.
            raise Killed
        if fault in ("lose", "late"):
            raise _unavailable(path)


def _half(found: Sequence[Entry], prefix: str) -> Iterator[Entry]:
    yield from found[: len(found) // 2]
    raise _unavailable(prefix)


def _unavailable(path: str) -> StorageError:
    return StorageError("unavailable", f"{path}: no answer (by plan). Run the same command again.")
