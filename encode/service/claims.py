"""Who encodes what, so that services on one store share the work without doing it twice.

The frames of one game repeat each other, and a frame should go through a model once. So a service
takes (game, model) *pairs*, for a batch of segments. A claim is a small file of a name that only one
service can publish, and it is good for as long as its holder's heartbeats come, by the clock of the
store. Claims are a courtesy: commits are exclusive with or without them, so a claim that is lost,
doubled or ignored costs time and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from wsa.encode.service import heartbeat
from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError
from wsa.store.format import records

Pair = tuple[str, str]  # Game and model key.


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a claim.

    Attributes:
        version: 1.
        service: Who holds it.
        grace: Seconds without a heartbeat of the holder after which it is void.
    """

    version: Literal[1]
    service: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}\\Z")]
    grace: Annotated[float, msgspec.Meta(ge=0, le=3600)]


class Claims:
    """What one service holds.

    Args:
        backend: The store.
        service: Who claims.
        grace_s: Seconds without a heartbeat of this service after which others may take over.
    """

    def __init__(self, backend: Backend, service: str, grace_s: float) -> None:
        self._backend = backend
        self._service = service
        self._content = hashing.canonical(Claim(1, service, grace_s))
        self._grace_s = grace_s
        self.held: set[Pair] = set()

    def take(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Claim a fair share of `pairs`: all that are free where no other service is alive.

        Raises:
            StorageError: The store refused.
        """
        newest = heartbeat.newest_heartbeats(self._backend)
        seen = {service: at for service, (_, at) in newest.items()}
        claimed = {entry.path: entry.modified for entry in self._backend.list(names.CLAIMS)}
        # The store's clock shows at least the time of the newest heartbeat: usually one's own.
        now = max([0.0, *seen.values(), *claimed.values()])
        alive = {s for s, at in seen.items() if now - at <= self._grace_s} | {self._service}
        share = -(-len(pairs) // len(alive))
        for pair in pairs:
            if len(self.held) < share and pair not in self.held:
                path = names.claim_path(*pair)
                self.held.add(pair)  # First: a refusal may come after the file.
                if not self._put(path, now, seen, claimed.get(path, now)):
                    self.held.discard(pair)
        return [pair for pair in pairs if pair in self.held]

    def release(self) -> None:
        """Give back everything that is held.

        Raises:
            StorageError: The store refused; what was not given back is still held.
        """
        for pair in sorted(self.held):
            path = names.claim_path(*pair)
            with contextlib.suppress(FileNotFoundError):
                claim = self._read(path)
                if claim is not None and claim.service == self._service:
                    self._backend.delete(path)
            self.held.discard(pair)

    def _put(self, path: str, now: float, seen: dict[str, float], made: float) -> bool:
        """Publish a claim, in place of one whose holder is dead; whether it is this service's."""
        for _ in range(2):
            if self._backend.put_new(path, self._content):
                return True
            try:
                claim = self._read(path)
            except FileNotFoundError:  # Given back just now.
                continue
            if claim is not None:
                if claim.service == self._service:
                    return True
                if now - max(made, seen.get(claim.service, 0.0)) <= claim.grace:
                    return False
            # Of several that do this at once, two may hold the claim: a courtesy, no lock.
            self._backend.delete(path)
        return False

    def _read(self, path: str) -> Claim | None:
        """A claim, or None if what is there is none."""
        with contextlib.suppress(DamagedError):
            data = self._backend.get(path, heartbeat.MAX_HEARTBEAT_BYTES)
            return records.read_json(data, Claim, path, heartbeat.MAX_HEARTBEAT_BYTES)
        return None
