"""Encoding compared with the machine's peak, with the bare model, and with a user's script.

    python -m benchmarks.encoding.throughput [MODEL ...]        default: lite0; as in `--models`

Everything is measured side by side in one run, on one thread unless stated otherwise.

- peak: the best large matrix product of PyTorch and OpenVINO, in fp32 and bf16.
- bare: the chosen engine in a loop on preprocessed frames in RAM, and its share of the peak, which
  is measured in turn with it. PyTorch counts the network's operations, two for each multiply-add.
  The same for bf16.
- pipeline: read and check a segment; preprocess its frames; run the model; reduce, round, join,
  compress, commit, and flush.
- a user's script: frames in RAM, timm's transform on PIL images, eager fp32 on all cores, at its
  best batch size; compared with the pipeline in one single-threaded process per core.

Passes are counted where the network is called, and must equal the number of distinct frames.
Untrained models (`:random`) get a random basis: fitting one takes minutes and changes no rate.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import multiprocessing
import multiprocessing.connection
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import openvino
import timm
import torch
from dask.system import cpu_count
from openvino import opset13
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.kit import forget, interleave, markdown, rate, store_of, table
from wsa.encode.inference import reduction as bases
from wsa.encode.inference.encoder import Encoder
from wsa.encode.inference.preprocess import preprocess
from wsa.encode.jobs import tasks
from wsa.encode.jobs.plan import Item, Plan, make_plan
from wsa.encode.models import networks
from wsa.encode.models.registry import Request, parse_request
from wsa.encode.registration import fit_reduction, probe_frames, register
from wsa.encode.registration.identity import identify
from wsa.store.objects.model_spec import parse_output
from wsa.store.objects.snapshot import Snapshot, take_snapshot

GAME, ROUNDS, SECONDS = "Seaquest", 3, 8.0
HEAVY = 1e9  # Operations per frame above which a model takes seconds per segment.
USERS_BATCHES = (1, 8, 32)
PRECISIONS = ("fp32", "bf16")


def main(models: list[str]) -> None:
    torch.set_num_threads(1)
    rows = []
    for precision in PRECISIONS:
        row = [precision]
        for threads in (1, cpu_count()):
            torch.set_num_threads(threads)
            product = largest_product(precision)
            row.append(f"{max(rate(product, 1.0) for _ in range(3)) / 1e9:,.0f}")
        rows.append(row)
    torch.set_num_threads(1)
    print(f"{GAME}, {cpu_count()} cores\n")
    markdown(["peak, GFLOP/s", "one core", "all"], rows)
    for name in models:
        print(flush=True)
        measure(name)


def measure(name: str) -> None:
    request = parse_request(name, {})
    module = networks.build(request)
    how = identify(module, request).preprocessing
    eager = Encoder(module, how, parse_output(request.output), None, request.precision)
    with FlopCounterMode(display=False) as counter:
        eager.features(probe_frames.probe_inputs()[:1])
    operations = counter.get_total_flops()
    if request.source == "random":
        width = eager.features(probe_frames.probe_inputs()[:1]).shape[1:]
        fit_reduction.fit = lambda encoder, snapshot, output, window: bases.fit(
            torch.randn(2 * output.numbers, *width), output.numbers
        )
    with store_of(GAME, *((256, 32) if operations > HEAVY else (2048, 256))) as (backend, _):
        registered = register.register(take_snapshot(backend), request, 0.1)
        key, choice = registered.spec.key, registered.choice
        assert choice is not None
        snapshot = take_snapshot(backend)
        plan = cut(make_plan(snapshot, [key], [GAME]), SECONDS * choice.rate)
        settings = tasks.TaskSettings(
            backend.url, {key: request.source}, {key: choice.engine}, "cpu", 1
        )
        encoder = tasks.cached_model(backend.url, key, request.source, "cpu", choice.engine)
        ran = counted(encoder)
        pixels = preprocess(
            torch.from_numpy(probe_frames.probe_inputs()[:8]), encoder.preprocessing
        )

        def pipeline() -> float:
            forget(backend, plan)
            before = sum(ran)
            started = time.perf_counter()
            for items in plan.by_segment():
                tasks.encode_segment(settings, items)
            seconds = time.perf_counter() - started
            assert sum(ran) - before == plan.passes
            return plan.passes / seconds

        rates = interleave({"bare": lambda: bare(encoder, pixels), "pipeline": pipeline}, ROUNDS)
        digests = np.concatenate([snapshot.read_digests(item.meta) for item in plan.items])
        assert plan.passes == len(np.unique(digests, axis=0))
        print(
            f"{name}, `{request.output}`, {operations / 1e9:.3g} GFLOP; {choice.engine}, step error "
            f"{choice.error:.1g}; {plan.passes} passes made, {plan.copies} saved\n"
        )
        table("frames/s, one core", rates, "bare")
        print(f"\nshare of the peak: {share(encoder, pixels, 'fp32', operations)} in fp32", end="")
        candidates = register.measure_engines(
            snapshot, dataclasses.replace(request, precision="bf16"), "cpu"
        )
        half = candidates.choose("auto", "bf16", math.inf)
        by_hand = share(candidates.encoder(half.engine, "bf16"), pixels, "bf16", operations)
        print(f", {by_hand} in bf16 ({half.engine}, step error {half.error:.2g})\n")
        against_a_user(request, snapshot, plan, settings)


def bare(encoder: Encoder, pixels: torch.Tensor) -> float:
    with torch.inference_mode():
        return rate(lambda: len(encoder.engine(pixels)), SECONDS / 2)


def share(encoder: Encoder, pixels: torch.Tensor, precision: str, operations: int) -> str:
    """An engine's operations per second as a share of the peak: median and range over rounds."""
    product = largest_product(precision)
    rates = interleave(
        {"peak": lambda: rate(product, 1.0), "bare": lambda: bare(encoder, pixels)}, 2 * ROUNDS
    )
    shares = [operations * b / p for b, p in zip(rates["bare"], rates["peak"], strict=True)]
    return f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"


def counted(encoder: Encoder) -> list[int]:
    """Count the rows of each call of the engine, from now on."""
    ran: list[int] = []
    engine = encoder.engine

    class Counted:
        name, batch = engine.name, engine.batch

        def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
            ran.append(len(pixels))
            return engine(pixels)

    encoder.engine = Counted()
    return ran


def cut(plan: Plan, frames: float) -> Plan:
    """Keep the first segments of a plan, about `frames` frames; copies only look back."""
    count = 1 + np.searchsorted(np.cumsum([len(item.own) for item in plan.items]), frames)
    return dataclasses.replace(plan, items=plan.items[: max(cpu_count(), count)])


def against_a_user(
    request: Request, snapshot: Snapshot, plan: Plan, settings: tasks.TaskSettings
) -> None:
    """Measure a user's script on all cores, and wsa in one process per core, in turn."""
    model = networks.build(request)
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    frames = np.concatenate([snapshot.read_frames(item.meta) for item in plan.items])

    def script(size: int) -> float:
        at, kept = itertools.count(step=size), []

        def work() -> int:
            some = frames[np.arange(size) + next(at) % len(frames) - size]
            pixels = torch.stack([transform(Image.fromarray(frame)) for frame in some])
            kept.append(model(pixels).numpy())
            return size

        torch.set_num_threads(cpu_count())
        with torch.inference_mode():
            measured = rate(work, SECONDS / 2)
        torch.set_num_threads(1)
        return measured

    contenders: dict[str, Callable[[], float]] = {
        f"script, batch {size}": functools.partial(script, size) for size in USERS_BATCHES
    }
    # Run every frame, so that segments need not wait for each other.
    alone = [
        (dataclasses.replace(item, own=np.arange(item.inputs), copies=()),) for item in plan.items
    ]
    with Processes(settings) as processes:

        def ours() -> float:
            forget(snapshot.backend, plan)
            return processes.encode(alone)

        rates = interleave({**contenders, "wsa, a process a core": ours}, ROUNDS)
    best = max(contenders, key=lambda name: statistics.median(rates[name]))
    table("frames/s, all cores", rates, best)


def largest_product(precision: str) -> Callable[[], int]:
    """A large matrix product by the faster of both libraries; it returns its operation count."""
    size = 2048
    a, b = torch.randn(2, size, size)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    left, right = a.to(dtype), b.to(dtype)
    given = opset13.parameter([size, size], openvino.Type.f32)
    product = openvino.Model(
        [opset13.matmul(given, opset13.constant(b.numpy()), False, False)], [given]
    )
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    threads = torch.get_num_threads()
    request = (
        openvino.Core()
        .compile_model(
            product, "CPU", {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        )
        .create_infer_request()
    )

    def by_torch() -> int:
        torch.mm(left, right)
        return 2 * size**3

    def by_openvino() -> int:
        request.infer([a.numpy()], share_inputs=True, share_outputs=True)
        return 2 * size**3

    return max(by_torch, by_openvino, key=lambda work: max(rate(work, 0.3) for _ in range(3)))


class Processes:
    """One single-threaded process per core, each with the model open, like Dask's workers."""

    def __init__(self, settings: tasks.TaskSettings) -> None:
        self._settings = settings
        context = multiprocessing.get_context("spawn")
        self._pipes, self._started = [], []
        for _ in range(cpu_count()):
            ours, theirs = context.Pipe()
            self._started.append(context.Process(target=serve, args=(theirs, settings)))
            self._pipes.append(ours)

    def __enter__(self) -> Self:
        for process in self._started:
            process.start()
        for pipe in self._pipes:
            pipe.recv()  # Wait until its model is open.
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._started:
            process.join()

    def encode(self, works: Sequence[Sequence[Item]]) -> float:
        """Encode segments on any free worker; return frames per second."""
        waiting = list(works)
        passes = sum(len(item.own) for items in waiting for item in items)
        started = time.perf_counter()
        busy = []
        for pipe in self._pipes:
            if waiting:
                pipe.send(waiting.pop())
                busy.append(pipe)
        while busy:
            for pipe in multiprocessing.connection.wait(busy):
                pipe.recv()
                if waiting:
                    pipe.send(waiting.pop())
                else:
                    busy.remove(pipe)
        return passes / (time.perf_counter() - started)


def serve(pipe, settings: tasks.TaskSettings) -> None:
    torch.set_num_threads(1)
    for key, engine in settings.engines.items():
        tasks.cached_model(settings.store, key, settings.sources[key], "cpu", engine)
    pipe.send(True)
    while (items := pipe.recv()) is not None:
        pipe.send([done.passes for done in tasks.encode_segment(settings, items)])


if __name__ == "__main__":
    main(sys.argv[1:] or ["lite0"])
