"""Which steps a probe learns from and which it is judged by: whole episodes, never a part of one.

Consecutive frames are so alike that a probe which has seen a step knows the next one. So episodes
are dealt to parts, of random and of better play alike, and each part is judged once by probes that
were fitted on the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FEWEST = 3  # Episodes of a kind of play; of fewer, segments are dealt.

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Split:
    """Moments, as places in an array: learned from, that choose a penalty, and judged."""

    fit: Rows
    check: Rows
    test: Rows

    @property
    def train(self) -> Rows:
        """All that is not judged."""
        return np.concatenate([self.fit, self.check])

    def within(self, mask: Mask) -> Split:
        """The moments among these for which `mask`, (n,) over all moments, holds."""
        return Split(*(part[mask[part]] for part in (self.fit, self.check, self.test)))

    def across(self, better: Mask) -> Split:
        """Learned from where `better` does not hold, and judged where it does."""
        fit, check = (part[~better[part]] for part in (self.fit, self.check))
        return Split(fit, check, self.test[better[self.test]])


@dataclasses.dataclass(frozen=True)
class Groups:
    """What is dealt as a whole.

    Attributes:
        of: (n,), the number of each moment's group.
        unit: `episodes` or `segments`, or both where a kind of play has too few episodes.
        better: (groups,), whether it is of better play.
    """

    of: Rows
    unit: str
    better: Mask

    def __len__(self) -> int:
        return len(self.better)


def group(episodes: Sequence[tuple[object, ...]], segments: Sequence[int], better: Mask) -> Groups:
    """Group moments by episode; those of a kind of play that has too few episodes by segment.

    Args:
        episodes: (n,), the episode of each moment.
        segments: (n,), its segment.
        better: (n,), whether it is of better play.
    """
    units, named = set(), np.empty(len(better), object)
    for kind in (False, True):
        rows = np.flatnonzero(better == kind).tolist()
        few = len({episodes[i] for i in rows}) < FEWEST
        if rows:
            units.add("segments" if few else "episodes")
        for i in rows:
            named[i] = (segments[i],) if few else episodes[i]
    order = {name: i for i, name in enumerate(dict.fromkeys(named))}
    of = np.array([order[name] for name in named], np.int64)
    whose = np.zeros(len(order), np.bool_)
    whose[of] = better
    return Groups(of, " and ".join(sorted(units)), whose)


def deal(groups: Groups, splits: int) -> list[Split]:
    """Deal groups of each kind to parts of like size; each part is judged in one split.

    The part after the judged one chooses penalties.

    Args:
        groups: From `group`, at least three of each kind.
        splits: Parts; fewer where a kind has fewer groups.
    """
    from sklearn.model_selection import GroupKFold

    better = groups.better[groups.of]
    counts = [int((groups.better == kind).sum()) for kind in np.unique(groups.better)]
    splits = min(splits, *counts)
    part = np.zeros(len(better), np.int64)
    for kind in np.unique(better):
        rows = np.flatnonzero(better == kind)
        dealer = GroupKFold(splits)
        for number, (_, own) in enumerate(dealer.split(rows, groups=groups.of[rows])):
            part[rows[own]] = number
    return [
        Split(
            np.flatnonzero((part != one) & (part != (one + 1) % splits)),
            np.flatnonzero(part == (one + 1) % splits),
            np.flatnonzero(part == one),
        )
        for one in range(splits)
    ]
