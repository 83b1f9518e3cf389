"""What a training run would take, for `wsa learn --dry-run`: steps, bytes of cache, minutes."""

from __future__ import annotations

import time

import torch

from wsa.learn.data.transitions import Batch
from wsa.learn.fusion.base import Inputs
from wsa.learn.networks.heads import QNetwork
from wsa.learn.runs.config import RunConfig, inputs_of
from wsa.store.objects.flat_map import ROW
from wsa.store.objects.snapshot import Snapshot

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
    found = {e.model: e for e in snapshot.embeddings(config.game)}
    embeddings = [found[key] for key in config.inputs]
    windows = [e.window for e in embeddings]
    inputs = inputs_of(config, windows, [e.shape[1:] for e in embeddings])
    numbers = sum(
        width * sum(meta.inputs(window) for meta in metas)
        for width, window in zip(inputs.widths, windows, strict=True)
    )
    frames = sum(meta.frames for meta in metas)
    return {
        "updates": config.hyperparameters.updates,
        "segments": len(metas),
        "steps": sum(meta.steps for meta in metas),
        "frames": frames,
        "cache_bytes": 2 * numbers + ROW.itemsize * sum(meta.rows for meta in metas),
        "minutes": config.hyperparameters.updates * _seconds(config, inputs, device) / 60,
    }


def _seconds(config: RunConfig, inputs: Inputs, device: str) -> float:
    """Time of an update."""
    values = config.hyperparameters
    network = QNetwork(inputs, len(config.protocol.actions), config.network).to(device)
    learner = values.learner(network)
    shape = (values.batch_size, inputs.depth, sum(inputs.widths))
    batch = Batch(
        states=torch.randn(shape, dtype=torch.float16),
        following=torch.randn(shape, dtype=torch.float16),
        actions=torch.zeros(values.batch_size, dtype=torch.int64),
        rewards=torch.zeros(values.batch_size),
        discounts=torch.zeros(values.batch_size),
    )
    started = 0.0
    for update in range(1 + UPDATES_TIMED):
        if update == 1:  # The first one also sets up what all others find.
            started = time.perf_counter()
        learner.update(update, batch)
    return (time.perf_counter() - started) / UPDATES_TIMED
