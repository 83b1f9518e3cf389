"""Places for tests: one in memory, and one that fails, stalls, cuts, lies or dies at a chosen call.

Both speak the verbs of `wsa.store.backends.base.Backend`, so whatever runs on a real store runs on
them. Nothing here needs more than the standard library.
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
    """A dictionary of files, as plain as the protocol allows: the model of every real backend.

    Args:
        url: What it calls itself.
        clock: Seconds since 1970, as this place tells the time; may be replaced at any moment.
        at_once: How many small reads callers should make side by side.

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
        """The file's bytes, at most `most`; `FileNotFoundError` if there is none."""
        found = self.files.get(self._inside(path))
        if found is None:
            raise FileNotFoundError(path)
        if len(found[0]) > most:
            raise too_large(f"{self.url}/{path}", len(found[0]), most)
        return found[0]

    def put_new(self, path: str, data: bytes) -> bool:
        """Publish a file unless one is there; whether this call did."""
        with self._lock:
            new = (bytes(data), self.clock())
            return self.files.setdefault(self._inside(path), new) is new

    def list(self, prefix: str) -> Iterator[Entry]:
        """All files below the folder `prefix`, in no order."""
        folder = f"{self._inside(prefix)}/" if prefix else ""
        with self._lock:
            found = list(self.files.items())
        for path, (data, modified) in found:
            if path.startswith(folder):
                yield Entry(path, len(data), modified)

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        with self._lock:
            self.files.pop(self._inside(path), None)

    def stat(self, path: str) -> int | None:
        """The file's length in bytes, or None if there is none."""
        found = self.files.get(self._inside(path))
        return None if found is None else len(found[0])

    def _inside(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise DamagedError(
                "bad-record", f"{path!r} leads out of the store {self.url}. Remove what names it."
            )
        return path


class Killed(BaseException):
    """The process is gone; as no `except Exception` sees a SIGKILL, none sees this."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a backend.

    Attributes:
        number: How many calls came before it, of any verb.
        verb: What was called.
        nth: How many calls of this verb came before it.
        path: The path or prefix it was given.
    """

    number: int
    verb: Verb
    nth: int
    path: str


# By the number of a call, or by a verb and how many calls of that verb came before; or any rule.
Plan = Mapping[int | tuple[Verb, int], Fault] | Callable[[Call], Fault | None]


def random_plan(
    seed: int, rate: float, faults: tuple[Fault, ...] = ("fail", "cut", "lose", "full")
) -> Callable[[Call], Fault | None]:
    """A plan by which each call meets a fault with probability `rate`; the same for a seed."""

    def plan(call: Call) -> Fault | None:
        rng = random.Random(f"{seed} {call.number}")
        return rng.choice(faults) if rng.random() < rate else None

    return plan


class FaultyBackend:
    """Another backend, with faults at chosen calls.

    | fault | what the caller sees | what happens in the place |
    | --- | --- | --- |
    | `fail` | `StorageError` unavailable | nothing |
    | `stall` | the answer, after `on_stall` returned | what was asked |
    | `cut` | a `get` returns the first half; a `list` fails half way; else as `fail` | nothing |
    | `lose` | `StorageError` unavailable | what was asked |
    | `late` | `StorageError` unavailable | a put is done after the next call, as networks may do it |
    | `full` | `put_new` raises `StorageError` no-space; others answer | nothing is stored |
    | `kill` | `Killed`, and again at every later call | nothing, from now on |

    Args:
        inner: Where the files are.
        plan: Which calls meet which fault.
        on_stall: Called in the midst of a stalled call; sleeps 0.1 s unless given.

    Attributes:
        calls: Every call so far, those that failed included.
        dead: Whether a call was killed.
    """

    def __init__(
        self,
        inner: Backend,
        plan: Plan | None = None,
        on_stall: Callable[[Call], None] = lambda call: time.sleep(0.1),
    ) -> None:
        self.inner = inner
        self.calls: list[Call] = []
        self.dead = False
        self._on_the_way: list[tuple[str, bytes]] = []
        self._counts: collections.Counter[Verb] = collections.Counter()
        self._plan = plan or {}
        self._on_stall = on_stall
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The inner backend's."""
        return self.inner.url

    @property
    def at_once(self) -> int:
        """The inner backend's."""
        return self.inner.at_once

    def get(self, path: str, most: int = MAX_FILE_BYTES) -> bytes:
        """The file's bytes, or the first half of them."""
        fault = self._begin("get", path)
        try:
            data = self.inner.get(path, most)
        finally:
            self._end(fault, path)
        return data[: len(data) // 2] if fault == "cut" else data

    def put_new(self, path: str, data: bytes) -> bool:
        """Publish a file unless one is there; whether this call did."""
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
        """All files below the folder `prefix`, or half of them and an error."""
        fault = self._begin("list", prefix)
        found = list(self.inner.list(prefix))
        self._end(fault, prefix)
        return _half(found, prefix) if fault == "cut" else iter(found)

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        fault = self._begin("delete", path)
        self.inner.delete(path)
        self._end(fault, path)

    def stat(self, path: str) -> int | None:
        """The file's length in bytes, or None if there is none."""
        fault = self._begin("stat", path)
        found = self.inner.stat(path)
        self._end(fault, path)
        return found

    def settle(self) -> None:
        """Let what is still on its way arrive."""
        while self._on_the_way:
            self.inner.put_new(*self._on_the_way.pop())

    def _begin(self, verb: Verb, path: str) -> Fault | None:
        """Count a call, and meet the faults that come before it does anything."""
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
        """Meet the faults that come after a call did its work."""
        self.settle()
        if self.dead:  # Killed by another thread meanwhile: what was on its way may have arrived.
            raise Killed
        if fault in ("lose", "late"):
            raise _unavailable(path)


def _half(found: Sequence[Entry], prefix: str) -> Iterator[Entry]:
    yield from found[: len(found) // 2]
    raise _unavailable(prefix)


def _unavailable(path: str) -> StorageError:
    return StorageError("unavailable", f"{path}: no answer (by plan). Run the same command again.")
