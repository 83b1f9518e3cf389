"""What a training run would take, for `wsa learn --dry-run`: steps, bytes of cache, minutes."""

from __future__ import annotations

import math
import time

import torch

from wsa.learn import dqn
from wsa.learn.features import Batch
from wsa.learn.run import RunConfig
from wsa.store.flat import ROW
from wsa.store.reader import Snapshot

UPDATES_TIMED = 5


def estimate(snapshot: Snapshot, config: RunConfig, device: str) -> dict[str, float]:
    """Sum up a run's data and time a few updates on noise of its shape; nothing is written.

    Args:
        snapshot: The store, with the run's segments and their embeddings.
        config: The run.
        device: Where it would train.

    Returns:
        Updates, segments, steps and distinct frames of data, bytes of the flat map on this
        machine (made once for all runs on this data), and minutes.
    """
    metas = [m for m in snapshot.segments(config.game) if m.segment in config.segments]
    shapes = {e.model: e.shape[1:] for e in snapshot.embeddings(config.game)}
    widths = [math.prod(shapes[key]) for key in config.models]
    frames = sum(meta.frames for meta in metas)
    return {
        "updates": config.hyperparameters.updates,
        "segments": len(metas),
        "steps": sum(meta.steps for meta in metas),
        "frames": frames,
        "cache_bytes": 2 * frames * sum(widths) + ROW.itemsize * sum(meta.rows for meta in metas),
        "minutes": config.hyperparameters.updates * _seconds(config, widths, device) / 60,
    }


def _seconds(config: RunConfig, widths: list[int], device: str) -> float:
    """Time of an update."""
    values = config.hyperparameters
    actions = len(config.protocol.actions)
    network = dqn.make_network(values, widths, actions, None).to(device)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    states = (values.batch_size, values.frame_stack + 1, sum(widths))
    batch = Batch(
        states=torch.randn(states, dtype=torch.float16),
        actions=torch.zeros(values.batch_size, dtype=torch.int64),
        rewards=torch.zeros(values.batch_size),
        terminated=torch.zeros(values.batch_size),
    )
    started = 0.0
    for update in range(1 + UPDATES_TIMED):
        if update == 1:  # The first one also sets up what all others find.
            started = time.perf_counter()
        loss, _ = dqn.update_loss(values, network, network, batch, device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - started) / UPDATES_TIMED
