"""Whether there is anything to learn from in what was played: data without a single reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsa.store.format.records import SegmentMeta
from wsa.store.objects.snapshot import Snapshot


def rewarded_steps(snapshot: Snapshot, segments: Sequence[SegmentMeta]) -> int:
    """Steps that earned a reward, positive or negative; reads the segments' rows."""
    return sum(int(np.count_nonzero(snapshot.read_rows(meta)["reward"])) for meta in segments)


def warning(game: str, steps: int) -> str:
    """What to say of `steps` steps of a game of which none earned a reward."""
    return (
        f"warning: none of these {steps:,} steps of {game} earned a reward, so CQL and DQN have "
        "nothing to learn from them. Collect more, or with a policy that scores (wsa collect "
        f"--game {game} --policy RUN), or learn while playing (wsa learn --online)."
    )
