"""Embed live frames on remote machines: the workers of a Dask scheduler, usually with GPUs.

A learner's misses go there as one batch, split among the workers (only those with a GPU, if any has
one). Each worker keeps the models that it has opened. It opens a model with the usual checks and
runs the same function, so with the same engine its rows equal those of this process, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from distributed import CancelledError, wait
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder, choose_device
from wsa.encode.jobs import tasks
from wsa.encode.jobs.cluster import connect
from wsa.encode.jobs.workers import TASKS_A_GPU, TASKS_A_THREAD, Workers
from wsa.store.common.errors import ConflictError, StorageError, UsageError

# Another worker embeds a batch that was lost with its worker.
RETRIES = 3
# After twice this time without workers, a run gives up.
NO_WORKERS_S = 60


class RemoteEncoder:
    """A model on remote workers, with the interface of `wsa.encode.inference.encoder.Encoder`.

    Args:
        store: URL of the store, the same for this process and the workers.
        engine: Name of the engine; `auto` is the one that filled the store, if the worker has it.
        models: Number of models that the same workers run in turn, so that they keep them all.

    Attributes:
        alike: None, since the workers resize screens.
        in_parts: False, since all frames go to the workers at once.
        waits: True, since the work uses no core of this machine.
        passes: Number of frames that went through the network.
        engine: Its `name` is that of the engine that the first worker used.

    Raises:
        StorageError, ConflictError, WsaError: For the reasons of `__call__`.
    """

    alike = None
    in_parts = False
    waits = True

    def __init__(
        self, workers: Workers, store: str, key: str, engine: str = "auto", models: int = 1
    ) -> None:
        self._workers = workers
        self._client: Any = workers.client
        self._key = key
        self._what = store, key, engine, max(tasks.MODELS_KEPT, models)
        self.passes = 0
        # Open the model now, so that a run stops before it begins if no worker can.
        self.engine = SimpleNamespace(name=self._result([self._submit(engine_of)])[0])

    def shrinks(self, screen: Sequence[int]) -> bool:
        """Return False: this process does not resize screens."""
        return False

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed frames (n, H, W, 3) uint8 RGB as (n, *shape) float32.

        Raises:
            StorageError: If the scheduler or all workers are gone.
            ConflictError: If workers died repeatedly while embedding.
            WsaError: If a worker could not open the model.
        """
        at_once = self._workers.task_slots() // TASKS_A_THREAD
        if self._workers.device == "cuda":
            at_once //= TASKS_A_GPU
        parts = np.array_split(frames, max(1, min(len(frames), at_once)))
        done = self._result([self._submit(embed, part) for part in parts])
        self.passes += len(frames)
        return np.concatenate(done)

    def _submit(self, task: Callable[..., Any], *more: Any) -> Any:
        return self._client.submit(
            task,
            *self._what,
            *more,
            pure=False,
            retries=RETRIES,
            priority=10,
            **self._workers.options(),
        )

    def _result(self, futures: list[Any]) -> list[Any]:
        """Wait for the workers and return their results."""
        try:
            self._wait(futures)
            return self._client.gather(futures)  # type: ignore[no-any-return]
        except CancelledError:
            raise StorageError(
                "unavailable",
                "The Dask scheduler that --encoder names is gone. Start it and its workers again; "
                "'wsa learn --resume RUN' continues from the last checkpoint.",
            ) from None
        except RuntimeError as error:  # For example KilledWorker.
            raise ConflictError(
                "other-bytes",
                f"The Dask workers cannot embed with {self._key} ({type(error).__name__}). Check "
                "their logs, or leave out --encoder.",
            ) from None

    def _wait(self, futures: list[Any]) -> None:
        """Wait for futures; give up once there have been no workers for two timeouts."""
        alone = False
        while True:
            try:
                with self._client.as_current():
                    wait(futures, timeout=NO_WORKERS_S)
            except TimeoutError:
                if alone and not self._client.nthreads():
                    raise StorageError(
                        "unavailable",
                        "The Dask scheduler that --encoder names has no workers left. Start some; "
                        "'wsa learn --resume RUN' continues from the last checkpoint.",
                    ) from None
                alone = not self._client.nthreads()
            else:
                return


@contextlib.contextmanager
def remote_encoders(
    scheduler: str, store: str, keys: Sequence[str], engine: str = "auto"
) -> Iterator[list[Any]]:
    """Yield an encoder for each model key, on the workers of a scheduler at `tcp://host:port`.

    Raises:
        StorageError: If the scheduler does not answer or has no workers.
        UsageError: If `scheduler` is not an address.
        MissingError: If no worker can import wsa, or none has the weights.
    """
    if not scheduler.startswith(("tcp://", "tls://")):
        raise UsageError(
            f"--encoder {scheduler!r} is not an address; write tcp://HOST:8786 of a Dask "
            "scheduler, or leave it out to embed in this process."
        )
    with connect(scheduler, 0, option="--encoder") as (client, _):
        workers = Workers(client, "auto", lambda event: None)
        yield [RemoteEncoder(workers, store, key, engine, len(keys)) for key in keys]


def embed(
    store: str, key: str, engine: str, keep: int, frames: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Embed frames on a worker, which keeps the `keep` models that it used last."""
    with tasks.model_lock:  # A worker that wsa did not start may have several threads.
        return _model(store, key, engine, keep)(frames)


def engine_of(store: str, key: str, engine: str, keep: int) -> str:
    """Open a model on a worker and return the name of its engine there."""
    with tasks.model_lock:
        return _model(store, key, engine, keep).engine.name


def _model(store: str, key: str, engine: str, keep: int) -> Encoder:
    return tasks.cached_model(store, key, None, choose_device("auto"), engine, keep)
