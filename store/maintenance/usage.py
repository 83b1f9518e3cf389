"""Who and what fills a store: bytes, frames and hours, summed from records and one listing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from wsa.store.format.records import Commit, EmbeddingMeta, FramesMeta, ModelMeta, SegmentMeta
from wsa.store.maintenance.sweep import Attempt, list_attempts
from wsa.store.objects.snapshot import Snapshot


@dataclasses.dataclass(frozen=True)
class Share:
    """What belongs together.

    Attributes:
        name: The game, policy, model or author; in brackets what has none.
        objects: Committed objects.
        frames: Frames, distinct within their segment; of a model its embeddings, which are more
            where it looks at several frames.
        screens: Bytes of frames.
        rows: Bytes of rows.
        embeddings: Bytes of embeddings.
        models: Bytes of models: specs, probe vectors, bases.
        bytes: Bytes of all these.
        seconds: How long the passes took that made the embeddings.
    """

    name: str
    objects: int = 0
    frames: int = 0
    screens: int = 0
    rows: int = 0
    embeddings: int = 0
    models: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Place:
    """Files that belong to no object."""

    files: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Usage:
    """What fills a store.

    Attributes:
        by: What was summed over.
        shares: The sums, largest first.
        total: The sum of all.
        leftovers: Files that no record names: writers that died, or are at work.
        damaged: Files that were put aside as damaged.
    """

    by: str
    shares: tuple[Share, ...]
    total: Share
    leftovers: Place
    damaged: Place


def usage(snapshot: Snapshot, by: str) -> Usage:
    """Sum up a store by `game`, `policy`, `model` or `author`.

    Reads no object: sizes stand in the records, and leftovers are found by listing the store.
    """
    policies = {(m.game, m.segment): m.policy for m in snapshot.segments()}
    group: dict[str, Callable[[Commit], str]] = {
        "game": _game,
        "policy": lambda commit: _policy(commit, policies),
        "model": lambda commit: getattr(commit.meta, "model", "(no model)"),
        "author": lambda commit: commit.author,
    }
    of = group[by]
    shares: dict[str, Share] = {}
    total = Share("total")
    for commit in snapshot.commits.values():
        name = of(commit)
        shares[name] = _add(shares.get(name, Share(name)), commit, by == "model")
        total = _add(total, commit, False)
    listing = list_attempts(snapshot.backend)
    named = {commit.folder for commit in snapshot.commits.values()}
    spare = [found for path, found in listing.attempts.items() if path not in named]
    return Usage(
        by=by,
        shares=tuple(sorted(shares.values(), key=lambda s: (-s.bytes, s.name))),
        total=total,
        leftovers=_together(spare),
        damaged=_together(listing.kept.values()),
    )


def _together(found: Iterable[Attempt]) -> Place:
    each = list(found)
    return Place(sum(one.files for one in each), sum(one.bytes for one in each))


def _game(commit: Commit) -> str:
    return getattr(commit.meta, "game", "(models)")


def _policy(commit: Commit, policies: dict[tuple[str, str], str]) -> str:
    meta = commit.meta
    if isinstance(meta, ModelMeta):
        return "(models)"
    return policies.get((meta.game, meta.segment), "(rows not here)")


def _add(share: Share, commit: Commit, embedded: bool) -> Share:
    """A share with one object more; `embedded` counts frames for models, not for segments."""
    meta = commit.meta
    frames = 0
    if isinstance(meta, EmbeddingMeta) and embedded:
        frames = meta.shape[0]
    elif isinstance(meta, SegmentMeta) and not embedded:
        frames = meta.frames
    return dataclasses.replace(
        share,
        objects=share.objects + 1,
        frames=share.frames + frames,
        screens=share.screens + commit.bytes * isinstance(meta, FramesMeta),
        rows=share.rows + commit.bytes * isinstance(meta, SegmentMeta),
        embeddings=share.embeddings + commit.bytes * isinstance(meta, EmbeddingMeta),
        models=share.models + commit.bytes * isinstance(meta, ModelMeta),
        bytes=share.bytes + commit.bytes,
        seconds=share.seconds + (meta.seconds if isinstance(meta, EmbeddingMeta) else 0),
    )
