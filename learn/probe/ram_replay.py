"""What the emulator's memory held at every stored step: its play is played again, and compared.

A store keeps screens, not memory. But the play of an environment follows from its seed and its
actions, so the actions of its segments are played again from the first, and each screen must have
the digest that the store has, each action earn what it earned. What cannot be played again, since
it came from elsewhere, or lacks the steps before it, or is played otherwise by this emulator, is
named, and nothing is said of its memory.
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


class _Unlike(Exception):
    """The emulator does not play what is stored."""


def memories(
    snapshot: Snapshot,
    segments: Sequence[SegmentMeta],
    on_steps: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Memory], dict[str, str]]:
    """The memory at every step of some segments of one game.

    Args:
        snapshot: The store.
        segments: Of one game.
        on_steps: Called with the steps played so far.

    Returns:
        By segment, the memory (rows, 128) uint8 of each row that holds a step, zeros at others; and
        by segment, why it could not be played again.

    Raises:
        DamagedError: Stored bytes are not what was committed.
    """
    found: dict[str, Memory] = {}
    failed: dict[str, str] = {}
    asked: dict[tuple[str, int], list[SegmentMeta]] = {}
    for meta in segments:
        asked.setdefault((meta.run, meta.env), []).append(meta)
    played = 0
    for (run, env), wanted in asked.items():
        game, names = wanted[0].game, {meta.segment for meta in wanted}
        last = max(meta.start for meta in wanted)
        line = [m for m in snapshot.segments(game) if (m.run, m.env) == (run, env)]
        line = sorted((m for m in line if m.start <= last), key=lambda m: m.start)
        try:
            for meta, memory in _retrace(snapshot, line):
                played += meta.steps
                on_steps(played)
                if meta.segment in names:
                    found[meta.segment] = memory
        except _Unlike as error:
            failed |= {name: str(error) for name in sorted(names - found.keys())}
        failed |= {name: "its steps are in other segments too" for name in names - found.keys()
                   if name not in failed}  # fmt: skip
    return found, failed


def _retrace(
    snapshot: Snapshot, line: Sequence[SegmentMeta]
) -> Iterator[tuple[SegmentMeta, Memory]]:
    """The segments of one environment, and the memory at each row.

    Raises:
        _Unlike: It cannot be played again, from the next one on.
    """
    first = line[0]
    rom = games.emulator_identity(first.game)[1]
    if first.emulator[1] != rom:
        raise _Unlike(f"it was played on another emulator ({' '.join(first.emulator)})")
    console = Console(first.game, first.protocol)
    begins: int | None = first.seed + first.env  # The seed that the next episode begins with.
    at = stretch = taken = 0
    over = True
    for meta in line:
        if meta.start < at:
            continue
        if meta.start > at:
            raise _Unlike(f"the store lacks the {meta.start - at:,} steps before it")
        rows = snapshot.read_rows(meta)
        memory = np.zeros((meta.rows, RAM_BYTES), np.uint8)
        for row in np.flatnonzero(rows["action"] >= 0).tolist():
            if over != rows["is_first"][row]:
                raise _Unlike("its episodes begin elsewhere than where others end")
            if over:
                console.reset(begins)
                begins = None
            digest = rows["digest"][rows["frame"][row]].tobytes()
            _same(hashing.frame_digest(console.screen) == digest, meta, row)
            memory[row] = console.memory()
            reward, ended = console.step(int(rows["action"][row]))
            _same((reward, ended) == (rows["reward"][row], rows["terminated"][row]), meta, row)
            taken += 1
            over = bool(ended or rows["truncated"][row])
            if over and is_online(meta.policy) and taken >= STRETCH:
                stretch, taken = stretch + 1, 0
                begins = stretch_seed(meta.seed, meta.env, stretch)
        at += meta.steps
        yield meta, memory


def _same(same: bool, meta: SegmentMeta, row: int) -> None:
    if not same:
        raise _Unlike(
            f"ale-py {ale_py.__version__} plays otherwise than {meta.emulator[0]} did, from row "
            f"{row} of {meta.segment} on"
        )


def why(failed: Mapping[str, str]) -> str:
    """In a line or a few, which segments could not be played again, those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for segment, reason in failed.items():
        reasons.setdefault(reason, []).append(segment)
    return "\n".join(
        f"left out, since {reason}: {', '.join(segments[:4])}"
        + (f" and {len(segments) - 4} more" if len(segments) > 4 else "")
        for reason, segments in reasons.items()
    )
