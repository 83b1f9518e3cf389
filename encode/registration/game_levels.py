"""Load the shipped fits for the games of ALE: background, gray levels and classes of things.

For these games `palette` and `objects` need no frames in the store, and are the same for all users.
`benchmarks/making/make_levels.py` made the file and says how. Changing one byte of it changes model
keys.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsa.encode.inference.levels import Levels

PATH = Path(__file__).with_name("game_levels.npz")


def load(game: str) -> tuple[Levels, NDArray[np.uint8]] | None:
    """Load a game's levels, and its classes as `wsa.encode.inference.objects` numbers them.

    Returns:
        Levels and classes; None for a game that is not in the file.
    """
    with np.load(PATH, allow_pickle=False) as file:
        if f"{game}/levels" not in file:
            return None
        background, levels, classes = (
            file[f"{game}/{name}"] for name in ("background", "levels", "classes")
        )
    return Levels(background, levels), classes
