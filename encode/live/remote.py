"""Live embeddings by somebody else's machines: a Dask scheduler whose workers have the GPUs.

A learner's misses go there as one batch, parted among the workers (those that offer a GPU, if one
does), each of which keeps the models it has opened. A worker opens a model as everybody does, checks
included, and runs the same function, so with the same engine its rows are those of this process,
bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from distributed import CancelledError, wait
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder, choose_device
from wsa.encode.jobs import tasks
from wsa.encode.jobs.cluster import connect
from wsa.encode.jobs.workers import TASKS_A_GPU, TASKS_A_THREAD, Workers
from wsa.store.common.errors import ConflictError, StorageError, UsageError

# A batch that was lost with its worker is embedded again elsewhere.
RETRIES = 3
# Workers that are gone for twice as long are not coming back.
NO_WORKERS_S = 60


class RemoteEngine(NamedTuple):
    """An engine elsewhere, by its name."""

    name: str


class RemoteEncoder:
    """Speaks like `wsa.encode.inference.encoder.Encoder`.

    Args:
        workers: Of the scheduler.
        store: The store's URL, the same for this process and the workers.
        key: The model key.
        engine: What runs it; `auto` is what filled the store, if the worker has it.

    Attributes:
        alike: Nothing: the workers make screens small.
        in_parts: No: all frames go to the workers at once.
        waits: Yes: the cores are elsewhere.
        passes: Frames that went through the network.
        engine: What the first worker asked runs it with.

    Raises:
        StorageError, ConflictError, WsaError: As when it is called.
    """

    alike = None
    in_parts = False
    waits = True

    def __init__(self, workers: Workers, store: str, key: str, engine: str = "auto") -> None:
        self._workers = workers
        self._client: Any = workers.client
        self._key = key
        self._what = store, key, engine
        self.passes = 0
        # So that a model that no worker can open stops a run before it begins.
        self.engine = RemoteEngine(self._result([self._submit(engine_of)])[0])

    def shrinks(self, screen: Sequence[int]) -> bool:
        """Whether this process makes screens small: no."""
        return False

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed frames (n, H, W, 3) uint8 RGB: (n, *shape) float32.

        Raises:
            StorageError: The scheduler has gone, or all workers have.
            ConflictError: Workers died of it again and again.
            WsaError: A worker could not open the model.
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
        """What the workers give."""
        try:
            self._wait(futures)
            return self._client.gather(futures)  # type: ignore[no-any-return]
        except CancelledError:
            raise StorageError(
                "unavailable",
                "The Dask scheduler that --encoder names has gone. Start it and its workers again; "
                "'wsa learn --resume RUN' goes on from the last checkpoint.",
            ) from None
        except RuntimeError as error:  # KilledWorker and its like.
            raise ConflictError(
                "other-bytes",
                f"The Dask workers cannot embed with {self._key} ({type(error).__name__}). Look "
                "into their logs, or leave out --encoder.",
            ) from None

    def _wait(self, futures: list[Any]) -> None:
        """Wait for as long as somebody is there to work."""
        alone = False
        while True:
            try:
                with self._client.as_current():
                    wait(futures, timeout=NO_WORKERS_S)
            except TimeoutError:
                if alone and not self._client.nthreads():
                    raise StorageError(
                        "unavailable",
                        "The Dask scheduler that --encoder names has no workers any more. Start "
                        "some; 'wsa learn --resume RUN' goes on from the last checkpoint.",
                    ) from None
                alone = not self._client.nthreads()
            else:
                return


@contextlib.contextmanager
def remote_encoders(
    scheduler: str, store: str, keys: Sequence[str], engine: str = "auto"
) -> Iterator[list[Any]]:
    """An encoder for each model key, on the workers of a scheduler at `tcp://host:port`.

    Raises:
        StorageError: The scheduler does not answer, or has no workers.
        UsageError: `scheduler` is no address.
        MissingError: No worker can import wsa, or none has the weights.
    """
    if not scheduler.startswith(("tcp://", "tls://")):
        raise UsageError(
            "bad-option",
            f"--encoder {scheduler!r} is no address; write tcp://HOST:8786 of a Dask scheduler, or "
            "leave it out to embed in this process.",
        )
    with connect(scheduler, 0, option="--encoder") as (client, _):
        workers = Workers(client, "auto", lambda event: None)
        yield [RemoteEncoder(workers, store, key, engine) for key in keys]


def embed(store: str, key: str, engine: str, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a worker does."""
    with tasks.model_lock:  # A worker that somebody else started may have several threads.
        return _model(store, key, engine)(frames)


def engine_of(store: str, key: str, engine: str) -> str:
    """Open a model on a worker; the name of what runs it there."""
    with tasks.model_lock:
        return _model(store, key, engine).engine.name


def _model(store: str, key: str, engine: str) -> Encoder:
    return tasks.cached_model(store, key, None, choose_device("auto"), engine)
