"""wsa beside Stable-Baselines3 and d3rlpy, in turn in one run: rates, CPU time, and returns by minute.

    sh benchmarks/peers/environments.sh DIR
    python -m benchmarks.peers.compare DIR [--methods ppo dqn cql] [--threads 1 2] [--rounds 1]
    python -m benchmarks.peers.compare DIR --minutes 20

DIR has the environments that `benchmarks/peers/environments.sh` makes. The contenders play the same game under
the same rules in as many environments, with the same hyperparameters: those of wsa's own classes,
which `benchmarks/peers/` translates to the names of the others.

- PPO with CleanRL's hyperparameters: Stable-Baselines3 and wsa from pixels with the same network, wsa
  over embeddings.
- DQN (Mnih et al., 2015; no double Q-learning), an update every 4 steps, epsilon at its final value:
  the same three.
- CQL on the same stored transitions: d3rlpy from pixels, wsa over embeddings. wsa does not train
  from pixels offline.

Each contender is a separate process that runs twice, once for longer, and the difference is shown, so
startup does not count. `--threads` sets OMP_NUM_THREADS for all, and the threads of wsa's encoders.
Torch's own default is all cores, wsa's is one.

`--minutes` instead trains the contenders of PPO one after the other for that long, from the start of
the process, with a constant learning rate.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
import tyro
import zarr

from benchmarks.kit import Cost, markdown, timed, wsa
from wsa.encode.inference.cores import cores
from wsa.learn.configs.algorithms import (
    AlgorithmConfig,
    CQLConfig,
    OfflineConfig,
    OnlineDQNConfig,
    PPOConfig,
)
from wsa.learn.networks.nature import SIDE, GrayPixels

SCRIPTS = Path(__file__).parent
SHORT = {"ppo": PPOConfig().rollout_size, "dqn": 512, "cql": 50}
"""Steps or updates of the run that is subtracted."""
LONGER = 3
"""Factor on the steps or updates that are measured over embeddings, where each takes less time."""
SCORES = (-15, -10, 0, 10, 15, 18)
"""Mean returns of the last 20 training games whose minute is shown."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    peers: tyro.conf.Positional[Path]
    """Folder with the environments that benchmarks/peers/environments.sh makes."""
    game: str = "Pong"
    """ALE game."""
    models: str = "palette"
    """Models of the runs over embeddings."""
    methods: tuple[Literal["ppo", "dqn", "cql"], ...] = ("ppo", "dqn", "cql")
    """Methods to measure."""
    rollouts: int = 2
    """Rollouts of PPO beyond startup, each of 1,024 steps."""
    dqn_steps: int = 512
    """Steps of DQN beyond startup, with an update every fourth."""
    updates: int = 200
    """Updates of CQL beyond startup."""
    data: int = 2048
    """Stored steps, by a random policy, that CQL trains on."""
    threads: tuple[int, ...] = tuple(sorted({1, cores()}))
    """Numbers of threads to measure with."""
    rounds: int = 1
    """Number of times each pair of runs is measured; medians are shown."""
    minutes: float = 0
    """Instead, train for this long, and show returns by minute."""

    @property
    def amounts(self) -> dict[str, int]:
        """Steps or updates of each method beyond startup."""
        steps = self.rollouts * PPOConfig().rollout_size
        return {"ppo": steps, "dqn": self.dqn_steps, "cql": self.updates}


def hyperparameters(method: str, amount: int) -> AlgorithmConfig:
    """Return the hyperparameters of a run of `amount` steps or updates."""
    if method == "ppo":
        return PPOConfig(total_timesteps=amount)
    if method == "dqn":
        return OnlineDQNConfig(
            total_timesteps=amount, num_envs=PPOConfig().num_envs, buffer_size=10_000,
            learning_starts=256, start_e=0.01, double_q=False, max_grad_norm=10.0,
        )  # fmt: skip
    # One that holds episodes out would not train on the same transitions as d3rlpy.
    return CQLConfig(updates=amount, validation_fraction=0.0)


def flags(config: AlgorithmConfig) -> Iterator[str]:
    """Yield the flags of `wsa learn` for hyperparameters that differ from the defaults."""
    defaults = msgspec.structs.asdict(type(config)())
    for name, value in msgspec.structs.asdict(config).items():
        flag = name.replace("_", "-")
        if value != defaults[name]:
            yield f"--no-{flag}" if value is False else f"--{flag}={value}"


Command: TypeAlias = Callable[[AlgorithmConfig, int, Path], list[str]]


class Contender(NamedTuple):
    """One line of the table.

    Attributes:
        method: `ppo`, `dqn`, or `cql`.
        name: Library and input.
        longer: Factor on the number of steps or updates that are measured.
        command: Makes the command of a run from hyperparameters, threads, and the run's folder.
    """

    method: str
    name: str
    longer: int
    command: Command


def contenders(o: Options, folder: Path) -> list[Contender]:
    """Return all contenders; the first of each method is the peer."""

    def learn(*how: str) -> Command:
        def command(config: AlgorithmConfig, threads: int, run: Path) -> list[str]:
            offline = isinstance(config, OfflineConfig)
            places = [f"--store={folder / ('data' if offline else 'store')}", f"--run-dir={run}"]
            play = [] if offline else ["--online", f"--threads={threads}"]
            return [
                *(sys.executable, "-m", "wsa.cli", "learn", f"--game={o.game}", *play, *how),
                *(f"--algo={config.NAME}", *places, *flags(config)),
            ]  # fmt: skip

        return command

    def peer(name: str, script: str, **about: str) -> Command:
        def command(config: AlgorithmConfig, threads: int, run: Path) -> list[str]:
            request = {**about, "log": f"{run}", "config": msgspec.structs.asdict(config)}
            python = o.peers / name / "bin/python"
            return [str(python), str(SCRIPTS / script), json.dumps(request)]

        return command

    transitions = str(folder / "transitions.npz")
    found = []
    for method in ("ppo", "dqn"):
        sb3 = peer("sb3", "sb3.py", algo=method, game=o.game)
        found += [
            Contender(method, "Stable-Baselines3, pixels", 1, sb3),
            Contender(method, "wsa, pixels", 1, learn("--fusion=nature")),
            Contender(method, f"wsa, {o.models}", LONGER, learn(f"--models={o.models}")),
        ]
    d3rlpy = peer("d3rlpy", "d3rlpy_cql.py", data=transitions)
    return [
        *found,
        Contender("cql", "d3rlpy, pixels", 1, d3rlpy),
        Contender("cql", f"wsa, {o.models}", LONGER, learn(f"--models={o.models}")),
    ]


def read_games(run: Path) -> Iterator[tuple[float, float]]:
    """Yield when each game of a run ended, in seconds since the epoch, and its raw return."""
    for log in run.glob("metrics.jsonl"):  # wsa's.
        for scalars in map(json.loads, log.read_text().splitlines()):
            if "charts/episodic_return" in scalars:
                yield scalars["time"], scalars["charts/episodic_return"]
    for log in run.glob("*.monitor.csv"):  # Stable-Baselines3's, one for each environment.
        with log.open() as file:
            began = json.loads(file.readline().removeprefix("#"))["t_start"]
            for row in csv.DictReader(file):
                yield began + float(row["t"]), float(row["r"])


def environment(threads: int) -> dict[str, str]:
    """Return the variables of a contender's process."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def export(o: Options, folder: Path) -> None:
    """Store a game's steps, encode them, and write them for d3rlpy too."""
    about = ("--game", o.game, "--store", folder / "data")
    wsa("collect", *about, "--steps", o.data, "--num-envs", 4, "--seed", 1)
    wsa("encode", *about, "--models", o.models, "--scheduler", "inproc")
    wsa("export", folder / "data.zarr", *about, "--frames")
    exported: Any = zarr.open_group(folder / "data.zarr", mode="r")
    rows = {name: exported[name][:] for name in ("frame_index", "action", "reward", "terminated")}
    pixels = GrayPixels()(exported["frames"][:]).reshape(-1, 1, SIDE, SIDE)
    steps = rows["action"] >= 0
    # Where the next row is no step, an episode or a segment ends.
    last = np.append(~steps[1:], True)
    ends = rows["terminated"].astype(bool)
    arrays = {
        "observations": pixels[rows["frame_index"]],
        "actions": rows["action"],
        "rewards": np.sign(rows["reward"]),
        "terminals": ends,
        "timeouts": last & ~ends,
    }
    np.savez(folder / "transitions.npz", **{name: array[steps] for name, array in arrays.items()})


def measure(contender: Contender, amount: int, threads: int, folder: Path) -> Cost:
    """Measure `amount` steps or updates of a contender without its startup."""
    spent = []
    short, amount = SHORT[contender.method], contender.longer * amount
    for length in (short, short + amount):
        run = Path(tempfile.mkdtemp(dir=folder)) / "run"
        config = hyperparameters(contender.method, length)
        _, *seconds = timed(contender.command(config, threads, run), environment(threads))
        spent.append(seconds)
    return Cost(amount, *(late - early for early, late in zip(*spent, strict=True)))


def table(o: Options, folder: Path) -> None:
    """Measure everything in turn, and print one line for each contender and number of threads."""
    found = [c for c in contenders(o, folder) if c.method in o.methods]
    if "cql" in o.methods:
        export(o, folder)
    # The first run that plays with a model chooses its engine, which takes a while.
    for first in [c for c in found if c.method != "cql" and c.name == f"wsa, {o.models}"][:1]:
        config = hyperparameters(first.method, SHORT[first.method])
        timed(first.command(config, 1, folder / "first"))
    costs: dict[tuple[str, int, str], list[Cost]] = {}
    for _ in range(o.rounds):  # In turn, so that other load affects all of them.
        for method in o.methods:
            for threads in o.threads:
                for contender in (c for c in found if c.method == method):
                    cost = measure(contender, o.amounts[method], threads, folder)
                    costs.setdefault((method, threads, contender.name), []).append(cost)
                    print(*cost.row(contender.name), file=sys.stderr, flush=True)
    rows = []
    base = 0.0
    for (method, threads, name), measured in costs.items():
        typical = statistics.median_low([cost.wall / cost.steps for cost in measured])
        cost = next(c for c in measured if c.wall / c.steps == typical)
        base = base if name.startswith("wsa") else typical
        _, rate, *rest = cost.row(name)
        rows.append([method.upper(), name, threads, rate, f"{base / typical:.2f}", *rest])
    columns = ["algorithm", "library and input", "threads", "steps/s (CQL: updates/s)"]
    columns += ["ratio to the other library", "CPU ms per step or update", "cores busy"]
    markdown(columns, rows)


def play(o: Options, contender: Contender, threads: int, folder: Path) -> list[tuple[float, float]]:
    """Train for `o.minutes`; return each game's end, in minutes from the start, and its return."""
    config = PPOConfig(anneal_lr=False)
    command = contender.command(config, threads, folder)
    began = time.time()
    process = subprocess.Popen(
        command, env=environment(threads), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(60 * o.minutes)
        sys.exit(f"{contender.name} ended early: {' '.join(command)}")
    except subprocess.TimeoutExpired:
        process.terminate()
    process.wait()
    return sorted(((end - began) / 60, returned) for end, returned in read_games(folder))


def curves(o: Options, folder: Path) -> None:
    """Train the contenders of PPO in turn; print mean returns by minute, and minutes to scores."""
    played: dict[str, list[tuple[float, float]]] = {}
    for threads in o.threads:
        for contender in contenders(o, folder):
            if contender.method == "ppo":
                name = f"{contender.name}, {threads} threads"
                played[name] = play(o, contender, threads, folder / f"run-{len(played)}")
    rows = []
    for minute in range(1, int(np.ceil(o.minutes)) + 1):
        means = []
        for games in played.values():
            ended = [returned for end, returned in games if minute - 1 <= end < minute]
            means.append(f"{statistics.fmean(ended):.1f} ({len(ended)})" if ended else "")
        rows.append([minute, *means])
    print("Mean return of the training games that ended in each minute, and how many:\n")
    markdown(["minute", *played], rows)
    print("\nMinute in which the mean of the last 20 training games reached a score:\n")
    reached = [[score, *(minute_of(score, games) for games in played.values())] for score in SCORES]
    markdown(["score", *played], reached)


def minute_of(score: float, games: Sequence[tuple[float, float]]) -> str:
    """Return when the mean return of the last 20 games first was at least `score`."""
    for last in range(20, len(games) + 1):
        if statistics.fmean(returned for _, returned in games[last - 20 : last]) >= score:
            return f"{games[last - 1][0]:.1f}"
    return "-"


def main(o: Options) -> None:
    """Measure rates, or train for a while."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["WSA_CACHE"] = str(folder / "cache")
        (curves if o.minutes else table)(o, folder)


if __name__ == "__main__":
    main(tyro.cli(Options))
