"""Live embeddings by somebody else's machines: a Dask scheduler whose workers have the GPUs.

A learner's misses go there as one batch, parted among the workers, each of which keeps the models
it has opened. A worker opens a model as everybody does, checks included, and runs the same
function, so with the same engine its rows are those of this process, bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from wsa.encode.cluster import connect
from wsa.encode.forward import Encoder, choose_device
from wsa.encode.register import open_model
from wsa.store import names
from wsa.store.errors import ConflictError
from wsa.store.reader import take_objects
from wsa.store.root import open_store

MODELS_KEPT = 8
# A batch that was lost with its worker is embedded again elsewhere.
RETRIES = 3

_one_at_a_time = threading.Lock()


class RemoteEncoder:
    """Speaks like `wsa.encode.forward.Encoder`.

    Args:
        client: Of the scheduler.
        store: The store's URL, the same for this process and the workers.
        key: The model key.
        engine: What runs it; `auto` is what filled the store, if the worker has it.

    Attributes:
        passes: Frames that went through the network.
    """

    def __init__(self, client: Client, store: str, key: str, engine: str = "auto") -> None:
        self._client: Any = client
        self._store = store
        self._key = key
        self._engine = engine
        self.passes = 0

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed frames (n, H, W, 3) uint8 RGB: (n, *shape) float32.

        Raises:
            ConflictError: Workers died of it again and again.
            WsaError: A worker could not open the model.
        """
        parts = np.array_split(frames, min(len(frames), len(self._client.nthreads()) or 1))
        futures = [
            self._client.submit(
                embed,
                self._store,
                self._key,
                self._engine,
                part,
                pure=False,
                retries=RETRIES,
                priority=10,
            )
            for part in parts
        ]
        try:
            found = self._client.gather(futures)
        except RuntimeError as error:  # KilledWorker and its like.
            raise ConflictError(
                "other-bytes",
                f"The Dask workers cannot embed with {self._key} ({type(error).__name__}). Look "
                "into their logs, or leave out --encoder.",
            ) from None
        self.passes += len(frames)
        return np.concatenate(found)


@contextlib.contextmanager
def remote_encoders(
    scheduler: str, store: str, keys: Sequence[str], engine: str = "auto"
) -> Iterator[list[Any]]:
    """An encoder for each model key, on the workers of a scheduler at `tcp://host:port`.

    Raises:
        StorageError: The scheduler does not answer, or has no workers.
        UsageError: `scheduler` is no address.
    """
    with connect(scheduler, 0) as (client, _):
        yield [RemoteEncoder(client, store, key, engine) for key in keys]


def embed(store: str, key: str, engine: str, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a worker does."""
    with _one_at_a_time:  # A worker that somebody else started may have several threads.
        return _model(store, key, engine)(frames)


@functools.lru_cache(maxsize=MODELS_KEPT)
def _model(store: str, key: str, engine: str) -> Encoder:
    snapshot = take_objects(open_store(store), [names.model_path(key)])
    return open_model(snapshot, key, device=choose_device("auto"), engine=engine)
