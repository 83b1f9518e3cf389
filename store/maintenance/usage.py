"""Disk usage of a store by game, policy, model or author, from records and one listing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from wsa.store.format.records import Commit, EmbeddingMeta, FramesMeta, ModelMeta, SegmentMeta
from wsa.store.maintenance.sweep import Attempt, list_attempts
from wsa.store.objects.snapshot import Snapshot


@dataclasses.dataclass(frozen=True)
class Share:
    """Usage of one game, policy, model or author.

    Attributes:
        name: The game, policy, model or author; in parentheses for objects that have none.
        objects: Number of committed objects.
        frames: Number of frames, distinct within their segment. For a model, its embeddings, which
            are more than the frames if its window is above 1.
        screens: Bytes of frames.
        rows: Bytes of rows.
        embeddings: Bytes of embeddings.
        models: Bytes of models: specs, probe vectors, bases.
        bytes: Sum of these four.
        seconds: Duration of the passes that computed the embeddings.
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
    """Disk usage of a store.

    Attributes:
        by: Grouping: `game`, `policy`, `model` or `author`.
        shares: Usage of each group, largest first.
        total: Usage of all objects.
        leftovers: Files that no record names, of dead or active writers.
        damaged: Files that a repair moved to `damaged/`.
    """

    by: str
    shares: tuple[Share, ...]
    total: Share
    leftovers: Place
    damaged: Place


def usage(snapshot: Snapshot, by: str) -> Usage:
    """Sum up a store by `game`, `policy`, `model` or `author`.

    This reads no object: records have the sizes, and a listing of the store shows the leftovers.
    """
    policies = {(m.game, m.segment): m.policy for m in snapshot.segments()}
    group: dict[str, Callable[[Commit], str]] = {
        "game": lambda commit: getattr(commit.meta, "game", "(models)"),
        "policy": lambda commit: _policy(commit, policies),
        "model": lambda commit: getattr(commit.meta, "model", "(no model)"),
        "author": lambda commit: commit.author,
    }
    shares: dict[str, Share] = {}
    total = Share("total")
    for commit in snapshot.commits.values():
        name = group[by](commit)
        shares[name] = _add(shares.get(name, Share(name)), commit, by == "model")
        total = _add(total, commit, False)
    listing = list_attempts(snapshot.backend)
    named = {commit.folder for commit in snapshot.commits.values()}
    leftovers = [found for path, found in listing.attempts.items() if path not in named]
    return Usage(
        by=by,
        shares=tuple(sorted(shares.values(), key=lambda s: (-s.bytes, s.name))),
        total=total,
        leftovers=_total(leftovers),
        damaged=_total(listing.kept.values()),
    )


def _total(found: Iterable[Attempt]) -> Place:
    attempts = list(found)
    return Place(sum(one.files for one in attempts), sum(one.bytes for one in attempts))


def _policy(commit: Commit, policies: dict[tuple[str, str], str]) -> str:
    meta = commit.meta
    if isinstance(meta, ModelMeta):
        return "(models)"
    return policies.get((meta.game, meta.segment), "(rows not here)")


def _add(share: Share, commit: Commit, embedded: bool) -> Share:
    """Return a share with one more object; `embedded` counts embeddings instead of frames."""
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
