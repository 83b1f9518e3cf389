"""Number of workers that one driver keeps busy: real driver, scheduler, and messages; fake models.

    python -m benchmarks.encoding.workers                             the table of docs/explain/scale.md
    python -m benchmarks.encoding.workers --workers 256 --seconds 1   one row of it

Workers are Dask workers on TCP, all in one other process. Each has one model, which sleeps as long
as a segment takes (1,024 frames at 5,000 frames/s are 0.2 s) and returns what a real task returns.
Driver and scheduler share this script's process, as with the local scheduler and SLURM. On two
cores, the driver has one and all workers share the other, so the result is a lower bound: at some
point the fake workers become the limit. `busy` is the share of time, from the first task to the
last, in which the models worked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from distributed import Client, LocalCluster, Worker, get_worker

from benchmarks.kit import markdown
from wsa.encode.jobs import tasks
from wsa.encode.jobs.events import SegmentDone
from wsa.encode.jobs.plan import Copy, Item
from wsa.encode.jobs.scheduler import Driver
from wsa.encode.jobs.tasks import Embedded, TaskSettings
from wsa.encode.jobs.workers import THREADS_A_WORKER, Workers
from wsa.learn.envs.atari import protocol
from wsa.store.common import hashing, names
from wsa.store.format.records import SegmentMeta

STEPS, DISTINCT = 1024, 820
MODELS = [
    names.make_model_key(alias, hashing.identity(alias)) for alias in ("vit", "resnet", "clip")
]


async def serve(address: str, workers: int) -> None:
    """Run many workers in this process, with fake tasks."""
    locks: dict[str, asyncio.Lock] = {}

    async def model(settings: TaskSettings) -> None:
        async with locks.setdefault(get_worker().address, asyncio.Lock()):
            await asyncio.sleep(float(settings.sources["seconds"]))

    def done(items: Any) -> list[SegmentDone]:
        return [
            SegmentDone(
                i.meta.game,
                i.meta.segment,
                i.model,
                i.inputs,
                len(i.own),
                i.inputs - len(i.own),
                0.2,
            )
            for i in items
        ]

    async def encode_segment(settings: TaskSettings, items: Any) -> list[SegmentDone]:
        await model(settings)
        return done(items)

    async def embed(settings: TaskSettings, items: Any) -> list[Embedded]:
        await model(settings)
        return [Embedded(i.model, np.zeros((len(i.own), 512), np.float16), 0, 0) for i in items]

    async def commit(settings: TaskSettings, items: Any, embedded: Any) -> list[SegmentDone]:
        return done(items)

    for task in (encode_segment, embed, commit):
        task.__module__ = tasks.__name__
        task.__qualname__ = task.__name__
        setattr(tasks, task.__name__, task)
    options: dict[str, Any] = {"nthreads": THREADS_A_WORKER, "dashboard": False, "memory_limit": 0}
    started = [Worker(address, **options) for _ in range(workers)]
    await asyncio.gather(*started)
    await asyncio.gather(*(worker.finished() for worker in started))


@contextlib.contextmanager
def pretended(workers: int) -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=0, dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False}
        ) as cluster,
        Client(cluster) as client,
    ):
        module = "benchmarks.encoding.workers"
        command = [sys.executable, "-m", module, "--serve", cluster.scheduler_address]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([*command, "--workers", str(workers)], **quiet)
        try:
            client.wait_for_workers(workers, timeout=120)
            yield client
        finally:
            process.kill()
            process.wait()


def make_segments(count: int, chained: bool, models: int) -> list[tuple[Item, ...]]:
    """Segments as in a real plan; if `chained`, each repeats three frames of the one before."""
    rules = protocol("Seaquest", "classic")
    segments = []
    for number in range(count):
        run, env, start = hashing.identity(number % 97)[:12], number % 8, number * STEPS
        where = names.make_segment(run, env, start, STEPS)
        meta = SegmentMeta(
            game="Seaquest",
            segment=where,
            run=run,
            env=env,
            start=start,
            rows=STEPS + 4,
            steps=STEPS,
            frames=DISTINCT,
            episodes=((700, 120.0), (650, 80.0)),
            protocol=rules,
            policy="random",
            seed=1,
            emulator=("0.12.0", "240bfbac5163af4df5ae713985386f92"),
        )
        copies: tuple[Copy, ...] = ()
        if chained and segments:
            three = np.arange(3)
            before = segments[-1][0].meta
            copies = (Copy("Seaquest", before.segment, three + DISTINCT - 3, three),)
        own = np.arange(3 if copies else 0, DISTINCT)
        segments.append(tuple(Item(model, meta, own, copies) for model in MODELS[:models]))
    return segments


def measure(
    client: Client, workers: int, seconds: float, chained: bool, models: int, lasting: float
) -> list[object]:
    """Run a plan, and measure how busy the models were."""
    count = max(4 * workers, int(lasting * workers / seconds) if seconds else 20 * workers)
    plan = make_segments(min(count, 12_000), chained, models)
    settings = TaskSettings("/nowhere", {"seconds": str(seconds)}, {}, "cpu", 1)
    driver = Driver(Workers(client, "cpu", lambda event: None), settings)
    began, cpu = time.monotonic(), time.process_time()
    assert not driver.run(plan) and len(driver.done) == models * len(plan)
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    busy = seconds * len(plan) / (took * workers)
    return [
        workers,
        seconds,
        "yes" if chained else "no",
        models,
        f"{len(plan) / took:,.0f}",
        f"{100 * busy:.0f} %" if seconds else "-",
        f"{1000 * cpu / len(plan):.2f}",
    ]


TABLE = [
    (32, 0.0, False, 1), (32, 0.0, False, 3), (32, 0.0, True, 1),
    (16, 0.2, False, 1), (32, 0.2, False, 1), (64, 0.2, False, 1), (128, 0.2, False, 1),
    (128, 1.0, False, 1), (256, 1.0, False, 1),
    (256, 4.0, False, 1), (512, 4.0, False, 1),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", default="")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--chained", action="store_true")
    parser.add_argument("--models", type=int, default=1)
    parser.add_argument("--lasting", type=float, default=15.0)
    o = parser.parse_args()
    if o.serve:
        asyncio.run(serve(o.serve, o.workers))
        return
    table = [(o.workers, o.seconds, o.chained, o.models)] if o.workers else TABLE
    rows = []
    for workers, seconds, chained, models in table:
        with pretended(workers) as client:
            rows.append(measure(client, workers, seconds, chained, models, o.lasting))
            print(rows[-1], file=sys.stderr, flush=True)
    columns = ["workers", "s per segment", "each segment copies from the previous one", "models"]
    markdown([*columns, "segments/s", "workers busy", "driver's CPU, ms per segment"], rows)


if __name__ == "__main__":
    main()
