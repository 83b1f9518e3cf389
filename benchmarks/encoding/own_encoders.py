"""Joint cost of the paper's own encoders, and reconstruction error of a trained autoencoder.

    python -m benchmarks.encoding.own_encoders [RUN [GAME ...]]

All five (`ae`, `sr`, `oke`, `okk`, `vos`; untrained, because weights do not affect time) encode a
game in one run, which reads a segment and converts and shrinks each screen once, and in five runs
one after another. Both are timed in turn, in this process, on one thread, without registering the
models.

Then `ae`, `sr`, and `vos` embed eight games as they are played, one frame of each at a time. Each
screen is shrunk once for all windows that contain it, or once for each of them.

RUN is the folder of a `wsa pretrain` that trained `ae`. If it is given, the script compares its
error with that of the mean frame and of an untrained autoencoder: on the held-out episodes of the
training games, and on the unseen GAMEs (by default three), 400 steps of each.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.kit import forget, interleave, markdown, store_of, table
from wsa.encode.inference.encoder import Encoder
from wsa.encode.jobs import tasks
from wsa.encode.jobs.plan import Plan, make_plan
from wsa.encode.live.frame_history import FrameInputs, FrameWindow
from wsa.encode.live.shrunk_frames import ShrunkFrames
from wsa.encode.models.paper import catalog
from wsa.encode.models.registry import parse_request
from wsa.encode.registration import register
from wsa.learn.pretrain import data, trainer
from wsa.learn.pretrain.autoencoder import Autoencoder
from wsa.learn.pretrain.trainer import Training
from wsa.learn.training import checkpoint
from wsa.store.backends.base import Backend
from wsa.store.common import hashing
from wsa.store.format import records
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

GAME, STEPS, SEGMENT, ROUNDS = "Seaquest", 512, 128, 5
LIVE_STEPS = 40
OTHERS, UNSEEN_STEPS = ("Boxing", "Freeway", "Asteroids", "Pong", "Seaquest", "Qbert"), 400


def cost() -> None:
    with store_of(GAME, STEPS, SEGMENT) as (backend, _):
        requests = [parse_request(f"{alias}:random", {}) for alias in catalog.NETWORKS]
        registered = [
            register.register(take_snapshot(backend), request, 0.1, engine="torch")
            for request in requests
        ]
        keys = [one.spec.key for one in registered]
        settings = tasks.TaskSettings(
            backend.url, dict.fromkeys(keys, "random"), dict.fromkeys(keys, "torch"), "cpu", 1
        )
        snapshot = take_snapshot(backend)
        together = make_plan(snapshot, keys, [GAME])
        apart = {key: make_plan(snapshot, [key], [GAME]) for key in keys}
        contenders = {"five runs": lambda: spent(backend, settings, list(apart.values()))}
        contenders["one run"] = lambda: spent(backend, settings, [together])
        seconds = interleave(contenders, ROUNDS)
        print(f"{GAME}, {STEPS} steps, {together.passes} passes\n")
        table("s", seconds, "five runs")
        print()
        alone = interleave(
            {
                alias: lambda plan=plan: plan.passes / spent(backend, settings, [plan])
                for alias, plan in zip(catalog.NETWORKS, apart.values(), strict=True)
            },
            rounds=1,
        )
        markdown(["alone", "passes/s"], [[alias, f"{r[0]:,.0f}"] for alias, r in alone.items()])


def live() -> None:
    """Run windows of the last screens through `ae`, `sr`, and `vos`, as `LiveEncoder` does."""
    requests = [parse_request(f"{alias}:random", {}) for alias in ("ae", "sr", "vos")]
    with store_of(GAME, 8 * LIVE_STEPS, LIVE_STEPS) as (backend, _):
        registered = [
            register.register(take_snapshot(backend), r, 0.1, engine="torch") for r in requests
        ]
        snapshot = take_snapshot(backend)
        encoders = register.open_models(
            snapshot, [one.spec.key for one in registered], engine="torch"
        )
        windows = [one.spec.identity.window for one in registered]
        segments = snapshot.segments(GAME)[:8]
        played = np.stack([snapshot.read_frames(m)[:LIVE_STEPS] for m in segments], axis=1)

    def inputs_of(shown: NDArray[np.uint8]) -> FrameInputs:
        windows = [tuple(np.ascontiguousarray(frame) for frame in window) for window in shown]
        return FrameInputs([FrameWindow(w, tuple(map(hashing.frame_digest, w))) for w in windows])

    def play(embed: Callable[[Encoder, FrameInputs], object]) -> float:
        started = time.perf_counter()
        for at in range(3, len(played)):
            for encoder, window in zip(encoders, windows, strict=True):
                shown = played[at - window + 1 : at + 1].swapaxes(0, 1)
                embed(encoder, inputs_of(shown))
        return (time.perf_counter() - started) / (8 * (len(played) - 3)) * 1000

    contenders = {
        "each window by itself": lambda: play(lambda e, shown: e(shown(range(len(shown.windows))))),
        "each screen once": lambda: play(ShrunkFrames(encoders, windows).embed),
    }
    table("ms per step", interleave(contenders, ROUNDS), "each window by itself")


def spent(backend: Backend, settings: tasks.TaskSettings, plans: list[Plan]) -> float:
    """Seconds that encoding takes, from the first segment to the last commit."""
    for plan in plans:
        forget(backend, plan)
    started = time.perf_counter()
    for plan in plans:
        for items in plan.by_segment():
            tasks.encode_segment(settings, items)
    return time.perf_counter() - started


def quality(folder: Path, others: list[str]) -> None:
    path = folder / "ae" / "config.json"
    training = records.read_json(path.read_bytes(), Training, str(path))
    trained, untrained = Autoencoder(), Autoencoder()
    newest = checkpoint.latest(folder / "ae" / "checkpoints")
    modules = {"network": Autoencoder(), "best": trained}
    optimizer = torch.optim.Adam(modules["network"].parameters(), fused=True)
    checkpoint.load(newest, modules, optimizer)
    held: dict[str, list[Tensor]] = {}
    examples = trainer.open_examples(training, take_snapshot(open_store(training.store)))
    for game, batch in examples.validation(64):
        held.setdefault(game, []).append(batch)
    rows = [[game, "episodes", *errors(held[game], trained, untrained)] for game in held]
    unseen = [game for game in others if game not in held]
    for game in unseen:
        rows.append([game, "game", *errors(list(screens(game)), trained, untrained)])
    columns = ["game", "unseen", "trained", "untrained", "mean frame", "trained / mean frame"]
    markdown(columns, rows)


def screens(game: str) -> Iterator[Tensor]:
    """Distinct frames of a game as the autoencoder sees them, shape (n, 1, 84, 84), uint8."""
    with store_of(game, UNSEEN_STEPS, UNSEEN_STEPS) as (backend, _):
        snapshot = take_snapshot(backend)
        for meta in snapshot.segments(game):
            levels = data.levels(snapshot.read_frames(meta), Autoencoder.training_input)
            yield torch.from_numpy(levels).unsqueeze(1)


def errors(parts: list[Tensor], *networks: Autoencoder) -> list[str]:
    """Mean squared error of each network and of the mean frame, times 1000; and the ratio."""
    examples = data.scale(torch.cat(parts), "cpu")
    with torch.inference_mode():
        losses = [
            float(np.mean([float((network(p) - p).square().mean()) for p in examples.split(64)]))
            for network in networks
        ]
    mean = float((examples - examples.mean(dim=0)).square().mean())
    return [*(f"{1000 * error:.2f}" for error in (*losses, mean)), f"{losses[0] / mean:.2f}"]


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    cost()
    print()
    live()
    if arguments:
        print()
        quality(Path(arguments[0]), arguments[1:] or list(OTHERS[:3]))


if __name__ == "__main__":
    main(sys.argv[1:])
