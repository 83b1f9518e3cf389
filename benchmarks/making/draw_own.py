"""Draw what trained keypoints and masks point to, in six games, as a PNG.

    python -m benchmarks.making.draw_own PICTURE.png okk=okk.safetensors vos=vos.safetensors [GAME ...]

Either file may be missing. For two moments of each game, played at random: the frame, the keypoints
as spots over it, one color each, and the masks of moving objects.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import wsa
from wsa.encode.models.paper import catalog, load
from wsa.learn.pretrain import data, outputs, visualize
from wsa.learn.pretrain.segmentation import MovingObjects
from wsa.learn.pretrain.transporter import gaussians
from wsa.store.format.windows import episode_starts, window_rows
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

GAMES = ("Pong", "Breakout", "Seaquest", "MsPacman", "SpaceInvaders", "Qbert")
STEPS, MOMENTS, ENVS = 320, 2, 4


def examples(game: str) -> Tensor:
    """Two consecutive frames at each moment, shape (MOMENTS, 2, 84, 84), in [0, 1]."""
    with tempfile.TemporaryDirectory() as folder:
        wsa.collect(game, store=folder, steps=STEPS, num_envs=ENVS, segment_steps=STEPS // ENVS)
        snapshot = take_snapshot(open_store(folder))
        metas = snapshot.segments(game)[:MOMENTS]
        pairs = []
        for meta, share in zip(metas, np.linspace(0.4, 0.95, len(metas)), strict=True):
            rows = snapshot.read_rows(meta)
            at = np.array([int(share * meta.steps)])
            pair = window_rows(at, episode_starts(rows["is_first"])[at], 2)[0]
            frames = snapshot.read_frames(meta)[rows["frame"][pair]]
            pairs.append(data.levels(frames, MovingObjects.training_input))
    return data.scale(torch.from_numpy(np.stack(pairs)), "cpu")


def panels(pairs: Tensor, files: dict[str, str]) -> list[Tensor]:
    """Pictures to place side by side, each (MOMENTS, 3, 84, 84)."""
    newest = pairs[:, 1]
    pictures = [visualize.gray(newest)]
    networks = {
        alias: load.build(catalog.PREFIX + alias, f"file:{file}").module
        for alias, file in files.items()
    }
    with torch.inference_mode():
        if "okk" in networks:
            maps = networks["okk"](pairs[:, 1:])
            pictures.append(visualize.overlay(newest, gaussians(maps)))
        if "vos" in networks:
            network = networks["vos"]
            pictures.append(visualize.overlay(newest, network.masks(network(pairs))))
    return pictures


def main(picture: Path, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    files = dict(one.split("=", 1) for one in arguments if "=" in one)
    games = [one for one in arguments if "=" not in one] or list(GAMES)
    rows = [panels(examples(game), files) for game in games]
    columns = [torch.cat(column) for column in zip(*rows, strict=True)]
    outputs.write_panels(picture, columns)
    print(f"{picture}: {', '.join(games)}, {MOMENTS} moments each")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
