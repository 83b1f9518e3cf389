"""Train one set of the paper's own encoders for ten games, starting from only the emulator.

    python -m benchmarks.making.make_own FOLDER [--jobs 4] [--scale 10]

1. A random policy plays each of the ten games of the field's published scores.
2. PPO over `palette` trains on each game for a while, and then plays equally many steps.
3. `wsa pretrain` trains each encoder on both kinds of play, frame by frame, one set for all games.
4. The weights, in half precision, and one manifest are written to FOLDER/weights.

Every step is a wsa command that continues where it stopped, and so does this script. `--scale 1`
makes a set like the one that ships with wsa (docs/howto/pretrain.md); use a GPU and `--jobs 4`.
Without a GPU it takes days.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

GAMES = (
    "Pong", "Breakout", "BeamRider", "Seaquest", "SpaceInvaders",
    "Qbert", "MsPacman", "RoadRunner", "Asteroids", "Enduro",
)  # fmt: skip
STEPS = 8_000  # For each game and policy.
PLAYED = 20_000  # Steps that a policy trains on.
# Gradient steps, batch size, learning rate, and precision on a GPU; the longest first. Batch size
# and rate of the masks are larger than their authors', which would leave a GPU idle.
TRAININGS = {
    "transporter": (21_400, 64, 1e-3, "bf16"),
    "mae": (700, 64, 1e-3, "fp32"),
    "segmentation": (11_188, 128, 3e-4, "tf32"),
    "ae": (35_000, 64, 1e-3, "tf32"),
}


def wsa(*arguments: object) -> None:
    """Run a command to its end, in a separate process."""
    print("wsa", *arguments, flush=True)
    command = [sys.executable, "-m", "wsa.cli", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def play(folder: Path, scale: float, game: str) -> None:
    """Collect frames of a random and of a trained policy."""
    steps = ("--steps", STEPS, "--num-envs", 8)
    run = folder / "policies" / game
    wsa("collect", "--game", game, *steps)
    # Small batches and a high learning rate, because training is short.
    wsa(
        *("learn", "--online", "--algo", "ppo", "--models", "palette"),
        *("--game", game, "--total-timesteps", round(scale * PLAYED), "--run-dir", run),
        *("--num-steps", 64, "--learning-rate", 5e-4),
    )
    wsa("collect", "--game", game, *steps, "--policy", run)


def train(folder: Path, scale: float, encoder: str) -> None:
    """Train one encoder on all frames."""
    steps, batch_size, rate, precision = TRAININGS[encoder]
    steps = round(scale * steps)
    if precision != "fp32" and not torch.cuda.is_available():
        precision = "bf16"
    wsa(
        *("pretrain", "--encoder", encoder, "--games", ",".join(GAMES), "--half"),
        *("--steps", steps, "--batch-size", batch_size, "--learning-rate", rate),
        *("--precision", precision, "--held-out", 0.05, "--patience", 0),
        *("--validate-frequency", max(1, steps // 8)),
        *("--run-dir", folder / "encoders", "--memory-gb", 6),
    )


def gather(folder: Path) -> None:
    """Copy the trained weights and write their manifest."""
    place = folder / "weights"
    place.mkdir(exist_ok=True)
    manifests = {
        e: json.loads((folder / "encoders" / e / "manifest.json").read_text()) for e in TRAININGS
    }
    files = {}
    for encoder, manifest in manifests.items():
        for alias, facts in manifest["files"].items():
            shutil.copy(
                folder / "encoders" / encoder / f"{alias}.safetensors",
                place / f"{alias}.safetensors",
            )
            files[alias] = facts
    left_out = ("files", "games", "command")  # A command contains paths of one machine.
    manifest_of_all = {
        "files": files,
        "games": manifests["ae"]["games"],
        "trainings": {
            e: {k: v for k, v in m.items() if k not in left_out} for e, m in manifests.items()
        },
    }
    for training in manifest_of_all["trainings"].values():
        training["training"].pop("store")
    (place / "manifest.json").write_text(json.dumps(manifest_of_all, indent=1) + "\n")


def on_all(jobs: int, do: Callable[[str], None], what: Sequence[str]) -> None:
    """Apply a function to each item, several at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(do, what))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="times as many steps")
    o = parser.parse_args()
    folder = o.folder.absolute()
    os.environ |= {"WSA_STORE": str(folder / "store"), "OMP_NUM_THREADS": "1"}
    on_all(o.jobs, partial(play, folder, o.scale), GAMES)
    on_all(o.jobs, partial(train, folder, o.scale), list(TRAININGS))
    gather(folder)


if __name__ == "__main__":
    main()
