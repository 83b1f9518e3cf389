"""What a store holds, as rows for tables and as JSON: games, models, coverage, bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from wsa.encode.register import describe
from wsa.store import names, records
from wsa.store.errors import MissingError
from wsa.store.reader import Snapshot


@dataclasses.dataclass(frozen=True)
class GameSummary:
    """One game in a store.

    Attributes:
        game: ALE game id.
        segments: Segments.
        steps: Agent steps.
        emulator_frames: Four times the steps.
        frames: Distinct frames, counted segment by segment.
        episodes: Episodes that ended.
        mean_return: Mean raw return of those episodes.
        bytes: Size of the segments.
        embedded: Size of the embeddings.
        models: Share of the segments that each model has encoded, by key.
    """

    game: str
    segments: int
    steps: int
    emulator_frames: int
    frames: int
    episodes: int
    mean_return: float | None
    bytes: int
    embedded: int
    models: dict[str, float]


def summarise(snapshot: Snapshot, game: str) -> GameSummary:
    """Sum up one game.

    Raises:
        MissingError: The store has no frames of it.
    """
    metas = snapshot.segments(game)
    if not metas:
        raise MissingError(
            "no-frames",
            f"The store {snapshot.backend.url} has no frames of {game}. Collect some: "
            f"wsa collect --game {game}",
        )
    returns = [returned for meta in metas for _, returned in meta.episodes]
    embeddings = snapshot.embeddings(game)
    return GameSummary(
        game=game,
        segments=len(metas),
        steps=sum(m.steps for m in metas),
        emulator_frames=sum(m.steps * m.protocol.frame_skip for m in metas),
        frames=sum(m.frames for m in metas),
        episodes=len(returns),
        mean_return=float(np.mean(returns)) if returns else None,
        bytes=sum(stored(snapshot, names.segment_path(game, m.segment)) for m in metas),
        embedded=sum(
            stored(snapshot, names.embedding_path(game, e.model, e.segment)) for e in embeddings
        ),
        models={
            key: sum(e.model == key for e in embeddings) / len(metas)
            for key in sorted({e.model for e in embeddings})
        },
    )


def stored(snapshot: Snapshot, path: str) -> int:
    """Bytes of an object's files."""
    return sum(file.bytes for file in snapshot.commit(path).files)


def total_bytes(snapshot: Snapshot) -> int:
    """Bytes of all committed files of a store."""
    return sum(file.bytes for commit in snapshot.commits.values() for file in commit.files)


def card(snapshot: Snapshot, game: str) -> dict[str, Any]:
    """Everything recorded of a game: protocols, policies, emulators, returns, encoders, authors."""
    metas = snapshot.segments(game)
    summary = summarise(snapshot, game)
    commits = [c for c in snapshot.commits.values() if getattr(c.meta, "game", None) == game]
    returns = [returned for meta in metas for _, returned in meta.episodes]
    return {
        **dataclasses.asdict(summary),
        "screens": sorted({f"{m.height} x {m.width}" for m in metas}),
        "protocols": [records.to_builtins(p) for p in dict.fromkeys(m.protocol for m in metas)],
        "collections": sorted({f"{m.policy}, seed {m.seed}, run {m.run}" for m in metas}),
        "emulator": sorted({f"ale-py {m.emulator[0]}, ROM MD5 {m.emulator[1]}" for m in metas}),
        "returns": {"min": min(returns), "max": max(returns)} if returns else None,
        "encoders": [describe(snapshot, key) for key in summary.models],
        "authors": sorted({c.author for c in commits}),
        "commands": sorted({c.command for c in commits}),
    }
