"""Load the probe frames: eight real frames of every ALE game, which are shipped with wsa.

Bases that reduce a model's output are fitted on them, so that the embeddings of two labs agree
without any exchange. A model's probe vectors are its embeddings of a few of these frames.
`benchmarks/making/make_probe_frames.py` made the file and says how. Changing one byte of it changes
model keys.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsa.store.common import hashing

PATH = Path(__file__).with_name("probe_frames.npz")
PALETTE_SIZES = "colours"  # Number of colors of each game, as the shipped file names it.

PROBE_GAMES = (
    "Seaquest",
    "Pong",
    "Breakout",
    "MsPacman",
    "SpaceInvaders",
    "Qbert",
    "BeamRider",
    "Enduro",
)


@dataclasses.dataclass(frozen=True)
class GameFrames:
    """One game's part of the probe frames.

    Attributes:
        game: ALE game id.
        frames: Four pairs of frames, (8, H, W, 3) uint8 RGB; rows 2i and 2i + 1 are consecutive
            steps. Most screens are 210 x 160; some games have 214 to 250 rows.
    """

    game: str
    frames: NDArray[np.uint8]


def load_frames() -> list[GameFrames]:
    """Load the probe frames, sorted by game."""
    with np.load(PATH, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    palettes = np.split(arrays["palette"], np.cumsum(arrays[PALETTE_SIZES])[:-1])
    pixels = {height: iter(arrays[f"pixels_{height}"]) for height in np.unique(arrays["height"])}
    games = []
    for game, height, palette in zip(arrays["game"], arrays["height"], palettes, strict=True):
        # Each frame is stored as its XOR with the previous one.
        indices = np.bitwise_xor.accumulate(next(pixels[height]), axis=0)
        games.append(GameFrames(str(game), palette[indices]))
    return sorted(games, key=lambda part: part.game)


def probe_inputs(window: int = 1, game: str = "") -> NDArray[np.uint8]:
    """Return the inputs of which probe vectors are the embeddings.

    Args:
        window: Number of consecutive frames that the model sees.
        game: The one game that the model embeds; empty if it embeds any.

    Returns:
        Frames (16, 210, 160, 3) uint8 RGB: a pair of consecutive frames of each of `PROBE_GAMES`,
        so that an error can be compared with the change from one step to the next. If `game` is in
        the probe frames, its four pairs (8, H, W, 3). For a model with a window, windows
        (n, window, H, W, 3) from `pairs_in_windows`.
    """
    pairs = _game_frames(game) if game else None
    return pairs_in_windows((_single_frames() if pairs is None else pairs).copy(), window)


def pairs_in_windows(frames: NDArray[np.uint8], window: int) -> NDArray[np.uint8]:
    """Turn pairs of frames into windows, as if each pair began an episode.

    Args:
        frames: Frames (2n, H, W, 3); rows 2i and 2i + 1 are consecutive steps.
        window: Number of consecutive frames that the model sees.

    Returns:
        Windows (2n, window, H, W, 3): for frames a and b, [a ... a a] and [a ... a b]. If `window`
        is 1, `frames` itself.
    """
    if window == 1:
        return frames
    at = np.arange(len(frames))
    return frames[np.column_stack([*[at - at % 2] * (window - 1), at])]


@functools.cache  # Each model is probed when it is registered and each time it is opened.
def _single_frames() -> NDArray[np.uint8]:
    games = {part.game: part.frames for part in load_frames()}
    # At the third pair, play is under way.
    return np.concatenate([games[game][4:6] for game in PROBE_GAMES])


@functools.cache
def _game_frames(game: str) -> NDArray[np.uint8] | None:
    return next((part.frames for part in load_frames() if part.game == game), None)


def frames_digest() -> str:
    """Return the hex blake3-256 of the probe frames' file."""
    return hashing.checksum(PATH.read_bytes())
