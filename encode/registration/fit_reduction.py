"""Fit the reduction of a model's output on probe frames or a game, or return the shipped one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from wsa.encode.inference import objects, palette
from wsa.encode.inference import reduction as bases
from wsa.encode.inference.encoder import Encoder
from wsa.encode.inference.levels import Levels
from wsa.encode.inference.reduction import Reduction
from wsa.encode.inference.segment_inputs import read_segment_frames
from wsa.encode.registration import probe_frames
from wsa.store.common.errors import MissingError
from wsa.store.objects.model_spec import Output
from wsa.store.objects.snapshot import Snapshot

GAME_LEVELS = Path(__file__).with_name("game_levels.npz")

# Modules of the reductions that are fitted on frames, by their name in an output. Each has `fit` from
# features (n, *shape) and the output's number, and `save` and `load` between a fit and bytes.
FITTED: dict[str, ModuleType] = {"pca": bases, "palette": palette, "objects": objects}

# Largest numbers of a game's frames to fit on, which are in memory all at once.
GAME_FRAMES = 2048  # Half a gigabyte of features for a grid of 7 x 7 x 1280.
GAME_SCREENS = 1024  # 0.14 GB of gray screens.


def recipe(output: Output) -> str:
    """Return the part of a model's identity that stands for its reduction, before any fit.

    It is empty for a basis of one game, which only its bytes identify.
    """
    if output.reduction == "rp":
        return bases.random_recipe()
    if not output.reduction or output.game or output.of_one_game:
        return ""
    return bases.recipe(probe_frames.frames_digest())


def frames_needed(snapshot: Snapshot, output: Output, window: int = 1) -> int:
    """Return the number of frames, or windows of frames, that a fit takes."""
    if output.reduction not in FITTED or shipped(output) is not None:
        return 0
    if not output.game:
        return sum(len(part.frames) for part in probe_frames.load_frames())
    metas = snapshot.segments_with_frames(output.game)
    return min(_max_frames(output), sum(meta.inputs(window) for meta in metas))


def fit(encoder: Encoder, snapshot: Snapshot | None, output: Output, window: int) -> Reduction:
    """Fit a reduction on the features of frames, or return the shipped one.

    Args:
        encoder: Model without its reduction.
        snapshot: Snapshot of the store, for frames of a game; not needed if the output names none.
        output: Output that names the reduction, and the game to fit it on.
        window: Number of consecutive frames that the model sees.

    Raises:
        MissingError: If the store has no frames of the game.
        UsageError: If there are too few frames for the size of the reduction.
    """
    known = shipped(output)
    if known is not None:
        return known
    if output.game:
        assert snapshot is not None, "frames of a game are a store's"
        parts = game_inputs(snapshot, output.game, window, _max_frames(output))
    else:
        parts = [
            probe_frames.pairs_in_windows(part.frames, window)
            for part in probe_frames.load_frames()
        ]
    features = torch.cat([encoder.features(part) for part in parts])
    fitted: Reduction = FITTED[output.reduction].fit(features, output.numbers)
    return fitted


def shipped(output: Output) -> Reduction | None:
    """Return the reduction that comes with wsa for a game; None if there is none."""
    known = game_levels(output.game) if output.of_one_game else None
    if known is None:
        return None
    levels, classes = known
    if output.reduction == "palette":
        return palette.make(levels, output.numbers)
    return objects.make(levels, classes, output.numbers)


def game_levels(game: str) -> tuple[Levels, NDArray[np.uint8]] | None:
    """Load the shipped fit for a game of ALE: its levels, and its classes as `objects` numbers them.

    With it `palette` and `objects` need no frames in the store, and are the same for all users.
    `benchmarks/making/make_levels.py` made the file and says how. Changing one byte of it changes
    model keys. Returns None for a game that is not in the file.
    """
    with np.load(GAME_LEVELS, allow_pickle=False) as file:
        if f"{game}/levels" not in file:
            return None
        background, levels, classes = (
            file[f"{game}/{name}"] for name in ("background", "levels", "classes")
        )
    return Levels(background, levels), classes


def _max_frames(output: Output) -> int:
    return GAME_SCREENS if output.of_one_game else GAME_FRAMES


def game_inputs(snapshot: Snapshot, game: str, window: int, most: int) -> list[NDArray[np.uint8]]:
    """Read up to `most` inputs of a game, spread evenly over the store.

    Returns:
        Arrays (n, H, W, 3) uint8, or (n, window, H, W, 3) for a model with a window.

    Raises:
        MissingError: If the store has no frames of the game.
    """
    metas = snapshot.segments_with_frames(game)
    edges = np.cumsum([0, *(meta.inputs(window) for meta in metas)])
    if not edges[-1]:
        raise MissingError(
            "no-frames",
            f"{snapshot.backend.url} has no frames of {game} to fit a basis on. Collect some: "
            f"wsa collect --game {game}",
        )
    chosen = np.unique(np.linspace(0, edges[-1] - 1, most).round().astype(np.int64))
    parts: list[NDArray[np.uint8]] = []
    for meta, start, stop in zip(metas, edges, edges[1:], strict=False):
        indices = chosen[(chosen >= start) & (chosen < stop)] - start
        if len(indices):
            parts += read_segment_frames(snapshot, meta, rows=window > 1).inputs(window, indices)
    return parts
