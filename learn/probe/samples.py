"""What probes learn from: moments of a game, and what is to be read out of each.

A store says who played each segment, so moments are drawn from *random play* and from *better play*,
half of them each. Whole episodes are judged, and no moment whose very frame was learned from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.learn.probe.splits import FEWEST, Groups, Rows, Split, deal, group
from wsa.learn.probe.targets import Asks, Shown, Target
from wsa.store.common.errors import MissingError
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.snapshot import Snapshot

SPREAD = 5  # Samples are drawn from so many times as many steps.


@dataclasses.dataclass(frozen=True)
class Moments:
    """Steps that were drawn.

    Attributes:
        segments: Those that they stand in.
        rows: Of each segment, the rows that were drawn, ascending.
        frames: Likewise, which of the segment's distinct frames each shows.
        target: (n,) of each variable, over all segments in their order.
        shown: (n,) of each variable, whether what it is about is on the screen.
        better: (n,), whether each is of better play.
        groups: What was dealt as a whole.
        splits: Which are learned from and judged; each is judged in one split at most.
    """

    segments: list[SegmentMeta]
    rows: list[Rows]
    frames: list[Rows]
    target: Target
    shown: Shown
    better: NDArray[np.bool_]
    groups: Groups
    splits: list[Split]

    def __len__(self) -> int:
        return len(self.better)


def is_better(meta: SegmentMeta) -> bool:
    """Whether a segment was played by somebody, not at random.

    How well is not asked: the command shows what random and better play returned.
    """
    # A network with an epsilon of 1 (`wsa collect --eps 1`) plays at random.
    return meta.policy != "random" and not meta.policy.endswith(" eps 1")


def choose(
    snapshot: Snapshot, game: str, models: Sequence[str], policies: Sequence[str], steps: int
) -> list[SegmentMeta]:
    """Segments that every model has encoded, of `steps` steps or more if there are as many.

    Random and better play have the same share. From each environment its first segments are taken,
    since play can be played again from its beginning only.

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
    kinds = [kind for kind in (False, True) if any(is_better(m) == kind for m in fitting)]
    chosen: list[SegmentMeta] = []
    for kind in kinds:
        own = [meta for meta in fitting if is_better(meta) == kind]
        chosen += _first_of_each(own, steps // len(kinds))
    return sorted(chosen, key=lambda m: m.segment)


def _first_of_each(segments: Sequence[SegmentMeta], steps: int) -> list[SegmentMeta]:
    """The first segments of each environment, of `steps` steps or more if there are as many."""
    lines: dict[tuple[str, int], list[SegmentMeta]] = {}
    for meta in segments:
        lines.setdefault((meta.run, meta.env), []).append(meta)
    waiting = [sorted(line, key=lambda m: m.start) for _, line in sorted(lines.items())]
    chosen: list[SegmentMeta] = []
    while any(waiting) and sum(meta.steps for meta in chosen) < steps:
        chosen += [line.pop(0) for line in waiting if line]
    return chosen


def drawn_at_most(segments: Sequence[SegmentMeta], samples: int) -> int:
    """Steps that `draw` takes of some segments if each of their steps has an answer."""
    counts = [
        sum(meta.steps for meta in segments if is_better(meta) == kind) for kind in (False, True)
    ]
    share = samples // sum(count > 0 for count in counts)
    return sum(min(share, count) for count in counts)


def draw(
    snapshot: Snapshot,
    segments: Sequence[SegmentMeta],
    asks: Asks,
    samples: int,
    splits: int,
    seed: int,
) -> Moments:
    """Draw steps, and deal them to splits.

    Args:
        snapshot: The store.
        segments: From `choose`.
        asks: What gives a segment's answers.
        samples: Steps at most; of random and of better play at most half each where there are both.
        splits: Parts that episodes are dealt to, at least 3; fewer where there are fewer episodes.
        seed: Seed for the draws.

    Raises:
        MissingError: There are too few episodes and segments to deal.
    """
    if not segments:
        raise _too_few(snapshot, 0, "play")
    generator = np.random.default_rng(seed)
    own = [snapshot.read_rows(meta) for meta in segments]
    answers = [asks(meta, rows) for meta, rows in zip(segments, own, strict=True)]
    fitting = [
        np.flatnonzero(found.answered & (rows["action"] >= 0))
        for found, rows in zip(answers, own, strict=True)
    ]
    drawn = _draw([is_better(m) for m in segments], list(map(len, fitting)), samples, generator)
    places = [some[at] for some, at in zip(fitting, drawn, strict=True)]
    frames = [r["frame"][at].astype(np.int64) for r, at in zip(own, places, strict=True)]
    better = np.repeat([is_better(meta) for meta in segments], list(map(len, places)))
    if not len(better):
        raise _too_few(snapshot, len(segments), "play")
    groups = group(
        [
            (meta.run, meta.env, int(episode))
            for meta, rows, at in zip(segments, own, places, strict=True)
            for episode in rows["episode"][at].tolist()
        ],
        np.repeat(np.arange(len(segments)), list(map(len, places))).tolist(),
        better,
    )
    for kind in np.unique(better):
        if (groups.better == kind).sum() < FEWEST:
            count = sum(is_better(meta) == kind for meta in segments)
            raise _too_few(snapshot, count, "better play" if kind else "random play")
    seen = np.concatenate([r["digest"][f] for r, f in zip(own, frames, strict=True)])
    identity = np.ascontiguousarray(seen).view("V16").ravel()
    return Moments(
        list(segments),
        places,
        frames,
        _joined([found.values for found in answers], places),
        _joined([found.shown for found in answers], places),
        better,
        groups,
        [_unseen(split, identity) for split in deal(groups, splits)],
    )


def _draw(
    better: Sequence[bool], counts: Sequence[int], samples: int, generator: np.random.Generator
) -> list[Rows]:
    """Of each segment, which of its `counts` fitting rows are drawn, ascending."""
    whose, kinds = np.repeat(better, counts), sorted(set(better))
    drawn = []
    for kind in kinds:
        own = np.flatnonzero(whose == kind)
        drawn.append(generator.choice(own, min(samples // len(kinds), len(own)), replace=False))
    chosen = np.sort(np.concatenate(drawn))
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [chosen[(chosen >= a) & (chosen < b)] - a for a, b in pairwise(starts)]


def _joined(parts: Sequence[dict[str, NDArray[Any]]], at: Sequence[Rows]) -> dict[str, Any]:
    """Some rows of each segment's answers, one segment after another."""
    return {
        name: np.concatenate([part[name][rows] for part, rows in zip(parts, at, strict=True)])
        for name in parts[0]
    }


def _unseen(split: Split, identity: NDArray[Any]) -> Split:
    """A split without the judged moments whose very frame was learned from."""
    fresh = ~np.isin(identity[split.test], identity[split.train])
    return dataclasses.replace(split, test=split.test[fresh])


def _too_few(snapshot: Snapshot, count: int, play: str) -> MissingError:
    return MissingError(
        "no-frames",
        f"{count} segments of {play} in {snapshot.backend.url} can be used, and {FEWEST} episodes or "
        "segments are needed at least: to learn from, to choose penalties by, and to be judged. "
        "Collect more: wsa collect --num-envs 8, or leave this play out with --policies",
    )
