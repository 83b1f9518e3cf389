"""Updates per second from the flat map, compared with two other ways to train the same network.

    python -m benchmarks.learning.offline_speed [updates] [backbones] [adapters]        default: all three

- updates: the same update on tensors in RAM, with random draws on both sides.
- backbones: the same update with the models in the loop, as the authors train: every state and
  next state of a batch goes through each of lite0, lite1, and lite2 once.
- adapters: one product over stacked weights instead of a loop over models.

The steps are real Seaquest steps. The embeddings are random numbers of the default size (3 models x
512, d = 512), because speed does not depend on their values.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.kit import interleave, markdown, rate, store_of, table
from wsa.encode.inference.encoder import Encoder
from wsa.encode.models.registry import parse_request
from wsa.encode.registration import probe_frames
from wsa.encode.registration.register import open_model, register
from wsa.learn.configs.algorithms import CQLConfig
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.data.transitions import Batch, OfflineBatches
from wsa.learn.fusion.base import Inputs
from wsa.learn.networks.heads import QNetwork
from wsa.learn.offline.cql import CQL
from wsa.store.format.records import EmbeddingMeta
from wsa.store.objects.flat_map import FlatMap, materialize
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.objects.writer import commit_embedding

MODELS = [f"random{i}-{i:012x}" for i in range(3)]
DEPTH, SIZE, ACTIONS = 4, 512, 18
BATCHES = (32, 256)


class RamBatches:
    """States and next states, stacked in advance in one tensor."""

    def __init__(self, flat: FlatMap, batch_size: int) -> None:
        back = np.arange(DEPTH - 1, -2, -1)
        rows = flat.steps
        at = np.maximum(rows[:, None] - back, flat.rows["first"][rows][:, None])
        frames = flat.rows["frame"][at]
        self.states = torch.from_numpy(np.asarray(flat.embeddings)[frames])
        self.actions = torch.from_numpy(flat.rows["action"][rows].astype(np.int64))
        self.rewards = torch.from_numpy(np.sign(flat.rows["reward"][rows]))
        ends = torch.from_numpy(flat.rows["terminated"][rows].astype(np.float32))
        self.discounts = 0.99 * (1 - ends)
        self.batch_size = batch_size

    def draw(self) -> Batch:
        """Draw the next batch."""
        at = torch.randint(len(self.states), (self.batch_size,))
        states = self.states[at]
        return Batch(
            states[:, :-1], states[:, 1:], self.actions[at], self.rewards[at], self.discounts[at]
        )


def learner() -> CQL:
    inputs = Inputs(((DEPTH, SIZE),) * len(MODELS))
    network = QNetwork(inputs, ACTIONS, NetworkConfig(FusionConfig(size=SIZE), DEPTH))
    return CQL(CQLConfig(), network)


def filled(folder: Path, backend) -> FlatMap:
    generator = np.random.default_rng(0)
    snapshot = take_snapshot(backend)
    for model in MODELS:
        for meta in snapshot.segments():
            array = generator.standard_normal((meta.frames, SIZE)).astype(np.float16)
            shape = array.shape
            about = EmbeddingMeta(
                meta.game, meta.segment, model, shape, "float16", meta.frames, 0, 1.0
            )
            commit_embedding(backend, about, array)
    return materialize(take_snapshot(backend), "Seaquest", MODELS, folder / "cache")


def updates(flat: FlatMap) -> None:
    for size in BATCHES:
        trained = learner()
        mapped = OfflineBatches(flat, DEPTH, size, 0, clip=True)
        in_ram = RamBatches(flat, size)
        fixed = in_ram.draw()

        def update(batch: Batch, trained: CQL = trained) -> int:
            trained.update(1, batch)
            return 1

        contenders = {
            "tensors in RAM": lambda r=in_ram, u=update: u(r.draw()),
            "flat map": lambda m=mapped, u=update: u(m.draw()),
            "one batch again and again (no drawing)": lambda f=fixed, u=update: u(f),
        }
        print(f"\nWSA + double DQN + CQL, batch {size}, 3 models x {SIZE}, d = {SIZE}, 4 frames:\n")
        rates = interleave({n: (lambda w=w: rate(w, 2.0)) for n, w in contenders.items()})
        table("updates/s", rates, "tensors in RAM")


def backbones(flat: FlatMap, folder: Path) -> None:
    backend = open_store(str(folder / "models"), create=True)
    encoders = []
    for alias in ("lite0", "lite1", "lite2"):
        request = parse_request(alias, {}, "pooled")
        key = register(take_snapshot(backend), request, 0.1).spec.key
        encoders.append(open_model(take_snapshot(backend), key))
    screens = probe_frames.probe_inputs()
    mapped = OfflineBatches(flat, DEPTH, 32, 0, clip=True)
    cached, live = learner(), learner()
    seen = np.resize(np.arange(len(screens)), 2 * 32)  # States and next states.

    def with_backbones() -> int:
        for encoder in encoders:
            encoder(screens[seen])
        live.update(1, mapped.draw())
        return 1

    contenders: dict[str, Callable[[], int]] = {
        "flat map": lambda: cached.update(1, mapped.draw()) and 1,
        "models in the loop": with_backbones,
    }
    print("\nThe same update, batch 32, with lite0, lite1 and lite2 in the loop:\n")
    before = Encoder.total_passes
    rates = interleave({n: (lambda w=w: rate(w, 2.0)) for n, w in contenders.items()}, 3)
    table("updates/s", rates, "models in the loop")
    assert Encoder.total_passes > before
    before = Encoder.total_passes
    with_backbones()
    an_update = (Encoder.total_passes - before) / len(encoders)
    before = Encoder.total_passes
    cached.update(1, mapped.draw())
    assert Encoder.total_passes == before
    frames = len(flat.embeddings) / len(flat.steps)
    print("\nPasses through each backbone, an update every 4 environment steps:\n")
    markdown(
        ["", "for an update", "for an environment step, acting included"],
        [
            ["models in the loop", f"{an_update:.0f}", f"{an_update / 4 + 1:.0f}"],
            ["encoded once", 0, f"{frames:.2f}"],
        ],
    )


class Looped(nn.Module):
    """Adapters in a loop, as in `Adapted.adapt`."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(
            nn.Sequential(nn.Linear(width, size), nn.LayerNorm(size), nn.ReLU()) for _ in MODELS
        )

    def forward(self, embeddings: list[Tensor]) -> Tensor:
        """Map (B, width) for each model to (B, models, d)."""
        return torch.stack([a(u) for a, u in zip(self.adapters, embeddings, strict=True)], dim=1)


class Batched(nn.Module):
    """Adapters as one product over stacked weights."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        models = len(MODELS)
        self.weight = nn.Parameter(torch.randn(models, width, size) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(models, 1, size))
        self.gain = nn.Parameter(torch.ones(models, 1, size))
        self.shift = nn.Parameter(torch.zeros(models, 1, size))

    def forward(self, embeddings: list[Tensor]) -> Tensor:
        """Map (B, width) for each model to (B, models, d)."""
        projected = torch.baddbmm(self.bias, torch.stack(embeddings), self.weight)
        normal = nn.functional.layer_norm(projected, projected.shape[2:]) * self.gain + self.shift
        return normal.relu().transpose(0, 1)


def adapters() -> None:
    width = DEPTH * SIZE
    rows = []
    for size in BATCHES:
        embeddings = [torch.randn(size, width) for _ in MODELS]
        timed: dict[str, Callable[[], float]] = {}
        for name, kind in (("loop", Looped), ("batched", Batched)):
            module = kind(width, SIZE)
            optimizer = torch.optim.Adam(module.parameters(), fused=True)

            def step(module: nn.Module = module, optimizer=optimizer, given=embeddings) -> int:
                optimizer.zero_grad()
                module(given).square().sum().backward()
                optimizer.step()
                return 1

            timed[name] = lambda step=step: rate(step, 1.0)
        rates = interleave(timed)
        loop, batched = (statistics.median(rates[name]) for name in ("loop", "batched"))
        rows.append([size, f"{loop:.0f}", f"{batched:.0f}", f"{loop / batched:.2f}"])
    print(f"\nAdapters of 3 models, {width} numbers to d = {SIZE}, forward, backward and Adam:\n")
    markdown(["batch", "loop, steps/s", "batched, steps/s", "time of batched / loop"], rows)


def main(parts: list[str]) -> None:
    torch.set_num_threads(1)
    started = time.perf_counter()
    with store_of("Seaquest", 8_000) as (backend, folder):
        flat = filled(folder, backend)
        if "updates" in parts:
            updates(flat)
        if "backbones" in parts:
            backbones(flat, folder)
    if "adapters" in parts:
        adapters()
    print(f"\n{time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:] or ["updates", "backbones", "adapters"])
