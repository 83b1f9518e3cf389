"""Claim work, so that services on one store share it without doing it twice.

Frames repeat within a game, and a frame should go through a model only once. So a service claims
(game, model) *pairs*, for a batch of segments. A claim is a small file with a name that only one
service can publish. It is valid while its holder's heartbeats arrive, by the clock of the store.
Claims are a courtesy: commits are exclusive even without them, so a claim that is lost, duplicated
or ignored only costs time.
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
        version: Version of this record, 1.
        service: Service that holds the claim.
        grace: Seconds without a heartbeat of the holder after which the claim is void.
    """

    version: Literal[1]
    service: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}\\Z")]
    grace: Annotated[float, msgspec.Meta(ge=0, le=3600)]


class Claims:
    """The claims of one service.

    Args:
        grace_s: Seconds without a heartbeat of this service after which others may take over.
    """

    def __init__(self, backend: Backend, service: str, grace_s: float) -> None:
        self._backend = backend
        self._service = service
        self._content = hashing.canonical(Claim(1, service, grace_s))
        self._grace_s = grace_s
        self.held: set[Pair] = set()

    def take(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Claim a fair share of `pairs`: all free ones if no other service is alive.

        Raises:
            StorageError: If the store refuses.
        """
        newest = heartbeat.newest_heartbeats(self._backend)
        seen = {service: at for service, (_, at) in newest.items()}
        claimed = {entry.path: entry.modified for entry in self._backend.list(names.CLAIMS)}
        # The newest heartbeat, usually this service's own, stands for the store's clock.
        now = max([0.0, *seen.values(), *claimed.values()])
        alive = {s for s, at in seen.items() if now - at <= self._grace_s} | {self._service}
        share = -(-len(pairs) // len(alive))
        for pair in pairs:
            if len(self.held) < share and pair not in self.held:
                path = names.claim_path(*pair)
                self.held.add(pair)  # First, since an error may follow a successful write.
                if not self._put(path, now, seen, claimed.get(path, now)):
                    self.held.discard(pair)
        return [pair for pair in pairs if pair in self.held]

    def release(self) -> None:
        """Release all claims.

        Raises:
            StorageError: If the store refuses; the claims not yet released are still held.
        """
        for pair in sorted(self.held):
            path = names.claim_path(*pair)
            with contextlib.suppress(FileNotFoundError):
                claim = self._read(path)
                if claim is not None and claim.service == self._service:
                    self._backend.delete(path)
            self.held.discard(pair)

    def _put(self, path: str, now: float, seen: dict[str, float], made: float) -> bool:
        """Publish a claim, replacing that of a dead service; return whether this service has it."""
        for _ in range(2):
            if self._backend.put_new(path, self._content):
                return True
            try:
                claim = self._read(path)
            except FileNotFoundError:  # Just released.
                continue
            if claim is not None:
                if claim.service == self._service:
                    return True
                if now - max(made, seen.get(claim.service, 0.0)) <= claim.grace:
                    return False
            # If several services do this at once, two may hold the claim, which is not a lock.
            self._backend.delete(path)
        return False

    def _read(self, path: str) -> Claim | None:
        """Read a claim; None if the file is not a valid one."""
        with contextlib.suppress(DamagedError):
            data = self._backend.get(path, heartbeat.MAX_HEARTBEAT_BYTES)
            return records.read_json(data, Claim, path, heartbeat.MAX_HEARTBEAT_BYTES)
        return None
