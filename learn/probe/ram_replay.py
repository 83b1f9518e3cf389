"""Recover the emulator's memory at every stored step by replaying the game and comparing screens.

A store keeps screens, not memory. An environment's play depends only on its seed and its actions,
so the actions of its segments are replayed from the first, and each screen must have the stored
digest and each action the stored reward. Segments that cannot be replayed (they were imported, lack
the steps before them, or this emulator plays differently) are reported and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import ale_py
import numpy as np
from numpy.typing import NDArray

from wsa.learn.envs import atari as games
from wsa.learn.envs.console import Console
from wsa.learn.online.env_runner import STRETCH, is_online, stretch_seed
from wsa.store.common import hashing
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.snapshot import Snapshot

RAM_BYTES = 128

Memory = NDArray[np.uint8]


class _ReplayError(Exception):
    """The emulator does not reproduce the stored play."""


def memories(
    snapshot: Snapshot,
    segments: Sequence[SegmentMeta],
    on_steps: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Memory], dict[str, str]]:
    """Recover the memory at every step of some segments of one game.

    `on_steps` is called with the number of steps replayed so far.

    Returns:
        By segment, the memory of each row, shape (rows, 128), uint8, zeros where a row holds no
        step; and by segment, the reason why it could not be replayed.

    Raises:
        DamagedError: If stored bytes are not what was committed.
    """
    recovered: dict[str, Memory] = {}
    failed: dict[str, str] = {}
    by_environment: dict[tuple[str, int], list[SegmentMeta]] = {}
    for meta in segments:
        by_environment.setdefault((meta.run, meta.env), []).append(meta)
    played = 0
    for (run, env), members in by_environment.items():
        game, names = members[0].game, {meta.segment for meta in members}
        last = max(meta.start for meta in members)
        sequence = [m for m in snapshot.segments(game) if (m.run, m.env) == (run, env)]
        sequence = sorted((m for m in sequence if m.start <= last), key=lambda m: m.start)
        reason = "other segments have the same steps"
        try:
            for meta, memory in _replay(snapshot, sequence):
                played += meta.steps
                on_steps(played)
                if meta.segment in names:
                    recovered[meta.segment] = memory
        except _ReplayError as error:
            reason = str(error)
        failed |= dict.fromkeys(sorted(names - recovered.keys()), reason)
    return recovered, failed


def _replay(
    snapshot: Snapshot, sequence: Sequence[SegmentMeta]
) -> Iterator[tuple[SegmentMeta, Memory]]:
    """Yield the segments of one environment with the memory at each row.

    Raises:
        _ReplayError: If the next segment cannot be replayed.
    """
    first = sequence[0]
    rom = games.emulator_identity(first.game)[1]
    if first.emulator[1] != rom:
        raise _ReplayError(f"another emulator played it ({' '.join(first.emulator)})")
    console = Console(first.game, first.protocol)
    next_seed: int | None = first.seed + first.env  # Seed of the next episode's reset.
    position = stretch = taken = 0
    episode_over = True
    for meta in sequence:
        if meta.start < position:
            continue
        if meta.start > position:
            raise _ReplayError(f"the store lacks the {meta.start - position:,} steps before it")
        rows = snapshot.read_rows(meta)
        memory = np.zeros((meta.rows, RAM_BYTES), np.uint8)
        for row in np.flatnonzero(rows["action"] >= 0).tolist():
            if episode_over != rows["is_first"][row]:
                raise _ReplayError("an episode begins where the previous one has not ended")
            if episode_over:
                console.reset(next_seed)
                next_seed = None
            digest = rows["digest"][rows["frame"][row]].tobytes()
            _require_same(hashing.frame_digest(console.screen) == digest, meta, row)
            memory[row] = console.memory()
            reward, ended = console.step(int(rows["action"][row]))
            _require_same(
                (reward, ended) == (rows["reward"][row], rows["terminated"][row]), meta, row
            )
            taken += 1
            episode_over = bool(ended or rows["truncated"][row])
            if episode_over and is_online(meta.policy) and taken >= STRETCH:
                stretch, taken = stretch + 1, 0
                next_seed = stretch_seed(meta.seed, meta.env, stretch)
        position += meta.steps
        yield meta, memory


def _require_same(same: bool, meta: SegmentMeta, row: int) -> None:
    if not same:
        raise _ReplayError(
            f"ale-py {ale_py.__version__} plays differently from {meta.emulator[0]}, starting at row "
            f"{row} of {meta.segment}"
        )


def describe_failures(failed: Mapping[str, str]) -> str:
    """Describe the segments that could not be replayed, grouped by reason, one line each."""
    reasons: dict[str, list[str]] = {}
    for segment, reason in failed.items():
        reasons.setdefault(reason, []).append(segment)
    return "\n".join(
        f"left out because {reason}: {', '.join(segments[:4])}"
        + (f" and {len(segments) - 4} more" if len(segments) > 4 else "")
        for reason, segments in reasons.items()
    )
