"""Track the workers of an encoding: their resources, and which of them cannot open a model."""

from __future__ import annotations

import importlib
import importlib.util
import time
from typing import Any

from distributed import Client

from wsa.encode.jobs import tasks
from wsa.encode.jobs.events import Listener, Started, WorkerUnfit
from wsa.encode.jobs.tasks import Failed
from wsa.store.common.errors import MissingError, UsageError

# Dask resource by which a worker declares its GPU: `dask worker --resources GPU=1`.
GPU = "GPU"

# Tasks share a GPU: one runs the model while others read and write. On a CPU, where the model is
# slower, one other task is enough.
TASKS_A_GPU = 4
THREADS_A_WORKER = 2

# Tasks in flight per thread: one running and one queued, so that no thread waits for the driver.
TASKS_A_THREAD = 2

COUNT_EVERY_S = 5.0


class Workers:
    """The workers of a client, which may come and go.

    Args:
        device: `cpu`, `cuda` or `auto`, which is the GPU if a worker offers one.
        threads: Number of cores that torch may use in a task; 0 for the worker's own setting.

    Raises:
        UsageError: If a GPU is asked for and no worker offers one.
        MissingError: If no worker can import wsa.

    Attributes:
        client: Dask client.
        device: `cpu` or `cuda`.
        listen: The listener given.
        threads: The number given.
        at_start: Numbers of workers and threads at the start.
        unfit: Workers that cannot open a model, by address.
    """

    def __init__(self, client: Client, device: str, listen: Listener, threads: int = 0) -> None:
        self.client = client
        self.listen = listen
        self.threads = threads
        self.unfit: dict[str, WorkerUnfit] = {}
        self._counted_at = time.monotonic()
        self._info = self._ask()
        self.exclude_without_wsa()  # Such a worker cannot even load a task.
        offered = any(GPU in one["resources"] for one in self._info.values())
        if device == "cuda" and not offered:
            raise UsageError(
                "--device cuda: no worker offers a GPU. On a machine with a GPU, start a Dask "
                f"worker with: dask worker --resources {GPU}=1"
            )
        self.device = "cuda" if offered and device != "cpu" else "cpu"
        in_all = sum(one["nthreads"] for one in self._info.values())
        self.at_start = Started(len(self._info), in_all, self.device, _dashboard(client))
        listen(self.at_start)

    def task_slots(self) -> int:
        """Return how many tasks may be in flight. Workers are counted again every few seconds."""
        fit = self._fit()
        if self.device == "cuda":
            slots = sum(TASKS_A_GPU * one["resources"].get(GPU, 0) for one in fit)
        else:
            slots = sum(one["nthreads"] for one in fit)
        return max(1, TASKS_A_THREAD * int(slots))

    def count(self) -> int:
        """Return the number of workers that can open the models, counted again every few seconds."""
        return len(self._fit())

    def _fit(self) -> list[dict[str, Any]]:
        if time.monotonic() - self._counted_at > COUNT_EVERY_S:
            self._counted_at, self._info = time.monotonic(), self._ask()
        return [one for address, one in self._info.items() if address not in self.unfit]

    def options(self, model: bool = True) -> dict[str, Any]:
        """Return options of `Client.submit` that say where a task may run.

        Args:
            model: Whether the task runs a model, and so needs part of a GPU.
        """
        options: dict[str, Any] = {}
        if model and self.device == "cuda":
            options["resources"] = {GPU: 1 / TASKS_A_GPU}
        if self.unfit:
            options["workers"] = [a for a in self._info if a not in self.unfit]
        return options

    def exclude(self, failed: Failed) -> None:
        """Give no more work to a worker that cannot open a model.

        Raises:
            WsaError: If it was the last worker.
        """
        if failed.worker not in self.unfit:
            self.unfit[failed.worker] = WorkerUnfit(failed.worker, failed.host, failed.error)
            self.listen(self.unfit[failed.worker])
        self._counted_at, self._info = time.monotonic(), self._ask()
        if not self._info.keys() - self.unfit.keys():
            where = f" (Worker {failed.worker} on {failed.host}.)"
            remote = "" if failed.worker.startswith("inproc") else where
            raise failed.error.reworded(f"{failed.error}{remote}")

    def exclude_without_wsa(self) -> bool:
        """Exclude workers that cannot import wsa or its libraries; return whether any were."""
        imported: Any = self.client.run(importlib.import_module, tasks.__name__, on_error="return")
        lacking = {
            address: why
            for address, why in imported.items()
            if isinstance(why, BaseException) and address not in self.unfit
        }
        for address, why in lacking.items():
            host = self._info.get(address, {}).get("host", "")
            message = f"{why}. Install wsa and its extras there, of the driver's version."
            self.exclude(Failed("", MissingError("no-library", message), address, host, True))
        return bool(lacking)

    def _ask(self) -> dict[str, Any]:
        workers: dict[str, Any] = self.client.scheduler_info(n_workers=-1)["workers"]
        return workers


def _dashboard(client: Client) -> str:
    """Return the address of Dask's dashboard; empty if the scheduler has none."""
    has_bokeh = client.run_on_scheduler(lambda: importlib.util.find_spec("bokeh") is not None)
    scheduler: Any = client.scheduler
    # A scheduler in this process does not start a dashboard.
    served = has_bokeh and not scheduler.address.startswith("inproc")
    return (client.dashboard_link or "") if served else ""
