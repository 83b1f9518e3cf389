"""What users may set when they look at the services of a store.

Nothing heavy is imported here, so that help is quick.
"""

from __future__ import annotations

import dataclasses

from wsa.store.configs import StoreOptions


@dataclasses.dataclass(frozen=True)
class StatusOptions(StoreOptions):
    """Options of `wsa status`."""
