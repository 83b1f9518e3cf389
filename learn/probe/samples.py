"""What probes learn from: moments of a game, what is to be read out of each, and embeddings.

Whole episodes are judged, never moments of an episode that was learned from: consecutive frames are
so alike that a probe would know the answer. And no moment is judged whose very frame was learned
from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsa.encode.inference.preprocess import preprocess
from wsa.learn.probe import ram_labels, ram_replay
from wsa.learn.probe.linear import Rows, Split
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.model_spec import Preprocessing
from wsa.store.objects.snapshot import Snapshot

SPREAD = 5  # Samples are drawn from so many times as many steps.
TEST, CHECK = 0.2, 0.1  # Shares of the steps.
FEWEST = 5  # Episodes; of fewer, segments are judged.
_TRIES = 200

Target = dict[str, NDArray[np.int64]]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Steps that were drawn.

    Attributes:
        segments: Those that they stand in.
        rows: Of each segment, the rows that were drawn, ascending.
        frames: Likewise, which of the segment's distinct frames each shows.
        target: (n,) of each variable, over all segments in their order.
        split: Which are learned from and judged.
        groups: What was split, `episodes` or `segments`, and how many there are.
    """

    segments: list[SegmentMeta]
    rows: list[Rows]
    frames: list[Rows]
    target: Target
    split: Split
    groups: tuple[str, int]

    def __len__(self) -> int:
        return sum(map(len, self.rows))


def choose(
    snapshot: Snapshot, game: str, models: Sequence[str], policies: Sequence[str], steps: int
) -> list[SegmentMeta]:
    """Segments that every model has encoded, of `steps` steps or more if there are as many.

    From each environment its first ones, since play can be played again from its beginning only.

    Raises:
        MissingError: There is none.
    """
    done = [{m.segment for m in snapshot.embeddings(game, key)} for key in models]
    known = snapshot.segments(game)
    fitting = [
        meta
        for meta in known
        if all(meta.segment in one for one in done) and (not policies or meta.policy in policies)
    ]
    if not fitting:
        who = f" played by {', '.join(policies)}" if policies else ""
        raise MissingError(
            "not-encoded",
            f"No segment of {game}{who} in {snapshot.backend.url} has been encoded by all of "
            f"{', '.join(models)}; {len(known)} are there. Run: wsa encode --game {game}, or name "
            "fewer models.",
        )
    lines: dict[tuple[str, int], list[SegmentMeta]] = {}
    for meta in fitting:
        lines.setdefault((meta.run, meta.env), []).append(meta)
    waiting = [sorted(line, key=lambda m: m.start) for _, line in sorted(lines.items())]
    chosen: list[SegmentMeta] = []
    while any(waiting) and sum(meta.steps for meta in chosen) < steps:
        chosen += [line.pop(0) for line in waiting if line]
    return sorted(chosen, key=lambda m: m.segment)


def draw(
    snapshot: Snapshot,
    segments: Sequence[SegmentMeta],
    target: Callable[[SegmentMeta, dict[str, NDArray[Any]]], tuple[NDArray[np.bool_], Target]],
    samples: int,
    seed: int,
) -> Moments:
    """Draw steps, and split them.

    Args:
        snapshot: The store.
        segments: From `choose`.
        target: From a segment and its rows to which rows have an answer, (rows,), and the answers
            of all rows, (rows,) of each variable.
        samples: Steps at most.
        seed: Of the draws.

    Raises:
        MissingError: There are too few episodes and segments to split.
    """
    if not segments:
        raise _too_few(snapshot, 0)
    rows, frames, episodes, digests = [], [], [], []
    answers: list[Target] = []
    for number, meta in enumerate(segments):
        own = snapshot.read_rows(meta)
        answered, found = target(meta, own)
        some = np.flatnonzero(answered & (own["action"] >= 0))
        rows.append(some)
        frames.append(own["frame"][some].astype(np.int64))
        digests.append(own["digest"][frames[-1]])
        answers.append({name: values[some].astype(np.int64) for name, values in found.items()})
        episodes.append(
            [(meta.run, meta.env, int(e), number) for e in own["episode"][some].tolist()]
        )
    generator = np.random.default_rng(seed)
    counts = [len(some) for some in rows]
    total = sum(counts)
    drawn = np.sort(generator.choice(total, min(samples, total), replace=False))
    of = np.repeat(np.arange(len(segments)), counts)[drawn]
    inside = drawn - np.concatenate([[0], np.cumsum(counts)])[of]
    own_places = [inside[of == number] for number in range(len(segments))]
    named = [episode for some in episodes for episode in some]
    wanted = [named[i] for i in drawn]
    groups, what = _groups(wanted)
    if groups.max(initial=0) < 2:
        raise _too_few(snapshot, len(segments))
    split = _split(groups, generator)
    seen = np.ascontiguousarray(np.concatenate(digests)[drawn]).view("V16").ravel()
    fresh = ~np.isin(seen[split.test], seen[split.train])
    return Moments(
        list(segments),
        [some[at] for some, at in zip(rows, own_places, strict=True)],
        [some[at] for some, at in zip(frames, own_places, strict=True)],
        {name: np.concatenate([one[name] for one in answers])[drawn] for name in answers[0]},
        dataclasses.replace(split, test=split.test[fresh]),
        (what, int(groups.max()) + 1),
    )


def _too_few(snapshot: Snapshot, count: int) -> MissingError:
    return MissingError(
        "no-frames",
        f"{count} segments of {snapshot.backend.url} can be used, and three episodes or segments "
        "are needed at least: to learn from, to choose by, and to be judged. Collect more: wsa "
        "collect --num-envs 8",
    )


def _groups(named: Sequence[tuple[str, int, int, int]]) -> tuple[NDArray[np.int64], str]:
    """Number of what each moment is split with: its episode, or where those are few its segment."""
    episodes = _numbered([name[:3] for name in named])
    if episodes.max(initial=-1) + 1 >= FEWEST:
        return episodes, "episodes"
    return _numbered([(*name[:2], name[3]) for name in named]), "segments"


def _numbered(names: Sequence[tuple[Any, ...]]) -> NDArray[np.int64]:
    """(n,), which of the distinct names each is, in the order in which they come."""
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names], np.int64)


def _split(groups: NDArray[np.int64], generator: np.random.Generator) -> Split:
    """Whole groups, so that the shares of moments are as near to those wanted as drawing gets."""
    sizes = np.bincount(groups) / len(groups)
    best, parts = np.inf, np.zeros(len(sizes), np.int64)
    for _ in range(_TRIES):
        order = generator.permutation(len(sizes))
        ends = np.cumsum(sizes[order])
        test = int(np.clip(np.searchsorted(ends, TEST) + 1, 1, len(order) - 2))
        check = int(
            np.clip(np.searchsorted(ends, TEST + CHECK) + 1 - test, 1, len(order) - test - 1)
        )
        off = abs(ends[test - 1] - TEST) + abs(ends[test + check - 1] - ends[test - 1] - CHECK)
        if off < best:
            best, parts = off, np.zeros(len(sizes), np.int64)
            parts[order[:test]], parts[order[test : test + check]] = 2, 1
    return Split(*(np.flatnonzero(parts[groups] == part) for part in range(3)))


def embeddings(snapshot: Snapshot, game: str, key: str, moments: Moments) -> NDArray[Any]:
    """What a model gave for each moment, (n, width); one segment after another is read.

    Of a model that looks at several frames, what it gave for the window that ends at the moment.
    """
    window = {m.segment: m.window for m in snapshot.embeddings(game, key)}
    parts = []
    for meta, rows, frames in zip(moments.segments, moments.rows, moments.frames, strict=True):
        if len(rows):
            whole = snapshot.read_embedding(game, key, meta.segment)
            some = whole[frames if window[meta.segment] == 1 else rows]
            parts.append(some.reshape(len(some), -1))
    found: NDArray[Any] = np.concatenate(parts)
    return found


def width(snapshot: Snapshot, game: str, key: str) -> int:
    """Numbers in a model's embedding."""
    return math.prod(snapshot.embeddings(game, key)[0].shape[1:])


def pixels(snapshot: Snapshot, moments: Moments, numbers: int) -> NDArray[np.uint8]:
    """Grey pixels of each moment, (n, at most `numbers`), as the field shrinks screens.

    Raises:
        MissingError: Frames are not here.
    """
    height = max(1, int((numbers * 210 / 160) ** 0.5))
    how = Preprocessing(
        geometry="squash", height=height, width=max(1, numbers // height), interpolation="area",
        mean=(0.0,), std=(1.0,), crop=1.0, channels="grey",
    )  # fmt: skip
    parts = []
    for meta, frames in zip(moments.segments, moments.frames, strict=True):
        shown = snapshot.read_frames(meta) if len(frames) else np.zeros((0, 1, 1, 3), np.uint8)
        distinct, at = np.unique(frames, return_inverse=True)
        small = [
            (preprocess(torch.from_numpy(shown[some]), how) * 255).round().to(torch.uint8)
            for some in np.array_split(distinct, max(1, len(distinct) // 64))
            if len(some)
        ]
        if small:
            parts.append(torch.cat(small).flatten(1).numpy()[at])
    found: NDArray[np.uint8] = np.concatenate(parts)
    return found


def ram_target(
    memories: dict[str, NDArray[np.uint8]],
) -> Callable[[SegmentMeta, dict[str, NDArray[Any]]], tuple[NDArray[np.bool_], Target]]:
    """The state variables of the emulator's memory (`wsa.learn.probe.ram_labels`)."""

    def target(
        meta: SegmentMeta, rows: dict[str, NDArray[Any]]
    ) -> tuple[NDArray[np.bool_], Target]:
        found = ram_labels.read(meta.game, memories[meta.segment])
        return rows["action"] >= 0, {name: v.astype(np.int64) for name, v in found.items()}

    return target


def action_target(
    meta: SegmentMeta, rows: dict[str, NDArray[Any]]
) -> tuple[NDArray[np.bool_], Target]:
    """What the player did."""
    return rows["action"] >= 0, {"action": rows["action"].astype(np.int64)}


def reward_target(
    horizons: Sequence[int],
) -> Callable[[SegmentMeta, dict[str, NDArray[Any]]], tuple[NDArray[np.bool_], Target]]:
    """The sign of what the next steps of the episode earn together, for each number of steps.

    A moment has an answer if all of these steps, or the episode's end, stand in its segment.
    """
    return lambda meta, rows: _rewards(rows, horizons)


def _rewards(
    rows: dict[str, NDArray[Any]], horizons: Sequence[int]
) -> tuple[NDArray[np.bool_], Target]:
    count = len(rows["action"])
    ends = np.flatnonzero(rows["terminated"] | rows["truncated"]) + 1
    steps = rows["action"] >= 0
    last = count if not steps.any() else int(np.flatnonzero(steps)[-1]) + 1
    at = np.arange(count)
    # Where each row's episode ends in the segment; `last` where it goes on in the next one.
    bounds = np.append(ends, last)
    found = np.searchsorted(ends, at, side="right")
    end, cut = bounds[found], found == len(ends)
    earned = np.concatenate([[0.0], np.cumsum(np.where(steps, rows["reward"], 0.0))])
    answered = np.ones(count, np.bool_)
    target: Target = {}
    for horizon in horizons:
        until = np.minimum(at + horizon, end)
        answered &= ~cut | (at + horizon <= last)
        within = np.maximum(until, at)
        name = "next step" if horizon == 1 else f"next {horizon} steps"
        target[name] = np.sign(earned[within] - earned[at]).astype(np.int64)
    return answered, target


def horizons_of(words: Sequence[str]) -> tuple[int, ...]:
    """`--horizon` as numbers.

    Raises:
        UsageError: One is no number of steps.
    """
    if not words or not all(word.isdecimal() and 1 <= int(word) <= 1000 for word in words):
        raise UsageError(
            "bad-option", f"--horizon {','.join(words)}: give numbers of steps from 1 to 1000."
        )
    return tuple(dict.fromkeys(int(word) for word in words))


def open_memories(
    snapshot: Snapshot, segments: Sequence[SegmentMeta], on_steps: Callable[[int], None]
) -> tuple[list[SegmentMeta], dict[str, NDArray[np.uint8]], str]:
    """Play segments again: those that could be, what memory held, and what is said of the others."""
    memories, failed = ram_replay.memories(snapshot, segments, on_steps)
    return [m for m in segments if m.segment in memories], memories, ram_replay.why(failed)
