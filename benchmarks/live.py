"""Cost of a step of online learning, part by part, and how well the parts overlap.

    python benchmarks/live.py [--models sr,vos] [--steps 8192] [--rounds 3] [--before PYTHON]
    python benchmarks/live.py --simulate

The table starts with the emulator alone, then lists the cost of each part of a step: shrinking
screens, each network, acting, the update; then their sum, and the rate at which they would run if
they overlapped perfectly on the cores that this process may use. Below are whole runs, each a
separate command: wsa, `wsa eval`, and PPO from pixels with CleanRL's network. Start-up is excluded:
each command runs twice, once for longer, and the difference is shown. `--before` names the Python
of another checkout, whose runs are measured in turn with these.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import tyro
from kit import markdown

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
from wsa.learn.runs.network import make_network
from wsa.store.objects.flat_map import side_by_side
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

CONFIG = PPOConfig()
SHORT = 2 * CONFIG.rollout_size  # Steps of the subtracted run: start-up, and the first rollouts.


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    models: str = "sr,vos"
    """Models of the run."""
    game: str = "Pong"
    """ALE game."""
    steps: int = 8192
    """Steps of a run beyond start-up."""
    episodes: int = 0
    """Games of wsa eval beyond the first four; 0 for none. A game of Pong has 900 to 1,700
    steps."""
    rounds: int = 3
    """Number of times each command is run; medians are shown."""
    before: str = ""
    """Python of another checkout, to compare with."""
    simulate: bool = False
    """Instead, show how the rate grows with threads, up to 16, with models that only sleep."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds of some steps, over all threads."""

    steps: float
    wall: float
    cpu: float

    def row(self, name: str) -> list[object]:
        """A row of the table."""
        rate, each = self.steps / self.wall, 1000 * self.cpu / self.steps
        return [name, f"{rate:,.0f}", f"{each:.3f}", f"{self.cpu / self.wall:.2f}"]


def cost(work: Callable[[], int], seconds: float = 1.5) -> Cost:
    """Measure the cost of repeated work; each call returns its number of steps."""
    work()
    wall, cpu, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        steps += work()
    return Cost(steps, time.perf_counter() - wall, time.process_time() - cpu)


def parts(o: Options, folder: Path) -> dict[str, Cost]:
    """Measure each part of a step separately."""
    flags = ["--online", "--algo=ppo", f"--game={o.game}", f"--models={o.models}"]
    flags += [f"--store={folder / 'store'}", f"--run-dir={folder / 'parts'}"]
    flags += [f"--total-timesteps={SHORT + CONFIG.rollout_size}"]
    _, config, where = plan_run(cli.parse("learn", flags), "cpu")
    assert isinstance(config, OnlineRun)
    n = CONFIG.num_envs
    env = games.make_env(o.game, config.protocol, n)
    env.reset(seed=1)
    generator = np.random.default_rng(0)

    def emulate() -> int:
        env.step(generator.integers(len(config.protocol.actions), size=n))
        return n

    costs = {"emulator": cost(emulate)}
    shown = np.stack([games.pictures(env.step(np.zeros(n, np.int64))[0]).copy() for _ in range(4)])
    encoders = open_models(take_snapshot(open_store(config.store)), config.inputs)
    ways = {encoder.alike: encoder for encoder in encoders}

    def shrink() -> int:
        for encoder in ways.values():
            encoder.shrink(shown[-1])
        return n

    costs["screens made small"] = cost(shrink)
    for key, window, encoder in zip(config.inputs, config.model_windows, encoders, strict=True):
        costs[f"{key}, {encoder.engine.name}"] = cost(embedding(encoder, window, shown))
    costs["acting"] = cost(acting(config, n))
    costs["update"] = updating(config, where, encoders)
    env.close()
    return costs


def embedding(encoder: Encoder, window: int, shown: Any) -> Callable[[], int]:
    """Run a model's network on the newest window of each environment."""
    levels = np.stack([encoder.shrink(frames) for frames in shown[-window:]], axis=1)
    levels = levels if window > 1 else levels[:, 0]

    def work() -> int:
        encoder.embed_shrunk(levels)
        return len(levels)

    return work


def acting(config: OnlineRun, envs: int) -> Callable[[], int]:
    """Run the policy's network and draw actions, in each group of environments."""
    network = make_network(config, config.model_windows, config.shapes).eval()
    sizes = games.group_sizes(envs, config.env_groups)
    width = sum(int(np.prod(shape)) for shape in config.shapes)
    states = [torch.randn(size, config.network.frame_stack, width).half() for size in sizes]

    def work() -> int:
        with torch.no_grad():
            for state in states:
                logits = ppo.forward(network, state, torch.zeros(len(state)), None, "cpu")[0]
                torch.multinomial(logits.softmax(dim=1), 1)
        return envs

    return work


def updating(config: OnlineRun, folder: Path, encoders: list[Encoder]) -> Cost:
    """Measure the updates of a short run."""
    begin(folder, config)
    real, costs = ppo.update_policy, []

    def timed(*given: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        line = real(*given)
        costs.append((time.perf_counter() - wall, time.process_time() - cpu))
        return line

    ppo.update_policy = timed
    try:
        train.train_playing(folder, config, "cpu", encoders=encoders)
    finally:
        ppo.update_policy = real
    wall, cpu = (sum(each) for each in zip(*costs, strict=True))
    return Cost(CONFIG.rollout_size * len(costs), wall, cpu)


def command(python: str, *arguments: object) -> tuple[dict[str, Any], float, float]:
    """Run a command; return its --json output, and its wall and CPU seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    said = subprocess.run(
        [python, "-m", "wsa.cli", *map(str, arguments), "--json"],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ).stdout  # fmt: skip
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(said), wall, cpu


def learning(o: Options, python: str, folder: Path, number: int, *flags: str) -> Cost:
    """Measure a run of PPO without its start-up."""
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
    session = Session(runner, keys, places, settled=True)
    network = ActorCritic(
        Inputs(((1, 8), (1, 8))), len(stated.actions), NetworkConfig(frame_stack=1)
    )
    runner.begin()
    table.flush()
    silent: Any = SimpleNamespace(write=lambda *_: None)
    began = time.perf_counter()
    ppo.play(config, session, network, None, "cpu", silent)
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
        each = sum(c.cpu / c.steps for c in costs_of_parts.values())
        perfect = cores() / each
        rows.append(["sum of the parts", f"{1 / each:,.0f}", f"{1000 * each:.3f}", "1.00"])
        rows.append(
            ["overlapping perfectly", f"{perfect:,.0f}", f"{1000 * each:.3f}", f"{cores():.2f}"]
        )
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
        markdown(["", "steps/s", "CPU ms a step", "cores"], rows)
        rates = {
            name: statistics.median([c.steps / c.wall for c in costs])
            for name, costs in measured.items()
        }
        print(f"\nwsa: learn / overlapping perfectly: {rates['wsa: learn'] / perfect:.2f}")
        for name, other in rates.items():
            print(f"wsa: learn / {name}: {rates['wsa: learn'] / other:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
