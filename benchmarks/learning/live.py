"""Cost of a step of online learning, part by part, beside whole runs of wsa and of PPO from pixels.

    python -m benchmarks.learning.live [--models palette,objects] [--steps 8192] [--rounds 3]
    python -m benchmarks.learning.live --simulate

The first rows are a plain loop that has one part of a step more in each row: the
emulator alone, + shrinking screens, + each network, + acting, + the update. Then comes the rate at
which these parts would run if they overlapped perfectly on the cores that this process may use.
Below are whole runs, each a separate command, without startup: each runs twice, once for longer,
and the difference is shown.

PPO from pixels is `--fusion nature`: CleanRL's network, hyperparameters, and loop (all environments
act together, then four epochs of four minibatches) on the same emulator. Unlike CleanRL, it keeps
pixels as bytes in the run's table and finds them by digest.

`--before` names the Python of another checkout, whose runs are measured in turn with these.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn

from benchmarks.kit import Cost, command, markdown
from wsa import cli
from wsa.encode.inference.cores import cores
from wsa.encode.inference.encoder import Encoder
from wsa.encode.live.live_encoder import LiveEncoder
from wsa.encode.registration.register import open_models
from wsa.learn.commands.learn import plan_run
from wsa.learn.configs.algorithms import PPOConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari as games
from wsa.learn.fusion.base import Inputs
from wsa.learn.networks.heads import ActorCritic
from wsa.learn.online import ppo
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import EnvRunner
from wsa.learn.online.session import Session
from wsa.learn.runs import train
from wsa.learn.runs.config import OnlineRun
from wsa.learn.runs.folder import begin
from wsa.store.objects.flat_map import side_by_side
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

CONFIG = PPOConfig()
SHORT = 2 * CONFIG.rollout_size  # Steps of the subtracted run: startup, and the first rollouts.
WINDOW = 4  # Frames in the largest window of a model.


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    models: str = "palette,objects"
    """Models of the run."""
    game: str = "Pong"
    """ALE game."""
    steps: int = 8192
    """Steps of a run beyond startup."""
    episodes: int = 0
    """Games of wsa eval beyond the first four; 0 for none. A game of Pong has 900 to 1,700
    steps."""
    rounds: int = 3
    """Number of times each command is run; medians are shown."""
    before: str = ""
    """Python of another checkout, to compare with."""
    simulate: bool = False
    """Instead, show how the rate grows with threads, up to 16, with models that only sleep."""


def cost(work: Callable[[], int], seconds: float = 1.5) -> Cost:
    """Measure the cost of repeated work; each call returns its number of steps."""
    work()
    wall, cpu, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        steps += work()
    return Cost(steps, time.perf_counter() - wall, time.process_time() - cpu)


def parts(o: Options, folder: Path) -> dict[str, Cost]:
    """Measure a plain loop that has one part of a step more each time."""
    flags = ["--online", "--algo=ppo", f"--game={o.game}", f"--models={o.models}"]
    flags += [f"--store={folder / 'store'}", f"--run-dir={folder / 'parts'}"]
    flags += [f"--total-timesteps={SHORT}"]
    _, config, where = plan_run(cli.parse("learn", flags), "cpu")
    assert isinstance(config, OnlineRun)
    encoders = open_models(take_snapshot(open_store(config.store)), config.inputs)
    update, network = captured_update(config, where, encoders)
    loop = PlainLoop(config)
    steps: dict[str, Callable[[], object]] = {
        "emulator alone": loop.emulate,
        "+ shrinking screens": partial(loop.shrink, encoders),
    }
    for key, window, encoder in zip(config.inputs, config.model_windows, encoders, strict=True):
        runs = encoder.engine.name if encoder.runs_network else "no network"
        name = f"+ {key.rpartition('-')[0]} ({runs})"
        steps[name] = partial(loop.embed, encoder, window)
    steps["+ acting"] = partial(loop.act, network)
    costs = {}
    for count, name in enumerate(steps, 1):
        costs[name] = cost(partial(loop.rollout, list(steps.values())[:count]))
    costs["+ update"] = cost(partial(loop.rollout, list(steps.values()), update))
    loop.env.close()
    return costs


class PlainLoop:
    """The parts of a step, one after the other; each uses what those before it have made."""

    def __init__(self, config: OnlineRun) -> None:
        self.config = config
        self.env = games.make_env(config.game, config.protocol, CONFIG.num_envs)
        self.env.reset(seed=1)
        self._generator = np.random.default_rng(0)
        self._frames: Any = None
        self._levels: dict[Any, deque[Any]] = {}

    def rollout(
        self, parts: Sequence[Callable[[], object]], update: Callable[[], object] | None = None
    ) -> int:
        """Take the steps of a rollout, then make its update, if any; return how many steps."""
        for _ in range(CONFIG.num_steps):
            for part in parts:
                part()
        if update:
            update()
        return CONFIG.rollout_size

    def emulate(self) -> None:
        """Play random actions."""
        actions = len(self.config.protocol.actions)
        played = self.env.step(self._generator.integers(actions, size=CONFIG.num_envs))
        self._frames = games.rgb_frames(played[0])

    def shrink(self, encoders: Sequence[Encoder]) -> None:
        """Resize the screens once for all models that share it."""
        for encoder in {encoder.alike: encoder for encoder in encoders}.values():
            levels = encoder.shrink(self._frames)
            # As at the start of an episode, the first screen stands for those before it.
            kept = self._levels.setdefault(encoder.alike, deque([levels] * WINDOW, WINDOW))
            kept.append(levels)

    def embed(self, encoder: Encoder, window: int) -> None:
        """Run a model on the newest window of each environment."""
        newest = list(self._levels[encoder.alike])[-window:]
        encoder.embed_shrunk(np.stack(newest, axis=1) if window > 1 else newest[0])

    def act(self, network: nn.Module) -> None:
        """Run the policy's network on random embeddings, and draw actions, in each group."""
        network.eval()
        width = sum(int(np.prod(shape)) for shape in self.config.shapes)
        for size in games.group_sizes(CONFIG.num_envs, self.config.env_groups):
            states = torch.randn(size, self.config.network.frame_stack, width).half()
            with torch.no_grad():
                logits = ppo.forward(network, states, torch.zeros(size), None, "cpu")[0]
                torch.multinomial(logits.softmax(dim=1), 1)


def captured_update(
    config: OnlineRun, folder: Path, encoders: list[Encoder]
) -> tuple[Callable[[], object], nn.Module]:
    """Train for a few rollouts; return the last update, which can be repeated, and its network."""
    begin(folder, config)
    real, given = ppo.update_policy, []

    def kept(*arguments: Any) -> Any:
        given[:] = arguments
        return real(*arguments)

    ppo.update_policy = kept
    try:
        train.train_playing(folder, config, encoders=encoders)
    finally:
        ppo.update_policy = real
    return partial(real, *given), given[2]


def learning(o: Options, python: str, folder: Path, number: int, *flags: str) -> Cost:
    """Measure a run of PPO without its startup."""
    how = ["learn", "--online", "--algo=ppo", f"--game={o.game}", *flags]
    spent = []
    for steps in (SHORT, SHORT + o.steps):
        where = folder / f"run-{number}-{steps}"
        _, *seconds = command(
            python, *how, f"--store={folder / 'store'}", f"--run-dir={where}",
            f"--total-timesteps={steps}",
        )  # fmt: skip
        spent.append(seconds)
    return Cost(o.steps, spent[1][0] - spent[0][0], spent[1][1] - spent[0][1])


def evaluating(o: Options, python: str, run: Path) -> Cost:
    """Measure `wsa eval` without its first four games; steps are those of the run's own games."""
    spent = []
    for episodes in (4, 4 + o.episodes):
        result, *cost = command(python, "eval", run, f"--episodes={episodes}")
        spent.append((result["frames"], *cost))
    return Cost(*(late - early for early, late in zip(*spent, strict=True)))


class Sleeping:
    """A model that takes 20 ms per frame but no core: longer than two cores play and act."""

    alike, in_parts, waits = None, True, False

    def __call__(self, frames: Any) -> Any:
        """Map (n, H, W, 3) to (n, 8)."""
        time.sleep(0.02 * len(frames))
        return frames.reshape(len(frames), -1)[:, :8].astype(np.float32)


def simulated(o: Options, folder: Path, threads: int) -> float:
    """Steps per second of rollouts in 64 environments, embedded by two sleeping models."""
    stated = games.protocol(o.game, "classic")
    config = PPOConfig(num_envs=64, num_steps=8, total_timesteps=1024)
    keys, shapes = ("one", "two"), ((8,), (8,))
    places = side_by_side(shapes)
    nothing: Any = SimpleNamespace(
        models=keys, windows=(1, 1), width=16, window_width=0, columns=places, places=places,
        embeddings=np.empty((0, 16), np.float16), digests=np.empty((0, 16), np.uint8),
    )  # fmt: skip
    models: Any = [Sleeping(), Sleeping()]
    table = Table(folder, LiveEncoder(nothing, models, 0, threads=threads))
    envs = [games.make_env(o.game, stated, n) for n in games.group_sizes(config.num_envs, 2)]
    runner = EnvRunner(envs, table, 1, seed=threads)
    session = Session(runner, keys, places, unsettled=())
    network = ActorCritic(
        Inputs(((1, 8), (1, 8))), len(stated.actions), NetworkConfig(frame_stack=1)
    )
    runner.begin()
    table.flush()
    silent: Any = SimpleNamespace(write=lambda *_: None)
    began = time.perf_counter()
    ppo.collect_rollout(config, session, network, None, "cpu", silent)
    rate = runner.steps / (time.perf_counter() - began)
    for env in envs:
        env.close()
    return rate


def simulate(o: Options) -> None:
    """Print the rate by number of threads, relative to one thread."""
    with tempfile.TemporaryDirectory() as name:
        rates = {n: simulated(o, Path(name) / str(n), n) for n in (1, 2, 4, 8, 16)}
    rows = [[n, f"{r:,.0f}", f"{r / (n * rates[1]):.2f}"] for n, r in rates.items()]
    markdown(["threads", "steps/s", "share of linear"], rows)


def main(o: Options) -> None:
    """Measure, and print the table."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    if o.simulate:
        return simulate(o)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        costs_of_parts = parts(o, folder)
        rows = [cost.row(name) for name, cost in costs_of_parts.items()]
        plain = costs_of_parts["+ update"]
        perfect = Cost(plain.steps, plain.cpu / cores(), plain.cpu)
        rows.append(perfect.row("the same, if all parts overlapped perfectly"))
        pythons = {"wsa": sys.executable} | ({"wsa before": o.before} if o.before else {})
        models, numbers = f"--models={o.models}", iter(range(10**6))
        contenders: dict[str, Callable[[], Cost]] = {}
        for who, python in pythons.items():
            contenders[f"{who}: learn"] = lambda python=python: learning(
                o, python, folder, next(numbers), models
            )
            if o.episodes:
                run = folder / f"judged by {who}"
                command(
                    python, "learn", "--online", "--algo=ppo", f"--game={o.game}", models,
                    f"--store={folder / 'store'}", f"--run-dir={run}", f"--total-timesteps={SHORT}",
                )  # fmt: skip
                contenders[f"{who}: eval"] = lambda python=python, run=run: evaluating(
                    o, python, run
                )
        contenders["PPO from pixels"] = lambda: learning(
            o, sys.executable, folder, next(numbers), "--fusion=nature"
        )
        measured: dict[str, list[Cost]] = {name: [] for name in contenders}
        for _ in range(o.rounds):  # In turn, so that other load affects all of them.
            for name, measure in contenders.items():
                measured[name].append(measure())
        for name, costs in measured.items():
            typical = statistics.median_low([cost.wall / cost.steps for cost in costs])
            rows.append(next(c for c in costs if c.wall / c.steps == typical).row(name))
        markdown(["", "steps/s", "CPU ms per step", "cores"], rows)
        rates = {
            name: statistics.median([c.steps / c.wall for c in costs])
            for name, costs in measured.items()
        }
        rates = {"overlapping perfectly": perfect.steps / perfect.wall, **rates}
        print()
        for name, other in rates.items():
            print(f"wsa: learn / {name}: {rates['wsa: learn'] / other:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
