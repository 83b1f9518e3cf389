"""What the emulator's memory held at every stored step: its play is played again, and compared.

A store keeps screens, not memory. But the play of an environment follows from its seed and its
actions, so the actions of its segments are played again from the first, and each screen must have
the digest that the store has, each action earn what it earned. What cannot be played again, since
it came from elsewhere, or lacks the steps before it, or is played otherwise by this emulator, is
named, and nothing is said of its memory.

ale-py's native vector environment does not show its memory. A plain emulator that does what that
one does shows it; how many no-ops a reset begins with, the native one tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import ale_py
import numpy as np
from numpy.typing import NDArray

from wsa.learn.envs import atari as games
from wsa.learn.online.env_runner import STRETCH, is_online, stretch_seed
from wsa.store.common import hashing
from wsa.store.format.records import Protocol, SegmentMeta
from wsa.store.objects.snapshot import Snapshot

RAM_BYTES = 128

Memory = NDArray[np.uint8]


class _Unlike(Exception):
    """The emulator does not play what is stored."""


class _Console:
    """An emulator that plays as an environment of `atari.make_env` does, and shows its memory."""

    def __init__(self, game: str, stated: Protocol) -> None:
        games.quiet_emulator()
        self._rom = str(games.rom(game))
        self._skip, self._pool = stated.frame_skip, stated.max_pool
        self._actions = [getattr(ale_py.Action, name) for name in stated.actions]
        self._fire = stated.fire_reset and ale_py.Action.FIRE in self._actions
        self._native = games.make_env(game, stated, 1)
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", stated.sticky)
        self._screen = np.zeros(0, np.uint8)

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode; with a seed, begin to play."""
        _, info = self._native.reset(seed=seed)
        if seed is not None:
            self._ale.setInt("random_seed", seed)
            self._ale.loadROM(self._rom)
        self._ale.reset_game()
        if self._fire:
            self._ale.act(ale_py.Action.FIRE)
        for _ in range(int(info["episode_frame_number"][0]) - self._fire):
            self._ale.act(ale_py.Action.NOOP)
        self._screen = self._ale.getScreenRGB()

    def digest(self) -> bytes:
        """Identity of the frame that is shown."""
        return hashing.frame_digest(self._screen)

    def memory(self) -> Memory:
        """What the memory holds, (128,)."""
        return self._ale.getRAM()

    def step(self, action: int) -> tuple[float, bool]:
        """Act; the reward, and whether the game ended."""
        reward, shown = 0.0, []
        for left in reversed(range(self._skip)):
            reward += self._ale.act(self._actions[action])
            if self._ale.game_over():
                return reward, True
            if left < 2:
                shown.append(self._ale.getScreenRGB())
        self._screen = np.maximum(*shown) if self._pool and len(shown) == 2 else shown[-1]
        return reward, False

    def close(self) -> None:
        """End the native environment's thread."""
        self._native.close()


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
    console = _Console(first.game, first.protocol)
    try:
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
                _same(console.digest() == rows["digest"][rows["frame"][row]].tobytes(), meta, row)
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
    finally:
        console.close()


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
