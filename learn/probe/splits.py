"""Split steps into training and test data by whole episodes.

Consecutive frames are so alike that a probe that has seen a step knows the next one. So episodes of
random and of better play are assigned to parts, and each part is tested once by probes that were
fitted on the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MIN_EPISODES = 3  # Episodes of a kind of play; with fewer, segments are assigned instead.

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Split:
    """Indices of steps: to fit, to choose a penalty, and to test."""

    fit: Rows
    check: Rows
    test: Rows

    @property
    def train(self) -> Rows:
        """All steps that are not tested."""
        return np.concatenate([self.fit, self.check])

    def within(self, mask: Mask) -> Split:
        """Only the steps for which `mask`, shape (n,) over all steps, is true."""
        return Split(*(part[mask[part]] for part in (self.fit, self.check, self.test)))

    def across(self, better: Mask) -> Split:
        """Fit and choose penalties where `better` is false, and test where it is true."""
        fit, check = (part[~better[part]] for part in (self.fit, self.check))
        return Split(fit, check, self.test[better[self.test]])


@dataclasses.dataclass(frozen=True)
class Groups:
    """Groups of steps that stay together.

    Attributes:
        of: Group of each step, shape (n,).
        unit: `episodes` or `segments`, or both if a kind of play has too few episodes.
        better: Whether each group is of better play, shape (groups,).
    """

    of: Rows
    unit: str
    better: Mask

    def __len__(self) -> int:
        return len(self.better)


def group(episodes: Sequence[tuple[object, ...]], segments: Sequence[int], better: Mask) -> Groups:
    """Group steps by episode, or by segment for a kind of play with too few episodes.

    Args:
        episodes: Episode of each step, length n.
        segments: Segment of each step, length n.
        better: Whether each step is of better play, shape (n,).
    """
    units, named = set(), np.empty(len(better), object)
    for kind in (False, True):
        rows = np.flatnonzero(better == kind).tolist()
        few = len({episodes[i] for i in rows}) < MIN_EPISODES
        if rows:
            units.add("segments" if few else "episodes")
        for i in rows:
            named[i] = (segments[i],) if few else episodes[i]
    order = {name: i for i, name in enumerate(dict.fromkeys(named))}
    group_of = np.array([order[name] for name in named], np.int64)
    group_better = np.zeros(len(order), np.bool_)
    group_better[group_of] = better
    return Groups(group_of, " and ".join(sorted(units)), group_better)


def make_splits(groups: Groups, splits: int) -> list[Split]:
    """Assign groups of each kind to parts of similar size; each part is tested in one split.

    The part after the tested one chooses penalties.

    Args:
        groups: From `group`, at least three of each kind.
        splits: Number of parts; reduced if a kind has fewer groups.
    """
    from sklearn.model_selection import GroupKFold

    better = groups.better[groups.of]
    counts = [int((groups.better == kind).sum()) for kind in np.unique(groups.better)]
    splits = min(splits, *counts)
    part = np.zeros(len(better), np.int64)
    for kind in np.unique(better):
        rows = np.flatnonzero(better == kind)
        dealer = GroupKFold(splits)
        for number, (_, members) in enumerate(dealer.split(rows, groups=groups.of[rows])):
            part[rows[members]] = number
    return [
        Split(
            np.flatnonzero((part != one) & (part != (one + 1) % splits)),
            np.flatnonzero(part == (one + 1) % splits),
            np.flatnonzero(part == one),
        )
        for one in range(splits)
    ]
