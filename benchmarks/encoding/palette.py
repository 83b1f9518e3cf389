"""Speed of `palette` and `objects`, compared with networks, on one core.

    python -m benchmarks.encoding.palette [GAME ...]

Each encoder embeds the same stored frames of a game, from the stored pictures to rounded rows, as
`wsa encode` does; in turn, round after round, on one thread.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from benchmarks.kit import interleave, rate, store_of, table
from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.inference.segment_inputs import SegmentFrames, read_segment_frames
from wsa.encode.models.registry import for_games, parse_request
from wsa.encode.registration.register import open_model, register
from wsa.store.objects.snapshot import Snapshot, take_snapshot

MODELS = ("palette", "objects", "vos", "sr", "lite0")
GAMES = ("Pong", "Seaquest", "Enduro")
STEPS, ROWS = 1024, 128


def embed(encoder: Encoder, snapshot: Snapshot, game: str, window: int) -> int:
    """Embed some frames, or windows, of the game's first segment; return their number."""
    meta = snapshot.segments(game)[0]
    shown = read_segment_frames(snapshot, meta, rows=window > 1)
    # As in an encoding, pictures are read once, and each model converts them.
    fresh = SegmentFrames(shown.pictures, shown.palette, shown.frame, shown.starts)
    chosen = np.arange(min(ROWS, meta.inputs(window)))
    return len(stored(encoder.embed_inputs(fresh, window, chosen)))


def main(games: list[str]) -> None:
    torch.set_num_threads(1)
    for game in games:
        with store_of(game, STEPS) as (backend, _):
            contenders = {}
            for alias in MODELS:
                request = for_games([parse_request(alias, {})], [game])[0]
                spec = register(take_snapshot(backend), request, 0.1).spec
                snapshot = take_snapshot(backend)
                arguments = open_model(snapshot, spec.key), snapshot, game
                window = spec.identity.window

                def measure(arguments: tuple = arguments, window: int = window) -> float:
                    return rate(lambda: embed(*arguments, window), 1.0)

                contenders[alias] = measure
            print(f"\n{game}\n")
            table("frames/s", interleave(contenders), "vos")


if __name__ == "__main__":
    main(sys.argv[1:] or [*GAMES])
