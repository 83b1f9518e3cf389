"""Cost of a training run, for `wsa learn --dry-run`: steps, bytes of cache, minutes."""

from __future__ import annotations

import math
import time

import torch

from wsa.learn.data.transitions import Batch
from wsa.learn.fusion.base import Inputs
from wsa.learn.networks.heads import QNetwork
from wsa.learn.offline.trainer import make_learner
from wsa.learn.online.replay_buffer import RECORD
from wsa.learn.runs.config import OfflineRun, OnlineRun
from wsa.learn.runs.network import parameters_of, windows_and_shapes
from wsa.store.objects.flat_map import ROW
from wsa.store.objects.snapshot import Snapshot

UPDATES_TIMED = 5


def estimate(
    snapshot: Snapshot, config: OfflineRun | OnlineRun, device: str, done: int = 0
) -> dict[str, float]:
    """Estimate the cost of a run without writing anything. Updates are timed on the device.

    Args:
        device: Device to time updates on.
        done: Updates or steps that the run has already made.

    Returns:
        Offline: updates that are left; segments, steps, and distinct frames of data; bytes of the
        flat map on this machine, which all runs on this data share; and minutes that are left, timed
        on a few updates with noise.
        Online, as upper bounds: steps and frames that are left, and bytes of the run's folder if no
        frame repeats.
        Both: the trainable parameters (`Parameters`).
    """
    counted = parameters_of(config, *windows_and_shapes(config, snapshot)).named()
    if isinstance(config, OnlineRun):
        return _online_cost(config, done) | counted
    metas = [m for m in snapshot.segments(config.game) if m.segment in config.segments]
    by_model = {e.model: e for e in snapshot.embeddings(config.game)}
    embeddings = [by_model[key] for key in config.inputs]
    windows = [e.window for e in embeddings]
    inputs = config.inputs_of(windows, [e.shape[1:] for e in embeddings])
    numbers = sum(
        width * sum(meta.inputs(window) for meta in metas)
        for width, window in zip(inputs.widths, windows, strict=True)
    )
    frames = sum(meta.frames for meta in metas)
    left = max(0, config.last_step - done)
    return {
        "updates": left,
        "segments": len(metas),
        "steps": sum(meta.steps for meta in metas),
        "frames": frames,
        "cache_bytes": 2 * numbers + ROW.itemsize * sum(meta.rows for meta in metas),
        "minutes": left * _seconds_per_update(config, inputs, device) / 60,
        **counted,
    }


def _online_cost(config: OnlineRun, done: int) -> dict[str, float]:
    total = config.hyperparameters.total_timesteps
    row = 84 * 84 if config.end_to_end else 2 * sum(map(math.prod, config.shapes))
    # Each row of a table stores its rows in the others.
    windows = max(1, len(set(config.model_windows)))
    costs = {"table_bytes": total * (row + 16 * windows + 4 * (windows - 1))}
    if config.hyperparameters.REPLAYS:
        costs["replay_bytes"] = total * RECORD.itemsize
    left = max(0, config.last_step - done)
    return {"steps": left, "frames": left, **costs}


def _seconds_per_update(config: OfflineRun, inputs: Inputs, device: str) -> float:
    """Time an update, in seconds."""
    values = config.hyperparameters
    network = QNetwork(inputs, len(config.protocol.actions), config.network).to(device)
    learner = make_learner(values, network)
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
        if update == 1:  # The first update also does one-time setup.
            started = time.perf_counter()
        learner.update(update, batch)
    return (time.perf_counter() - started) / UPDATES_TIMED
