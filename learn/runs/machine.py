"""Where and how a run trains; not part of its configuration, because a run can change machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from wsa.store.objects.snapshot import Snapshot


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where and how a run's networks and models compute.

    Attributes:
        device: Device for training, and for the models that embed frames.
        engine: Inference engine of the models; `auto` uses the one that filled the store.
        weights: Paths of weights files by alias, if this machine keeps them elsewhere.
        threads: Number of threads that embed in parallel; None for as many as torch uses.
        compiled: Whether networks go through torch.compile.
    """

    device: str = "cpu"
    engine: str = "auto"
    weights: Mapping[str, str] | None = None
    threads: int | None = None
    compiled: bool = False

    def open_models(
        self, snapshot: Snapshot, keys: Sequence[str], preferred: Sequence[str] = ()
    ) -> Sequence[Any]:
        """Open models of a store; see `wsa.encode.registration.register.open_models`."""
        from wsa.encode.registration import register  # Imported here: it imports timm.

        return register.open_models(
            snapshot,
            keys,
            weights=self.weights,
            device=self.device,
            engine=self.engine,
            threads=self.threads,
            preferred=preferred,
        )
