"""Cost of a run's games, estimated from the store: seconds per step and steps per game."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from wsa.store.format.records import SegmentMeta
from wsa.store.objects.snapshot import Snapshot

STEPS_PER_S = 500.0  # Speed of an emulator and a small network on one core, without models.


def seconds_per_step(snapshot: Snapshot, inputs: Sequence[str]) -> float:
    """Seconds for a step of one environment, if every frame needs a pass of every model.

    The time of a pass is its mean when the store was filled.
    """
    seconds = 1 / STEPS_PER_S
    for key in inputs:
        metas = [m for m in snapshot.embeddings(model=key) if m.passes]
        seconds += sum(m.seconds for m in metas) / max(1, sum(m.passes for m in metas))
    return seconds


def steps_per_game(snapshot: Snapshot, game: str) -> float:
    """Mean length of the stored games, in steps; if none has ended, length of the longest stretch.

    NaN if the store does not have the game.
    """
    metas = snapshot.segments(game) if game in snapshot.games else []
    lengths = [steps for meta in metas for steps, _ in meta.episodes]
    by_env = itertools.groupby(sorted(metas, key=_place), key=_place)
    played = [sum(meta.steps for meta in mine) for _, mine in by_env]
    return float(np.mean(lengths)) if lengths else float(max(played, default=math.nan))


def _place(meta: SegmentMeta) -> tuple[str, int]:
    return meta.run, meta.env
