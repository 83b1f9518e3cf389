"""Learn games offline from the data of a mediocre policy: compare algorithms and models.

    python -m benchmarks.learning.offline_returns FOLDER [--games Pong,Breakout] [--models sr,vos] [--seeds 1]

1. NatureCNN PPO trains on each game for a while, from pixels; `--policies` names a folder of such
   runs.
2. The policy plays 100,000 steps, one action in five at random.
3. `wsa encode` runs the models over them, and the same networks untrained.
4. `wsa bench` trains CQL with WSA, with the mean, and with each model alone; CQL with WSA over the
   untrained networks; behavioral cloning and double DQN with WSA.
5. FOLDER/results.csv has every run; FOLDER/results.md has the means, and those of the policy.

Every step is a wsa command that continues where it stopped, and so does this script.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import statistics
from pathlib import Path

from benchmarks.kit import markdown, wsa
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

EPSILON = 0.2  # Probability of a random action in the data.


def play(o: argparse.Namespace, game: str) -> None:
    """Collect the data: 100,000 steps of a policy that has trained for a while."""
    run = (o.policies or o.folder / "policies") / game
    if not o.policies:
        wsa(
            *("learn", "--online", "--algo", "ppo", "--fusion", "nature", "--game", game),
            *("--parameters", 450_000, "--total-timesteps", o.played, "--run-dir", run),
            *("--num-envs", 32, "--num-steps", 64, "--num-minibatches", 8),
            *("--no-anneal-lr", "--learning-rate", 4e-4),
        )
    wsa(
        *("collect", "--game", game, "--steps", o.steps, "--seed", 1000),
        *("--policy", run, "--eps", EPSILON),
    )


def learn(o: argparse.Namespace, game: str) -> None:
    """Train all runs of a game, in one bench for each algorithm."""
    models = o.models.split(",")
    untrained = [f"{name}:random" for name in models]
    for names in (models, untrained):
        wsa("encode", "--game", game, "--models", ",".join(names))
    grids = {
        "cql": [("wsa,mean,single", models), ("wsa", untrained)],
        "bc": [("wsa", models)],
        "dqn": [("wsa", models)],
    }
    for algo, grid in grids.items():
        for fusions, names in grid:
            wsa(
                *("bench", "--games", game, "--algo", algo, "--fusions", fusions),
                *("--models", ",".join(names), "--seeds", o.seeds, "--updates", o.updates),
                *("--episodes", o.episodes, "--bench-dir", o.folder / algo / game),
            )


def gather(o: argparse.Namespace, games: list[str]) -> None:
    """Write one row for each run, and one table."""
    rows = [
        {"algo": algo, **row}
        for game in games
        for algo in ("cql", "bc", "dqn")
        for row in csv.DictReader((o.folder / algo / game / "results.csv").open())
    ]
    with (o.folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    lines = []
    for game in games:
        returns = behavior(game)
        lines.append([game, f"the policy that played, eps {EPSILON:g}", "", *told(returns)])
        methods: dict[tuple[str, ...], list[float]] = {}
        for row in rows:
            if row["game"] == game:
                key = (row["algo"], row["fusion"], row["models"])
                methods.setdefault(key, []).append(float(row["return_mean"]))
        for (algo, fusion, names), means in methods.items():
            lines.append([game, f"{algo}, {fusion}", names, *told(means)])
    with (o.folder / "results.md").open("w") as file, contextlib.redirect_stdout(file):
        markdown(["game", "learner", "models", "mean return", "std", "episodes or seeds"], lines)


def behavior(game: str) -> list[float]:
    """Raw returns of the episodes that ended in the data."""
    metas = take_snapshot(open_store(os.environ["WSA_STORE"])).segments(game)
    return [returned for meta in metas for _, returned in meta.episodes]


def told(values: list[float]) -> list[object]:
    """Mean, standard deviation, and count."""
    spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
    return [f"{statistics.fmean(values):.2f}", spread, len(values)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--games", default="Pong,Breakout")
    parser.add_argument("--models", default="sr,vos")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--played", type=int, default=500_000)
    parser.add_argument("--policies", type=Path)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--episodes", type=int, default=20)
    o = parser.parse_args()
    o.folder = o.folder.absolute()
    os.environ.setdefault("WSA_STORE", str(o.folder / "store"))
    games = o.games.split(",")
    for game in games:
        play(o, game)
        learn(o, game)
        gather(o, games[: games.index(game) + 1])


if __name__ == "__main__":
    main()
