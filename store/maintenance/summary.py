"""Contents of a store for tables and JSON: games, segments, models, coverage, bytes.

This reads only records and the specs of models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np

from wsa.store.common import names
from wsa.store.common.errors import MissingError
from wsa.store.format.records import Commit, EmbeddingMeta, FramesMeta, SegmentMeta
from wsa.store.objects.model_spec import describe
from wsa.store.objects.snapshot import Snapshot


@dataclasses.dataclass(frozen=True)
class GameSummary:
    """One game in a store.

    Attributes:
        game: ALE game id.
        segments: Number of segments.
        pictured: Number of segments with frames in this store, which encoding needs.
        steps: Number of agent steps.
        emulator_frames: Steps times the frame skip.
        frames: Number of frames, distinct within their segment.
        episodes: Number of episodes that ended.
        mean_return: Mean raw return of those episodes.
        bytes: Size of the segments in bytes, including frames.
        embedded: Size of the embeddings in bytes.
        encoded: Number of segments that each model has encoded, by key.
        models: Fraction of the segments that each model has encoded, by key.
    """

    game: str
    segments: int
    pictured: int
    steps: int
    emulator_frames: int
    frames: int
    episodes: int
    mean_return: float | None
    bytes: int
    embedded: int
    encoded: dict[str, int]
    models: dict[str, float]


def summaries(snapshot: Snapshot) -> list[GameSummary]:
    """Summarize every game with segments, sorted."""
    by_game: dict[str, list[Commit]] = {}
    for commit in snapshot.commits.values():
        by_game.setdefault(getattr(commit.meta, "game", ""), []).append(commit)
    return [_summarize(game, by_game[game]) for game in snapshot.games]


def summarize(snapshot: Snapshot, game: str) -> GameSummary:
    """Summarize one game.

    Raises:
        MissingError: If the store has no segment of the game.
    """
    snapshot.segments_of(game)
    return _summarize(game, commits_of(snapshot, game))


def _summarize(game: str, commits: Iterable[Commit]) -> GameSummary:
    segments: list[SegmentMeta] = []
    pictured, size, embedded = set(), 0, 0
    encoded: dict[str, set[str]] = {}
    for commit in commits:
        meta = commit.meta
        if isinstance(meta, EmbeddingMeta):
            encoded.setdefault(meta.model, set()).add(meta.segment)
            embedded += commit.bytes
        else:
            size += commit.bytes
        if isinstance(meta, SegmentMeta):
            segments.append(meta)
        elif isinstance(meta, FramesMeta):
            pictured.add(meta.segment)
    ids = {meta.segment for meta in segments}
    counts = {key: len(encoded[key] & ids) for key in sorted(encoded)}
    returns = [returned for meta in segments for _, returned in meta.episodes]
    return GameSummary(
        game=game,
        segments=len(segments),
        pictured=len(pictured & ids),
        steps=sum(m.steps for m in segments),
        emulator_frames=sum(m.steps * m.protocol.frame_skip for m in segments),
        frames=sum(m.frames for m in segments),
        episodes=len(returns),
        mean_return=float(np.mean(returns)) if returns else None,
        bytes=size,
        embedded=embedded,
        encoded=counts,
        models={key: count / len(segments) for key, count in counts.items()},
    )


def commits_of(snapshot: Snapshot, game: str) -> list[Commit]:
    """Return the records of all objects of a game."""
    return [c for c in snapshot.commits.values() if getattr(c.meta, "game", None) == game]


def total_bytes(snapshot: Snapshot) -> int:
    """Return the size of all committed files of a store in bytes."""
    return sum(commit.bytes for commit in snapshot.commits.values())


def card(snapshot: Snapshot, game: str) -> dict[str, Any]:
    """Return all metadata of a game: protocols, policies, emulators, returns, encoders, authors."""
    metas = snapshot.segments(game)
    summary = summarize(snapshot, game)
    commits = commits_of(snapshot, game)
    numbers = dataclasses.asdict(summary)
    del numbers["encoded"]
    return {
        **numbers,
        "screens": sorted({f"{m.height} x {m.width}" for m in snapshot.frames(game)}),
        "protocols": [msgspec.to_builtins(p) for p in dict.fromkeys(m.protocol for m in metas)],
        "collections": sorted({f"{m.policy}, seed {m.seed}, run {m.run}" for m in metas}),
        "emulator": sorted({f"ale-py {m.emulator[0]}, ROM MD5 {m.emulator[1]}" for m in metas}),
        "policies": {
            policy: _returns([m for m in metas if m.policy == policy])
            for policy in sorted({m.policy for m in metas})
        },
        "encoders": [describe(snapshot, key) for key in summary.models if key in snapshot.models],
        "authors": sorted({c.author for c in commits}),
        "commands": sorted({c.command for c in commits}),
    }


def _returns(metas: list[SegmentMeta]) -> dict[str, Any]:
    """Return the number of steps and episodes, and statistics of their raw returns."""
    returns = [returned for meta in metas for _, returned in meta.episodes]
    return {
        "steps": sum(meta.steps for meta in metas),
        "episodes": len(returns),
        "mean_return": float(np.mean(returns)) if returns else None,
        "least_return": min(returns, default=None),
        "highest_return": max(returns, default=None),
    }


def segment_card(snapshot: Snapshot, segment: str) -> dict[str, Any]:
    """Return all metadata of a segment.

    Raises:
        MissingError: If there is no such segment.
    """
    meta = next((m for m in snapshot.segments() if m.segment == segment), None)
    if meta is None:
        raise MissingError(
            "no-frames", f"The store {snapshot.backend.url} has no segment {segment}."
        )
    pictures = snapshot.commits.get(names.frames_path(meta.game, segment))
    embeddings = [e for e in snapshot.embeddings(meta.game) if e.segment == segment]
    return {
        **msgspec.to_builtins(meta),
        **_provenance(snapshot.commit(names.segment_path(meta.game, segment))),
        "screens": _provenance(pictures) if pictures else None,
        "embeddings": {
            e.model: {
                "shape": list(e.shape),
                "dtype": e.dtype,
                "passes": e.passes,
                "copied": e.copied,
                "seconds": e.seconds,
                **_provenance(snapshot.commit(names.embedding_path(e.game, e.model, segment))),
            }
            for e in embeddings
        },
    }


def model_card(snapshot: Snapshot, key: str) -> dict[str, Any]:
    """Return all metadata of a model.

    Raises:
        MissingError: If there is no such model.
    """
    described = describe(snapshot, key)
    embeddings = snapshot.embeddings(model=key)
    games = {game: len(snapshot.segments(game)) for game in sorted({e.game for e in embeddings})}
    return {
        **described,
        "seconds": sum(e.seconds for e in embeddings),
        "games": {
            game: f"{sum(e.game == game for e in embeddings):,} of {count:,} segments"
            for game, count in games.items()
        },
        **_provenance(snapshot.commit(names.model_path(key))),
        "embedded": sum(
            c.bytes
            for c in snapshot.commits.values()
            if isinstance(c.meta, EmbeddingMeta) and c.meta.model == key
        ),
    }


def _provenance(commit: Commit) -> dict[str, Any]:
    return {
        "path": commit.folder,
        "bytes": commit.bytes,
        "author": commit.author,
        "time": commit.time,
        "command": commit.command,
    }
