"""Who encodes what, so that services on one store share the work without doing it twice.

The frames of one game repeat each other, and a frame shall go through a model once. So what a
service takes is a *lane*: a game by a model, for a batch of segments. A claim is a small file of a
name that only one can publish, and it is good for as long as its holder shows signs of life, by the
clock of the place. Claims are a courtesy: commits are exclusive with or without them, so one that is
lost, doubled or ignored costs time and nothing else.
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

Lane = tuple[str, str]  # Game and model key.


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a claim.

    Attributes:
        version: 1.
        service: Who holds it.
        grace: Seconds without a sign of the holder after which it is void.
    """

    version: Literal[1]
    service: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}\\Z")]
    grace: Annotated[float, msgspec.Meta(ge=0, le=3600)]


class Claims:
    """What one service holds.

    Args:
        backend: The store.
        service: Who claims.
        grace_s: Seconds without a sign of this service after which others may take over.
    """

    def __init__(self, backend: Backend, service: str, grace_s: float) -> None:
        self._backend = backend
        self._service = service
        self._content = hashing.canonical(Claim(1, service, grace_s))
        self._grace_s = grace_s
        self.held: set[Lane] = set()

    def take(self, lanes: Sequence[Lane]) -> list[Lane]:
        """Claim a fair share of `lanes`: all that are free where no other service is alive.

        Raises:
            StorageError: The place refused.
        """
        signs = {service: at for service, (_, at) in heartbeat.newest(self._backend).items()}
        claimed = {entry.path: entry.modified for entry in self._backend.list(names.CLAIMS)}
        # The place's clock shows at least the time of the newest sign: most often one's own.
        now = max([0.0, *signs.values(), *claimed.values()])
        alive = {s for s, at in signs.items() if now - at <= self._grace_s} | {self._service}
        share = -(-len(lanes) // len(alive))
        for lane in lanes:
            if len(self.held) < share and lane not in self.held:
                path = names.claim_path(*lane)
                self.held.add(lane)  # First: a refusal may come after the file.
                if not self._put(path, now, signs, claimed.get(path, now)):
                    self.held.discard(lane)
        return [lane for lane in lanes if lane in self.held]

    def release(self) -> None:
        """Give back everything that is held.

        Raises:
            StorageError: The place refused; what was not given back is held still.
        """
        for lane in sorted(self.held):
            path = names.claim_path(*lane)
            with contextlib.suppress(FileNotFoundError):
                claim = self._read(path)
                if claim is not None and claim.service == self._service:
                    self._backend.delete(path)
            self.held.discard(lane)

    def _put(self, path: str, now: float, signs: dict[str, float], made: float) -> bool:
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
                if now - max(made, signs.get(claim.service, 0.0)) <= claim.grace:
                    return False
            # Of several that do this at once, two may hold the claim: a courtesy, no lock.
            self._backend.delete(path)
        return False

    def _read(self, path: str) -> Claim | None:
        """A claim, or None if what is there is none."""
        with contextlib.suppress(DamagedError):
            data = self._backend.get(path, heartbeat.MAX_SIGN_BYTES)
            return records.read_json(data, Claim, path, heartbeat.MAX_SIGN_BYTES)
        return None
