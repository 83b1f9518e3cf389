"""Updates a second from the flat map, against the same update on tensors already in RAM.

    python benchmarks/learn.py

Real Seaquest steps; the embeddings are random numbers of the default size (3 models x 512), since
speed does not depend on them. Both sides draw new random transitions for every update.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from kit import interleave, rate, store_of, table

from wsa.learn.dqn import DQNConfig, make_network, update_loss
from wsa.learn.features import Batch, OfflineBatches
from wsa.store.flat import FlatMap, materialise
from wsa.store.reader import take_snapshot
from wsa.store.records import EmbeddingMeta
from wsa.store.writer import commit_embedding

MODELS = [f"random{i}-{i:012x}" for i in range(3)]


class RamBatches:
    """States and next states stacked beforehand, whole, in one tensor each."""

    def __init__(self, flat: FlatMap, depth: int, batch_size: int) -> None:
        back = np.arange(depth - 1, -2, -1)
        rows = flat.steps
        at = np.maximum(rows[:, None] - back, flat.rows["first"][rows][:, None])
        frames = flat.rows["frame"][at]
        self.states = torch.from_numpy(np.asarray(flat.embeddings)[frames])
        self.actions = torch.from_numpy(flat.rows["action"][rows].astype(np.int64))
        self.rewards = torch.from_numpy(flat.rows["reward"][rows].copy())
        self.ends = torch.from_numpy(flat.rows["terminated"][rows].astype(np.float32))
        self.batch_size = batch_size

    def draw(self) -> Batch:
        """The next batch."""
        at = torch.randint(len(self.states), (self.batch_size,))
        return Batch(self.states[at], self.actions[at], self.rewards[at], self.ends[at])


def main() -> None:
    generator = np.random.default_rng(0)
    with store_of("Seaquest", 8_000) as (backend, folder):
        snapshot = take_snapshot(backend)
        for model in MODELS:
            for meta in snapshot.segments():
                array = generator.standard_normal((meta.frames, 512)).astype(np.float16)
                shape = (meta.frames, 512)
                about = EmbeddingMeta(meta.game, meta.segment, model, shape, "float16", 0, 0)
                commit_embedding(backend, about, array)
        flat = materialise(take_snapshot(backend), "Seaquest", MODELS, Path(folder) / "cache")
        config = DQNConfig()
        online = make_network(config, [512] * 3, 18, None)
        target = make_network(config, [512] * 3, 18, None)
        optimizer = torch.optim.Adam(online.parameters(), lr=config.learning_rate, fused=True)
        mapped = OfflineBatches(flat, config.frame_stack, config.batch_size, 0)
        in_ram = RamBatches(flat, config.frame_stack, config.batch_size)
        fixed = in_ram.draw()

        def update(batch: Batch) -> int:
            loss, _ = update_loss(config, online, target, batch, "cpu")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return 1

        contenders = {
            "tensors in RAM": lambda: update(in_ram.draw()),
            "flat map": lambda: update(mapped.draw()),
            "one batch again and again (no drawing)": lambda: update(fixed),
        }
        print(f"WSA + double DQN + CQL, batch {config.batch_size}, 3 models x 512, 4 frames:\n")
        rates = interleave({n: (lambda w=w: rate(w, 2.0)) for n, w in contenders.items()})
        table("updates/s", rates, "tensors in RAM")


if __name__ == "__main__":
    main()
