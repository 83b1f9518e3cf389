"""Where the reduction of a model's output comes from: drawn, shipped, or fitted on the strip or a game."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from wsa.encode.inference import objects, palette
from wsa.encode.inference import reduction as bases
from wsa.encode.inference.encoder import Encoder
from wsa.encode.inference.fitted import FITTED
from wsa.encode.inference.reduction import Reduction
from wsa.encode.inference.segment_inputs import read_segment_frames
from wsa.encode.registration import game_levels, probe_frames
from wsa.store.common.errors import MissingError
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.model_spec import Output
from wsa.store.objects.snapshot import Snapshot

GAME_FRAMES = 2048  # Kept in memory as features: half a gigabyte for a grid of 7 x 7 x 1280.
GAME_SCREENS = 1024  # Likewise: 0.14 GB of grey screens.


def recipe(output: Output) -> str:
    """What stands for an output's reduction in a model's identity before anything is fitted.

    Of a game's own basis it is empty, for only its bytes can say what it is.
    """
    if output.reduction == "rp":
        return bases.random_recipe()
    if output.of_one_game:
        return ""
    return (
        bases.recipe(probe_frames.frames_digest()) if output.reduction and not output.game else ""
    )


def frames_needed(snapshot: Snapshot, output: Output, window: int = 1) -> int:
    """How many frames, or windows of frames, a fit takes."""
    if output.reduction not in FITTED or shipped(output) is not None:
        return 0
    if not output.game:
        return sum(len(part.frames) for part in probe_frames.load_frames())
    return min(
        _most_frames(output), sum(_input_counts(_with_frames(snapshot, output.game), window))
    )


def fit(encoder: Encoder, snapshot: Snapshot | None, output: Output, window: int) -> Reduction:
    """Fit a reduction on what `encoder` makes of frames.

    Args:
        encoder: The model without its reduction.
        snapshot: The store, for frames of a game; not needed where the output names none.
        output: What is fitted, and on which game.
        window: Consecutive frames that the model looks at.

    Raises:
        MissingError: The store has no frames of the game.
        UsageError: The frames cannot give so many numbers.
    """
    known = shipped(output)
    if known is not None:
        return known
    if output.game:
        assert snapshot is not None, "frames of a game are a store's"
        parts = game_inputs(snapshot, output.game, window, _most_frames(output))
    else:
        parts = [
            probe_frames.pairs_in_windows(part.frames, window)
            for part in probe_frames.load_frames()
        ]
    features = torch.cat([encoder.features(part) for part in parts])
    return FITTED[output.reduction].fit(features, output.numbers)


def shipped(output: Output) -> Reduction | None:
    """The reduction that comes with wsa, where the output needs that of one game."""
    known = game_levels.load(output.game) if output.of_one_game else None
    if known is None:
        return None
    levels, classes = known
    if output.reduction == "palette":
        return palette.make(levels, output.numbers)
    return objects.make(levels, classes, output.numbers)


def _most_frames(output: Output) -> int:
    return GAME_SCREENS if output.of_one_game else GAME_FRAMES


def game_inputs(snapshot: Snapshot, game: str, window: int, most: int) -> list[NDArray[np.uint8]]:
    """Up to `most` of what a model sees of a game, spread evenly over all in the store.

    Returns:
        Arrays (n, H, W, 3) uint8, or (n, window, H, W, 3) of a model with a window.
    """
    metas = _with_frames(snapshot, game)
    edges = np.cumsum([0, *_input_counts(metas, window)])
    if not edges[-1]:
        raise MissingError(
            "no-frames",
            f"{snapshot.backend.url} has no frames of {game} to fit a basis on. Collect some: "
            f"wsa collect --game {game}",
        )
    chosen = np.unique(np.linspace(0, edges[-1] - 1, most).round().astype(np.int64))
    parts: list[NDArray[np.uint8]] = []
    for meta, start, stop in zip(metas, edges, edges[1:], strict=False):
        own = chosen[(chosen >= start) & (chosen < stop)] - start
        if len(own):
            parts += read_segment_frames(snapshot, meta, rows=window > 1).inputs(window, own)
    return parts


def _with_frames(snapshot: Snapshot, game: str) -> list[SegmentMeta]:
    """A game's segments whose frames are here."""
    here = {meta.segment for meta in snapshot.frames(game)}
    return [meta for meta in snapshot.segments(game) if meta.segment in here]


def _input_counts(metas: list[SegmentMeta], window: int) -> list[int]:
    return [meta.rows if window > 1 else meta.frames for meta in metas]
