"""What has to be encoded: pure, printable, and exact about every pass.

For each model the segments without an embedding object are listed. Within them an input, which is a
frame or a window of frames, goes through the model only if its digest was never seen by that model:
not in any committed segment of any game, and not earlier in the plan. Every other one is a copy of
a row of another object.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from wsa.encode.inference.segment_inputs import input_digests
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.digest_index import first_seen
from wsa.store.objects.snapshot import Snapshot

Name = tuple[str, str, str]  # Of an embedding object: model key, game, segment.
Digests = dict[tuple[str, str, int], NDArray[np.uint8]]  # By game, segment and window.


@dataclasses.dataclass(frozen=True)
class Copy:
    """Rows to copy from embeddings by the same model.

    Attributes:
        game: Game of the source segment.
        segment: The source segment; the one that is written where that repeats an input.
        source: (n,) int64, its rows.
        target: (n,) int64, the rows they become.
    """

    game: str
    segment: str
    source: NDArray[np.int64]
    target: NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Item:
    """One embedding object to write.

    Attributes:
        model: The model key.
        meta: The segment.
        own: (n,) int64, inputs that go through the model: frames, or rows where it has a window.
        copies: Where the other rows come from.
        window: Consecutive frames that the model looks at.
    """

    model: str
    meta: SegmentMeta
    own: NDArray[np.int64]
    copies: tuple[Copy, ...]
    window: int = 1

    @property
    def inputs(self) -> int:
        """Embeddings in the object."""
        return self.meta.inputs(self.window)

    @property
    def name(self) -> Name:
        """The object's model key, game and segment."""
        return self.model, self.meta.game, self.meta.segment

    @property
    def sources(self) -> set[Name]:
        """The other objects that it copies from."""
        return {(self.model, c.game, c.segment) for c in self.copies} - {self.name}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything to be done, model by model, segment by segment; copies only look back.

    Attributes:
        items: Objects to write.
        present: Objects that were asked for and are there already.
        games: The games, in order.
    """

    items: tuple[Item, ...]
    present: int
    games: tuple[str, ...]

    @property
    def passes(self) -> int:
        """Frames, or windows, that will go through a model."""
        return sum(len(item.own) for item in self.items)

    @property
    def copies(self) -> int:
        """Those that will not, because the same went through before."""
        return sum(item.inputs - len(item.own) for item in self.items)

    def by_segment(self) -> list[tuple[Item, ...]]:
        """The items of each segment together, in an order in which copies only look back too."""
        ordered = sorted(self.items, key=lambda item: _order(self.games, item.meta))
        return [
            tuple(items)
            for _, items in itertools.groupby(ordered, lambda i: (i.meta.game, i.meta.segment))
        ]


def make_plan(
    snapshot: Snapshot,
    models: Sequence[str],
    games: Sequence[str],
    without: Collection[Name] = (),
    windows: Mapping[str, int] | None = None,
    known: Digests | None = None,
    only: Mapping[str, str] | None = None,
) -> Plan:
    """Plan the encoding of `games` by `models`, both in the order given.

    Args:
        snapshot: The store.
        models: Model keys.
        games: Games.
        without: Objects to leave out, and to copy nothing from.
        windows: Consecutive frames that a model looks at, of those that look at more than one.
        known: Digests read for earlier plans; those read for this one are added.
        only: The game of each model that embeds one game alone.
    """
    segments = snapshot.segments()
    digests = _Digests(snapshot, {} if known is None else known)
    items: list[Item] = []
    present = 0
    for model in models:
        encoded = {(e.game, e.segment) for e in snapshot.embeddings(model=model)}
        done = [m for m in segments if (m.game, m.segment) in encoded]
        own = (only or {}).get(model)
        mine = [game for game in games if own in (None, game)]
        todo = [m for m in segments if m.game in mine and (m.game, m.segment) not in encoded]
        missing = sorted(
            (m for m in todo if (model, m.game, m.segment) not in without),
            key=lambda m: _order(games, m),
        )
        present += sum(m.game in mine for m in done)
        window = (windows or {}).get(model, 1)
        items += _plan_model(model, window, done, missing, digests) if missing else []
    return Plan(tuple(items), present, tuple(games))


def _order(games: Sequence[str], meta: SegmentMeta) -> tuple[int, int, str]:
    """Where a segment stands in a plan.

    All environments of all runs side by side, since a segment repeats the last frames of the one
    before it: so that one is done by the time that they are copied.
    """
    return games.index(meta.game), meta.start, meta.segment


class _Digests:
    """Digests of segments' inputs, made once each."""

    def __init__(self, snapshot: Snapshot, known: Digests) -> None:
        self._snapshot = snapshot
        self._made = known

    def __call__(self, meta: SegmentMeta, window: int) -> NDArray[np.uint8]:
        # An id alone may be that of another game's segment too.
        name = meta.game, meta.segment, window
        if name not in self._made:
            self._made[name] = input_digests(self._snapshot, meta, window)
        return self._made[name]


def _plan_model(
    model: str,
    window: int,
    done: list[SegmentMeta],
    missing: list[SegmentMeta],
    digests: _Digests,
) -> list[Item]:
    """One model's items: number all inputs in order, and let each find where it stands first."""
    ordered = [*done, *missing]
    edges = np.cumsum([0, *(m.inputs(window) for m in ordered)])
    everything = np.concatenate([digests(m, window) for m in ordered])
    first = first_seen(everything)
    items = []
    for at in range(len(done), len(ordered)):
        origin = first[edges[at] : edges[at + 1]]
        seen = origin != np.arange(edges[at], edges[at + 1])
        own = np.flatnonzero(~seen)
        owners = np.searchsorted(edges, origin, side="right") - 1
        copies = []
        for owner in np.unique(owners[seen]):  # In order, so the segment itself comes last.
            target = np.flatnonzero(seen & (owners == owner))
            meta = ordered[owner]
            copies.append(Copy(meta.game, meta.segment, origin[target] - edges[owner], target))
        items.append(Item(model, ordered[at], own, tuple(copies), window))
    return items
