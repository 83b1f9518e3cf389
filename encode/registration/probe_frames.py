"""The strip: eight real frames of every ALE game, shipped with wsa and the same for everybody.

Bases that reduce a model's output are fitted on it, so that two labs' embeddings agree without
having met, and a model's probe vectors are its embeddings of a few of these frames.
`benchmarks/make_strip.py` made the file and says how. Changing a byte of it changes model keys.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsa.store.common import hashing

PATH = Path(__file__).with_name("probe_frames.npz")

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
    """One game's part of the strip.

    Attributes:
        game: ALE game id.
        frames: (8, H, W, 3) uint8 RGB, four pairs: rows 2i and 2i + 1 are what two consecutive
            steps showed. Most screens are 210 x 160; some games have 214 to 250 rows.
    """

    game: str
    frames: NDArray[np.uint8]


def load_frames() -> list[GameFrames]:
    """The whole strip, sorted by game."""
    with np.load(PATH, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    palettes = np.split(arrays["palette"], np.cumsum(arrays["colours"])[:-1])
    pixels = {height: iter(arrays[f"pixels_{height}"]) for height in np.unique(arrays["height"])}
    games = []
    for game, height, palette in zip(arrays["game"], arrays["height"], palettes, strict=True):
        # Each frame is stored as its difference from the one before.
        indices = np.bitwise_xor.accumulate(next(pixels[height]), axis=0)
        games.append(GameFrames(str(game), palette[indices]))
    return sorted(games, key=lambda part: part.game)


def probe_inputs(window: int = 1, game: str = "") -> NDArray[np.uint8]:
    """The frames that probe vectors are computed from.

    Args:
        window: Consecutive frames that the model looks at.
        game: The only game that the model embeds, if there is one.

    Returns:
        (16, 210, 160, 3) uint8: for each of `PROBE_GAMES` a pair of consecutive frames, so that an
        error can be compared with what changes from one step to the next; of one game that is in
        the strip, its four pairs (8, H, W, 3). For a model with a window (n, window, H, W, 3), as
        `pairs_in_windows` makes them.
    """
    own = _game_frames(game) if game else None
    return pairs_in_windows((_single_frames() if own is None else own).copy(), window)


def pairs_in_windows(frames: NDArray[np.uint8], window: int) -> NDArray[np.uint8]:
    """What a model with a window sees of pairs of frames, as if each pair began an episode.

    Args:
        frames: (2n, H, W, 3), rows 2i and 2i + 1 being of consecutive steps.
        window: Consecutive frames that the model looks at.

    Returns:
        (2n, window, H, W, 3): of frames a and b the windows [a ... a a] and [a ... a b]; `frames`
        where `window` is 1.
    """
    if window == 1:
        return frames
    at = np.arange(len(frames))
    return frames[np.column_stack([*[at - at % 2] * (window - 1), at])]


@functools.cache  # Each model is probed when it is registered and whenever it is opened.
def _single_frames() -> NDArray[np.uint8]:
    games = {part.game: part.frames for part in load_frames()}
    # The third pair is of a time when the game is under way.
    return np.concatenate([games[game][4:6] for game in PROBE_GAMES])


@functools.cache
def _game_frames(game: str) -> NDArray[np.uint8] | None:
    return next((part.frames for part in load_frames() if part.game == game), None)


def frames_digest() -> str:
    """Hex blake3-256 of the strip's file."""
    return hashing.checksum(PATH.read_bytes())
