"""Make `encode/registration/game_levels.npz`: background, levels, and classes of every ALE game.

    python -m benchmarks.making.make_levels

Every game is played in eight environments for 1,200 steps under the classic protocol. Four take a
random action in each step. The others repeat theirs for four steps on average, which gets farther.
Every eighth step is kept. The file is part of the identity of `palette` and `objects`: making it
with another emulator changes their model keys. It takes 23 minutes of CPU.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.making.npz import same_npz
from wsa.encode.inference.levels import fit_levels
from wsa.encode.inference.objects import fit_classes
from wsa.encode.inference.preprocess import shrink
from wsa.encode.models.screen import SEES
from wsa.encode.registration.fit_reduction import GAME_LEVELS as PATH
from wsa.learn.envs import atari as games
from wsa.store.common import hashing

ENVS, STEPS, EVERY, SEED = 8, 1200, 8, 30_001
KEEP = 0.75  # Probability that the second half of the environments repeats an action.


def screens(game: str) -> NDArray[np.uint8]:
    """Play one game; return (n, 210, 160) uint8 gray levels, as `palette` and `objects` see it."""
    stated = games.protocol(game, "classic")
    generator = np.random.default_rng(SEED)
    env = games.make_env(game, stated, ENVS)
    env.reset(seed=SEED)
    kept = []
    actions = generator.integers(len(stated.actions), size=ENVS)
    for step in range(STEPS):
        stays = (np.arange(ENVS) >= ENVS // 2) & (generator.random(ENVS) < KEEP)
        actions = np.where(stays, actions, generator.integers(len(stated.actions), size=ENVS))
        observations, *_ = env.step(actions)
        if step % EVERY == 0:
            frames = torch.from_numpy(games.rgb_frames(observations).copy())
            kept.append(shrink(frames, SEES.preprocessing())[:, 0].numpy())
    env.close()
    return np.concatenate(kept)


def fit(game: str) -> dict[str, NDArray[np.uint8]]:
    """Fit one game's arrays; return them by their names in the file."""
    torch.set_num_threads(1)
    frames = screens(game)
    levels = fit_levels(frames)
    arrays = {**levels.arrays, "classes": fit_classes(frames, levels)}
    return {f"{game}/{name}": array for name, array in arrays.items()}


if __name__ == "__main__":
    arrays: dict[str, NDArray[np.uint8]] = {}
    with ProcessPoolExecutor(2) as pool:
        for game, fitted in zip(games.games(), pool.map(fit, games.games()), strict=True):
            arrays |= fitted
            levels, classes = (len(fitted[f"{game}/{name}"]) for name in ("levels", "classes"))
            print(f"{game}: {levels} levels, {classes} classes", flush=True)
    data = same_npz(arrays)
    PATH.write_bytes(data)
    print(f"{PATH}: {len(data)} bytes, {hashing.checksum(data)}", file=sys.stderr)
