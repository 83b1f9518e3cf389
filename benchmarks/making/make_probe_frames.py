"""Make `encode/registration/probe_frames.npz`, the same bytes each time.

    python -m benchmarks.making.make_probe_frames

It holds eight real frames of every ALE game. Every game is played with random actions under the
classic protocol. From its first 400 steps, four pairs of consecutive frames are kept, spread over
time, each frame different from the others. The file is part of the identity of every model whose
output is reduced by a basis fitted on it: making it with another emulator changes their model keys.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.making.npz import same_npz
from wsa.encode.registration.probe_frames import PALETTE_SIZES, PATH
from wsa.learn.envs import atari as games
from wsa.store.common import hashing

STEPS = 400
PAIRS = 4
SEED = 20_001


def play(game: str) -> NDArray[np.uint8]:
    """Play one game and keep four pairs of frames.

    Returns:
        Frames (8, H, W, 3), uint8; rows 2i and 2i + 1 come from consecutive steps.
    """
    stated = games.protocol(game, "classic")
    generator = np.random.default_rng(SEED)
    env = games.make_env(game, stated, 1)
    observations, _ = env.reset(seed=SEED)
    frames = [games.rgb_frames(observations)[0].copy()]
    joined = []  # joined[t]: whether frames t and t + 1 are from one episode.
    for _ in range(STEPS):
        action = generator.integers(len(stated.actions), size=1)
        observations, _, terminated, truncated, _ = env.step(action)
        frames.append(games.rgb_frames(observations)[0].copy())
        joined.append(not (terminated | truncated)[0])
    env.close()
    firsts = choose([hashing.frame_digest(frame) for frame in frames], joined)
    return np.stack([frames[t + i] for t in firsts for i in (0, 1)])


def choose(digests: list[bytes], joined: list[bool]) -> list[int]:
    """First steps of the pairs to keep, in order.

    If a game shows too few different frames, as on a title screen, frames repeat.
    """
    chosen: list[int] = []
    for i in range(PAIRS):
        target = (i + 0.5) * STEPS / PAIRS
        shown = {digests[t + j] for t in chosen for j in (0, 1)}

        def worth(t: int, shown: set[bytes] = shown, target: float = target) -> tuple[float, ...]:
            new = len({digests[t], digests[t + 1]} - shown)
            return -new, t in chosen, abs(t - target)

        chosen.append(min((t for t in range(STEPS) if joined[t]), key=worth))
    return sorted(chosen)


def pack(played: dict[str, NDArray[np.uint8]]) -> bytes:
    """Pack each game's frames in an npz file for `probe_frames.load_frames`."""
    members: dict[str, NDArray[np.generic]] = {}
    palettes = []
    pixels: dict[int, list[NDArray[np.uint8]]] = {}
    for frames in played.values():
        red, green, blue = np.moveaxis(frames.astype(np.int32), -1, 0)
        colors, indices = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
        # No game has more than 123; more than 256 would need another format.
        assert len(colors) <= 256, f"eight frames show {len(colors)} colors"
        palettes.append(np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1))
        indices = indices.astype(np.uint8)
        # Frames of a game are similar, so differences compress better.
        indices[1:] ^= indices[:-1].copy()
        pixels.setdefault(frames.shape[1], []).append(indices)
    members["game"] = np.array(list(played))
    members["height"] = np.array([frames.shape[1] for frames in played.values()], np.int32)
    members[PALETTE_SIZES] = np.array([len(colors) for colors in palettes], np.int32)
    members["palette"] = np.concatenate(palettes).astype(np.uint8)
    for height in sorted(pixels):
        members[f"pixels_{height}"] = np.stack(pixels[height])
    return same_npz(members)


if __name__ == "__main__":
    data = pack({game: play(game) for game in games.games()})
    Path(PATH).write_bytes(data)
    print(f"{PATH}: {len(data)} bytes, {hashing.checksum(data)}")
