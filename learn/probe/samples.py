"""Draw the steps that probes use, with the variables to predict for each.

A store records who played each segment, so half of the steps are drawn from *random play* and
half from *better play*. Tests use whole episodes, and no step whose exact frame was in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.learn.probe.splits import MIN_EPISODES, Groups, Rows, Split, group, make_splits
from wsa.learn.probe.targets import Labeler, Shown, Target
from wsa.store.common.errors import MissingError
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.snapshot import Snapshot

SPREAD = 5  # Draw samples from this many times as many steps.


@dataclasses.dataclass(frozen=True)
class SampledSteps:
    """Drawn steps of some segments.

    Attributes:
        segments: Segments that contain the steps.
        rows: For each segment, the drawn rows, ascending.
        frames: For each segment, the index of the distinct frame that each row shows.
        target: By variable, its values, shape (n,), over all segments in order.
        shown: By variable, whether its object is on the screen, shape (n,).
        better: Whether each step is of better play, shape (n,).
        groups: Groups of steps that stay together in a split.
        splits: Training and test steps; each step is tested in at most one split.
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
    """Whether a segment was played other than at random.

    How well is not checked: the command prints the returns of random and better play.
    """
    # A network with an epsilon of 1 (`wsa collect --eps 1`) plays at random.
    return meta.policy != "random" and not meta.policy.endswith(" eps 1")


def choose(
    snapshot: Snapshot, game: str, models: Sequence[str], policies: Sequence[str], steps: int
) -> list[SegmentMeta]:
    """Choose segments that every model has encoded, with at least `steps` steps if available.

    Random and better play get equal shares. Each environment's first segments are taken, because
    play can be replayed only from its beginning.

    Raises:
        MissingError: If there is no such segment.
    """
    encoded = snapshot.segments_encoded_by(game, models)
    fitting = [meta for meta in encoded if not policies or meta.policy in policies]
    if not fitting:
        who = f" played by {', '.join(policies)}" if policies else ""
        raise MissingError(
            "not-encoded",
            f"No segment of {game}{who} in {snapshot.backend.url} has been encoded by all of "
            f"{', '.join(models)}; the store has {len(snapshot.segments(game))} segments. Run: wsa encode --game {game}, "
            "or name fewer models.",
        )
    kinds = [kind for kind in (False, True) if any(is_better(m) == kind for m in fitting)]
    chosen: list[SegmentMeta] = []
    for kind in kinds:
        of_kind = [meta for meta in fitting if is_better(meta) == kind]
        chosen += _first_of_each(of_kind, steps // len(kinds))
    return sorted(chosen, key=lambda m: m.segment)


def _first_of_each(segments: Sequence[SegmentMeta], steps: int) -> list[SegmentMeta]:
    """The first segments of each environment, with at least `steps` steps if available."""
    lines: dict[tuple[str, int], list[SegmentMeta]] = {}
    for meta in segments:
        lines.setdefault((meta.run, meta.env), []).append(meta)
    waiting = [sorted(line, key=lambda m: m.start) for _, line in sorted(lines.items())]
    chosen: list[SegmentMeta] = []
    while any(waiting) and sum(meta.steps for meta in chosen) < steps:
        chosen += [line.pop(0) for line in waiting if line]
    return chosen


def max_drawn(segments: Sequence[SegmentMeta], samples: int) -> int:
    """Number of steps that `draw` takes from some segments if every step has an answer."""
    counts = [
        sum(meta.steps for meta in segments if is_better(meta) == kind) for kind in (False, True)
    ]
    share = samples // sum(count > 0 for count in counts)
    return sum(min(share, count) for count in counts)


def draw(
    snapshot: Snapshot,
    segments: Sequence[SegmentMeta],
    labeler: Labeler,
    samples: int,
    splits: int,
    seed: int,
) -> SampledSteps:
    """Draw steps, and assign them to splits.

    Args:
        segments: From `choose`.
        labeler: Returns the labels of a segment.
        samples: Maximum number of steps. If there are both random and better play, each gets at
            most half.
        splits: Number of parts that episodes are assigned to, at least 3; fewer if there are fewer
            episodes.
        seed: Seed for the draws.

    Raises:
        MissingError: If there are too few episodes and segments.
    """
    if not segments:
        raise _too_few(snapshot, 0, "play")
    generator = np.random.default_rng(seed)
    rows_of = [snapshot.read_rows(meta) for meta in segments]
    labels = [labeler(meta, rows) for meta, rows in zip(segments, rows_of, strict=True)]
    fitting = [
        np.flatnonzero(segment_labels.labeled & (rows["action"] >= 0))
        for segment_labels, rows in zip(labels, rows_of, strict=True)
    ]
    drawn = _draw([is_better(m) for m in segments], list(map(len, fitting)), samples, generator)
    places = [some[at] for some, at in zip(fitting, drawn, strict=True)]
    frames = [r["frame"][at].astype(np.int64) for r, at in zip(rows_of, places, strict=True)]
    better = np.repeat([is_better(meta) for meta in segments], list(map(len, places)))
    if not len(better):
        raise _too_few(snapshot, len(segments), "play")
    groups = group(
        [
            (meta.run, meta.env, int(episode))
            for meta, rows, at in zip(segments, rows_of, places, strict=True)
            for episode in rows["episode"][at].tolist()
        ],
        np.repeat(np.arange(len(segments)), list(map(len, places))).tolist(),
        better,
    )
    for kind in np.unique(better):
        if (groups.better == kind).sum() < MIN_EPISODES:
            count = sum(is_better(meta) == kind for meta in segments)
            raise _too_few(snapshot, count, "better play" if kind else "random play")
    digests = np.concatenate([r["digest"][f] for r, f in zip(rows_of, frames, strict=True)])
    identity = np.ascontiguousarray(digests).view("V16").ravel()
    return SampledSteps(
        list(segments),
        places,
        frames,
        _joined([one.values for one in labels], places),
        _joined([one.shown for one in labels], places),
        better,
        groups,
        [_unseen(split, identity) for split in make_splits(groups, splits)],
    )


def _draw(
    better: Sequence[bool], counts: Sequence[int], samples: int, generator: np.random.Generator
) -> list[Rows]:
    """For each segment, which of its `counts` fitting rows are drawn, ascending."""
    kind_of_row, kinds = np.repeat(better, counts), sorted(set(better))
    drawn = []
    for kind in kinds:
        rows_of_kind = np.flatnonzero(kind_of_row == kind)
        drawn.append(
            generator.choice(
                rows_of_kind, min(samples // len(kinds), len(rows_of_kind)), replace=False
            )
        )
    chosen = np.sort(np.concatenate(drawn))
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [chosen[(chosen >= a) & (chosen < b)] - a for a, b in pairwise(starts)]


def _joined(parts: Sequence[dict[str, NDArray[Any]]], at: Sequence[Rows]) -> dict[str, Any]:
    """Concatenate some rows of each segment's labels."""
    return {
        name: np.concatenate([part[name][rows] for part, rows in zip(parts, at, strict=True)])
        for name in parts[0]
    }


def _unseen(split: Split, identity: NDArray[Any]) -> Split:
    """Remove tested steps whose exact frame is in training."""
    fresh = ~np.isin(identity[split.test], identity[split.train])
    return dataclasses.replace(split, test=split.test[fresh])


def _too_few(snapshot: Snapshot, count: int, play: str) -> MissingError:
    return MissingError(
        "no-frames",
        f"{count} segments of {play} in {snapshot.backend.url} can be used, but at least {MIN_EPISODES} "
        "episodes or segments are needed: to fit probes, to choose penalties, and to test. Collect "
        "more: wsa collect --num-envs 8, or leave this play out with --policies",
    )
