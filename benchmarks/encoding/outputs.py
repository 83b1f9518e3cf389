"""Which output of a model carries the game: linear probes from one frame's embedding to the RAM.

    python -m benchmarks.encoding.outputs FOLDER [MODEL ...]        default: lite0 lite1

Each of six games is played with random actions: 1,500 frames of five seeds for training, and 600 of
two others for testing. A model's whole feature map is computed once per frame; every output is
derived from it. A ridge regression, its penalty chosen on one of the five seeds, predicts each RAM
variable from an output. The score of a game is the mean R2 of its variables, with negative values
counted as 0. FOLDER keeps intermediate results, so the command can be stopped and repeated.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import ale_py
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import r2_score
from torch import Tensor, nn

from benchmarks.kit import markdown
from wsa.encode.inference import reduction as bases
from wsa.encode.inference.encoder import Encoder
from wsa.encode.inference.preprocess import _pillow
from wsa.encode.models.networks import build
from wsa.encode.models.registry import parse_request
from wsa.encode.registration import probe_frames
from wsa.encode.registration.identity import identify
from wsa.learn.envs import atari as games
from wsa.learn.probe import linear, ram_labels
from wsa.learn.probe.linear import Split
from wsa.store.objects.model_spec import Output

# Variables of `wsa.learn.probe.ram_labels` with which the tables in docs/ were measured.
VARIABLES = {
    "Pong": ("ball x", "ball y", "player y", "enemy y", "enemy score"),
    "Breakout": ("ball x", "ball y", "player x", "blocks hit"),
    "Seaquest": (
        *("player x", "player y", "oxygen", "missile x"),
        *(f"enemy {i} x" for i in range(1, 5)),
    ),
    "MsPacman": (
        "dots eaten",
        *(f"{who} {axis}" for who in ("player", "sue", "inky", "pinky", "blinky") for axis in "xy"),
    ),
    "SpaceInvaders": ("player x", "invaders left", "invaders x", "invaders y", "missile y"),
    "Qbert": ("player x", "player y", "column", "red column", "green column"),
}
SEEDS, TEST_SEEDS = 7, 2
FRAMES, STEPS_BETWEEN = 300, 3  # Frames per seed, and steps from one to the next.
SKIP, NOOPS = 4, 30
SIDE = 7
SIZES = (128, 256, 512, 1024)
Map = Callable[[Tensor], Tensor]  # (n, places, C) to (n, K)


def play(game: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Frames (SEEDS x FRAMES, H, W, 3) as wsa collects them, and their RAM (SEEDS x FRAMES, 128)."""
    frames, memory = [], []
    for seed in range(SEEDS):
        games.quiet_emulator()
        ale = ale_py.ALEInterface()
        ale.setInt("random_seed", 100 + seed)
        ale.setFloat("repeat_action_probability", 0.0)
        ale.loadROM(str(games.rom(game)))
        generator = np.random.default_rng(seed)
        actions = ale.getMinimalActionSet()
        for step in range(FRAMES * STEPS_BETWEEN):
            if step == 0 or ale.game_over():
                ale.reset_game()
                for _ in range(generator.integers(1, NOOPS + 1)):
                    ale.act(actions[0])
            action = actions[generator.integers(len(actions))]
            for _ in range(SKIP - 1):
                ale.act(action)
            before = ale.getScreenRGB()
            ale.act(action)
            if step % STEPS_BETWEEN == STEPS_BETWEEN - 1:
                frames.append(np.maximum(before, ale.getScreenRGB()))
                memory.append(ale.getRAM().copy())
    return np.stack(frames), np.stack(memory)


def reductions(shared: Tensor) -> dict[str, list[Map]]:
    """Reductions of a grid to each of `SIZES`, fitted on the probe frames' feature maps if at all."""
    shared = grid(shared)
    full_basis = bases.fit(shared, len(shared) - 1)
    return {
        "PCA of the probe frames": [lambda own, k=k: full_basis(own)[:, :k] for k in SIZES],
        "PCA of the probe frames' channels": [channels(shared, round(k / SIDE**2)) for k in SIZES],
        "separable PCA of the probe frames": [separable(shared, k) for k in SIZES],
        "random projection": [projection(shared[0].numel(), k) for k in SIZES],
    }


def outputs(own: Tensor, fitted: dict[str, list[Map]], train: int) -> Iterator[tuple[str, Tensor]]:
    """Yield name and rows (n, K) of every output.

    Args:
        own: The game's feature maps, shape (n, H, W, C), float32, training frames first.
        fitted: From `reductions`.
        train: Number of training frames.
    """
    yield "pooled", own.mean(dim=(1, 2))
    own = grid(own)
    yield f"grid:{SIDE}", own.flatten(1)
    reduced = bases.fit(own[:train], SIZES[-1])(own)
    for numbers in SIZES:
        yield "PCA of the game", reduced[:, :numbers]
    for name, maps in fitted.items():
        for reduce in maps:
            yield name, reduce(own)


def grid(maps: Tensor) -> Tensor:
    """Pool (n, H, W, C) to (n, places, C)."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(maps.permute(0, 3, 1, 2), SIDE)
    return pooled.flatten(2).transpose(1, 2).contiguous()


def channels(shared: Tensor, count: int) -> Map:
    """First step of `wsa.encode.inference.reduction` alone: the same channels at every place."""
    mean = shared.mean(dim=(0, 1))
    basis = bases._leading((shared - mean).flatten(0, 1), count)
    return lambda own: ((own - mean) @ basis).flatten(1)


def separable(shared: Tensor, numbers: int) -> Map:
    """Products of principal channels and principal spatial patterns, those of largest variance."""
    mean = shared.mean(dim=0)
    centered = (shared - mean).double()
    by_channel = torch.linalg.eigh(torch.einsum("npc,npd->cd", centered, centered))
    by_place = torch.linalg.eigh(torch.einsum("npc,nqc->pq", centered, centered))
    weight = by_place[0].clamp_min(0)[:, None] * by_channel[0].clamp_min(0)[None]
    chosen = weight.flatten().topk(numbers).indices
    places, kinds = by_place[1].float(), by_channel[1].float()
    return lambda own: (places.T @ ((own - mean) @ kinds)).flatten(1)[:, chosen]


def projection(size: int, numbers: int) -> Map:
    """`wsa.encode.inference.reduction.Projection`, for many rows at once."""
    return lambda own: own.flatten(1) @ torch.from_numpy(bases.signs(size, numbers)).float()


def probe(rows: Tensor, targets: NDArray[np.float64], train: int) -> NDArray[np.float64]:
    """R2 of each variable on the frames after `train`, by ridge regression; NaN if it is constant.

    Args:
        rows: Inputs, shape (n, K).
        targets: Variables, shape (n, V).
        train: Number of training frames; their last seed chooses the penalty.
    """
    split = Split(
        np.arange(train - FRAMES), np.arange(train - FRAMES, train), np.arange(train, len(rows))
    )
    axes = linear.principal(rows.numpy(), max_axes=linear.AXES_SAMPLE)
    truth, predicted = targets[split.test], linear.ridge(axes, targets, split)
    r2 = r2_score(truth, predicted, multioutput="raw_values")
    return np.where(np.ptp(truth, axis=0) > 0, r2, np.nan)


def maps(folder: Path, model: str, name: str, parts: Sequence[NDArray[np.uint8]]) -> Tensor:
    """A model's whole feature maps, shape (n, H, W, C), saved in half precision."""
    file = folder / f"{model}-{name}.npy"
    if not file.exists():
        request = parse_request(model, {}, "map")
        module = build(request)
        encoder = Encoder(module, identify(module, request).preprocessing, Output("map"))
        np.save(file, np.concatenate([encoder(part).astype(np.float16) for part in parts]))
    return torch.from_numpy(np.load(file)).float()


def measure(folder: Path, model: str, game: str) -> None:
    """Write every output's R2 for one game and model, unless the file exists."""
    result = folder / f"{model}-{game}.json"
    if result.exists():
        return
    with np.load(played(folder, game)) as file:
        frames, memory = file["frames"], file["memory"]
    train = (SEEDS - TEST_SEEDS) * FRAMES
    names = list(VARIABLES[game])
    values = ram_labels.read(game, memory)
    targets = np.stack([values[name] for name in names], axis=1).astype(np.float64)
    if model == "pixels":
        gray = [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (32, 42)) for f in frames]
        rows = torch.tensor(np.stack(gray)).flatten(1).float() / 255
        named_rows: Iterable[tuple[str, Tensor]] = [("gray pixels 42x32", rows)]
    else:
        game_maps = maps(folder, model, game, np.split(frames, SEEDS))
        named_rows = outputs(game_maps, probe_reductions(folder, model), train)
    scores = []
    for name, rows in named_rows:
        r2 = dict(zip(names, probe(rows, targets, train), strict=True))
        scores.append({"output": name, "numbers": rows.shape[1], "r2": r2})
    result.write_text(json.dumps(scores, default=float))
    print(result, flush=True)


@functools.cache
def probe_reductions(folder: Path, model: str) -> dict[str, list[Map]]:
    return reductions(
        maps(folder, model, "probe-frames", [part.frames for part in probe_frames.load_frames()])
    )


def played(folder: Path, game: str) -> Path:
    """The file with a game's frames; made if it is missing."""
    file = folder / f"{game}.npz"
    if not file.exists():
        frames, memory = play(game)
        np.savez_compressed(file, frames=frames, memory=memory)
    return file


def show(folder: Path, models: list[str]) -> None:
    """Print the mean R2 of every output: by game for the first model, and over games for all."""
    results = {
        model: [json.loads((folder / f"{model}-{game}.json").read_text()) for game in VARIABLES]
        for model in models
    }
    rows = []
    for i, output in enumerate(results[models[0]][0]):
        scores = {model: [mean(game[i]["r2"]) for game in results[model]] for model in models}
        values = [*scores[models[0]], *(float(np.mean(by_game)) for by_game in scores.values())]
        rows.append([output["output"], output["numbers"], *(f"{value:.2f}" for value in values)])
    print()
    markdown(["output", "numbers", *VARIABLES, *(f"mean, {model}" for model in models)], rows)


def mean(r2: dict[str, float]) -> float:
    """Mean of R2, clipped at 0, over the variables that changed in the test frames."""
    return float(np.nanmean(np.maximum(list(r2.values()), 0)))


def costs() -> None:
    """Print the time per frame, on one core, before and after a network."""
    feature_map = torch.rand(1, SIDE, SIDE, 1280)
    screen = torch.from_numpy(probe_frames.probe_inputs()[:1])
    sizes = [(1280,), (1280, bases.CHANNELS), (6272,), (6272, 512)]
    fitted = bases.Basis(*(torch.rand(size) for size in sizes))
    random = bases.Projection(512)
    shape = [224, 224]
    pixels = screen.permute(0, 3, 1, 2)
    torch_resize = functools.partial(nn.functional.interpolate, mode="bicubic", antialias=True)
    contenders = {
        "PCA in two steps, to 512": lambda: fitted(feature_map),
        "random projection, to 512": lambda: random(feature_map),
        "Pillow's resize, to 224 x 224": lambda: _pillow(pixels, shape, "bicubic"),
        "PyTorch's resize of uint8": lambda: torch_resize(pixels, shape),
    }
    rows = []
    for name, work in contenders.items():
        times = []
        for _ in range(200):
            started = time.perf_counter()
            with torch.inference_mode():
                work()
            times.append(time.perf_counter() - started)
        rows.append([name, f"{1000 * statistics.median(times):.2f}"])
    print()
    markdown(["", "ms per frame (median of 200)"], rows)


def main(folder: Path, models: list[str]) -> None:
    torch.set_num_threads(1)
    for model in models:
        for game in VARIABLES:
            measure(folder, model, game)
    for group in (["pixels"], [model for model in models if model != "pixels"]):
        show(folder, group)
    costs()


if __name__ == "__main__":
    main(Path(sys.argv[1]), ["pixels", *(sys.argv[2:] or ["lite0", "lite1"])])
