"""Variables that probes predict: the emulator's memory, future rewards, or the player's actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsa.learn.probe import ram_labels, ram_replay
from wsa.store.common.errors import UsageError
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.snapshot import Snapshot

Target = dict[str, NDArray[np.int64]]
Shown = dict[str, NDArray[np.bool_]]


class Labels(NamedTuple):
    """Labels of a segment.

    Attributes:
        labeled: Whether each row has labels, shape (rows,).
        values: By variable, its values, shape (rows,).
        shown: By variable, whether its object is on the screen, shape (rows,).
    """

    labeled: NDArray[np.bool_]
    values: Target
    shown: Shown


# Maps a segment and its rows to the labels.
Labeler = Callable[[SegmentMeta, dict[str, NDArray[Any]]], Labels]


def replay(
    snapshot: Snapshot, segments: Sequence[SegmentMeta], on_steps: Callable[[int], None]
) -> tuple[list[SegmentMeta], Labeler, str]:
    """Replay segments to read the state variables of the emulator's memory.

    Returns:
        The replayed segments, a function that labels them, and notes on the other segments.
    """
    memories, failed = ram_replay.memories(snapshot, segments, on_steps)

    def target(meta: SegmentMeta, rows: dict[str, NDArray[Any]]) -> Labels:
        memory = memories[meta.segment]
        values = {
            name: v.astype(np.int64) for name, v in ram_labels.read(meta.game, memory).items()
        }
        return Labels(rows["action"] >= 0, values, ram_labels.on_screen(meta.game, memory))

    replayed = [meta for meta in segments if meta.segment in memories]
    return replayed, target, ram_replay.describe_failures(failed)


def action_target(meta: SegmentMeta, rows: dict[str, NDArray[Any]]) -> Labels:
    """The player's actions."""
    steps = rows["action"] >= 0
    return Labels(
        steps, {"action": rows["action"].astype(np.int64)}, {"action": np.ones(len(steps), bool)}
    )


def reward_target(horizons: Sequence[int]) -> Labeler:
    """Sign of the summed reward over the next steps of the episode, for each number of steps.

    A step has an answer if its segment contains all of these steps, or the episode's end.
    """
    return lambda meta, rows: _rewards(rows, horizons)


def _rewards(rows: dict[str, NDArray[Any]], horizons: Sequence[int]) -> Labels:
    count = len(rows["action"])
    ends = np.flatnonzero(rows["terminated"] | rows["truncated"]) + 1
    steps = rows["action"] >= 0
    last = count if not steps.any() else int(np.flatnonzero(steps)[-1]) + 1
    index = np.arange(count)
    # Where each row's episode ends within the segment; `last` if it continues in the next segment.
    bounds = np.append(ends, last)
    episode = np.searchsorted(ends, index, side="right")
    end, cut = bounds[episode], episode == len(ends)
    earned = np.concatenate([[0.0], np.cumsum(np.where(steps, rows["reward"], 0.0))])
    labeled = np.ones(count, np.bool_)
    target: Target = {}
    for horizon in horizons:
        until = np.minimum(index + horizon, end)
        labeled &= ~cut | (index + horizon <= last)
        within = np.maximum(until, index)
        name = "next step" if horizon == 1 else f"next {horizon} steps"
        target[name] = np.sign(earned[within] - earned[index]).astype(np.int64)
    return Labels(labeled, target, {name: np.ones(count, np.bool_) for name in target})


def horizons_of(words: Sequence[str]) -> tuple[int, ...]:
    """Parse `--horizon` into numbers.

    Raises:
        UsageError: If a word is not a number of steps.
    """
    if not words or not all(word.isdecimal() and 1 <= int(word) <= 1000 for word in words):
        raise UsageError(f"--horizon {','.join(words)}: give numbers of steps from 1 to 1000.")
    return tuple(dict.fromkeys(int(word) for word in words))
