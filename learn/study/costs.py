"""What games of a run will take, from what the store knows: of a step, and of how many there are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from wsa.store.format.records import SegmentMeta
from wsa.store.objects.snapshot import Snapshot

STEPS_PER_S = 500.0  # Of an emulator and a small network on one core, beside which models run.


def seconds_per_step(snapshot: Snapshot, inputs: Sequence[str]) -> float:
    """A step of one environment, by what passes took when the store was filled; no frame is known."""
    seconds = 1 / STEPS_PER_S
    for key in inputs:
        metas = [m for m in snapshot.embeddings(model=key) if m.passes]
        seconds += sum(m.seconds for m in metas) / max(1, sum(m.passes for m in metas))
    return seconds


def steps_per_game(snapshot: Snapshot, game: str) -> float:
    """Mean length of the games in the store; where none has ended, of the longest stretch.

    NaN of a game that the store does not have.
    """
    metas = snapshot.segments(game) if game in snapshot.games else []
    lengths = [steps for meta in metas for steps, _ in meta.episodes]
    by_env = itertools.groupby(sorted(metas, key=_place), key=_place)
    played = [sum(meta.steps for meta in mine) for _, mine in by_env]
    return float(np.mean(lengths)) if lengths else float(max(played, default=math.nan))


def _place(meta: SegmentMeta) -> tuple[str, int]:
    return meta.run, meta.env
