"""Detect data without a single reward, from which CQL and DQN cannot learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsa.store.format.records import SegmentMeta
from wsa.store.objects.snapshot import Snapshot


def rewarded_steps(snapshot: Snapshot, segments: Sequence[SegmentMeta]) -> int:
    """Count the steps with a nonzero reward. Reads the segments' rows."""
    return sum(int(np.count_nonzero(snapshot.read_rows(meta)["reward"])) for meta in segments)


def warning(game: str, steps: int) -> str:
    """Return the warning for a game in which none of `steps` steps earned a reward."""
    return (
        f"none of these {steps:,} steps of {game} earned a reward, so CQL and DQN have nothing to "
        f"learn from them. Collect more, or with a policy that scores (wsa collect --game {game} "
        "--policy RUN), or train while the agent plays (wsa learn --online)."
    )
