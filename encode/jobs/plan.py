"""Plan what to encode, with an exact number of passes; a pure function of a snapshot.

A plan lists, for each model, the segments without an embedding object. An input of these (a frame
or a window of frames) goes through the model only if the model has never seen its digest, neither
in a committed segment of any game nor earlier in the plan. Any other input copies a row of another
object.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from wsa.encode.inference.segment_inputs import input_digests
from wsa.store.common import names
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.digest_index import first_seen
from wsa.store.objects.snapshot import Snapshot

Name = tuple[str, str, str]  # An embedding object: model key, game, segment.
Digests = dict[tuple[str, str, int], NDArray[np.uint8]]  # By game, segment and window.


@dataclasses.dataclass(frozen=True)
class Copy:
    """Rows to copy from an embedding object of the same model.

    Attributes:
        game: Game of the source segment.
        segment: Source segment; the target itself if that repeats an input.
        source: Rows in the source, (n,) int64.
        target: Rows in the target, (n,) int64.
    """

    game: str
    segment: str
    source: NDArray[np.int64]
    target: NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Item:
    """One embedding object to write.

    Attributes:
        model: Model key.
        meta: Segment to encode.
        own: Inputs that go through the model, (n,) int64: frames, or rows if it has a window.
        copies: Sources of the other rows.
        window: Number of consecutive frames that the model sees.
    """

    model: str
    meta: SegmentMeta
    own: NDArray[np.int64]
    copies: tuple[Copy, ...]
    window: int = 1

    @property
    def inputs(self) -> int:
        """Number of embeddings in the object."""
        return self.meta.inputs(self.window)

    @property
    def name(self) -> Name:
        """Model key, game and segment of the object."""
        return self.model, self.meta.game, self.meta.segment

    @property
    def path(self) -> str:
        """Path of the object in the store."""
        return names.embedding_path(self.meta.game, self.model, self.meta.segment)

    @property
    def sources(self) -> set[Name]:
        """Other objects that this one copies from."""
        return {(self.model, c.game, c.segment) for c in self.copies} - {self.name}


@dataclasses.dataclass(frozen=True)
class Plan:
    """All objects to write, by model, then segment; an object copies only from earlier ones.

    Attributes:
        items: Objects to write.
        present: Number of requested objects that are already in the store.
        games: Games, in order.
    """

    items: tuple[Item, ...]
    present: int
    games: tuple[str, ...]

    @property
    def passes(self) -> int:
        """Number of frames, or windows, to run through a model."""
        return sum(len(item.own) for item in self.items)

    @property
    def copies(self) -> int:
        """Number of frames, or windows, whose embedding is copied."""
        return sum(item.inputs - len(item.own) for item in self.items)

    def by_segment(self) -> list[tuple[Item, ...]]:
        """Group the items by segment, in an order in which copies still refer to earlier items."""
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
        without: Objects to leave out and not to copy from.
        windows: Number of consecutive frames that a model sees, by key; 1 if absent.
        known: Cache of digests over several plans; updated.
        only: The game of each model that embeds only one, by key.
    """
    segments = snapshot.segments()
    made: Digests = {} if known is None else known

    def digests(meta: SegmentMeta, window: int) -> NDArray[np.uint8]:
        name = meta.game, meta.segment, window  # A segment's id is unique only within its game.
        if name not in made:
            made[name] = input_digests(snapshot, meta, window)
        return made[name]

    items: list[Item] = []
    present = 0
    for model in models:
        encoded = {(e.game, e.segment) for e in snapshot.embeddings(model=model)}
        done = [m for m in segments if (m.game, m.segment) in encoded]
        model_games = {game for game in games if (only or {}).get(model, game) == game}
        present += sum(m.game in model_games for m in done)
        missing = [
            m
            for m in segments
            if m.game in model_games
            and (m.game, m.segment) not in encoded
            and (model, m.game, m.segment) not in without
        ]
        missing.sort(key=lambda m: _order(games, m))
        window = (windows or {}).get(model, 1)
        items += _plan_model(model, window, done, missing, digests) if missing else []
    return Plan(tuple(items), present, tuple(games))


def _order(games: Sequence[str], meta: SegmentMeta) -> tuple[int, int, str]:
    """Return the sort key of a segment in a plan.

    Segments of all environments and runs are interleaved by their first step. A segment repeats the
    last frames of its predecessor, which is then usually finished before they are copied.
    """
    return games.index(meta.game), meta.start, meta.segment


def _plan_model(
    model: str,
    window: int,
    done: list[SegmentMeta],
    missing: list[SegmentMeta],
    digests: Callable[[SegmentMeta, int], NDArray[np.uint8]],
) -> list[Item]:
    """Plan one model: number all inputs in order, and find the first occurrence of each."""
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
        for owner in np.unique(owners[seen]):  # Sorted, so the segment itself comes last.
            target = np.flatnonzero(seen & (owners == owner))
            meta = ordered[owner]
            copies.append(Copy(meta.game, meta.segment, origin[target] - edges[owner], target))
        items.append(Item(model, ordered[at], own, tuple(copies), window))
    return items
