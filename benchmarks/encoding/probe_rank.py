"""Does the probe predict training? Rank encoders by probe, and by return for equal online steps.

    OMP_NUM_THREADS=1 python -m benchmarks.encoding.probe_rank rank --policies Pong=runs/pong,Breakout=runs/breakout
    OMP_NUM_THREADS=1 python -m benchmarks.encoding.probe_rank rank --small

For each game the script collects random play and, if a run that plays well is named, better play.
It encodes both with each encoder; probes all encoders together (`wsa probe --json`); trains PPO
over each encoder alone for `--budget` steps (`wsa learn --online`), with each seed; and plays full
games with every run. Then it prints a table for each game, and Spearman's rank correlation of each
of the probe's columns with the return, whatever the result. 8 encoders and 3 games are few, so the
p value is printed too.

All results are saved in the folder, one file each. The same command makes what is missing: runs
continue from their checkpoints. With the defaults, 8 encoders x 3 games x 1 seed of 300,000 steps
are 24 trainings of a quarter of an hour (`palette`) to hours (`sr`). `--small` does everything in
two minutes, to try the script; its correlations mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from benchmarks.kit import markdown, wsa

GAMES = "Pong,Breakout,Seaquest"
MODELS = "sr,vos,okk,sr:random,vos:random,lite0,palette,objects"
# Columns of the probe, as (way, mean) of its JSON.
COLUMNS = {
    "R2": ("both", "mean_r2"),
    "hit": ("both", "mean_hit"),
    "random to better: R2": ("transfer", "mean_r2"),
    "random to better: hit": ("transfer", "mean_hit"),
    "64 axes: R2": ("narrow", "mean_r2"),
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--games", default=GAMES)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--policies", default="", help="GAME=RUN,...: runs that play better")
    parser.add_argument("--steps", type=int, default=20_000, help="of each kind of play")
    parser.add_argument("--budget", type=int, default=300_000, help="steps of each training")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--samples", type=int, default=4_000)
    parser.add_argument("--f1", action="store_true", help="probe F1 too, which takes far longer")
    parser.add_argument("--small", action="store_true", help="try the script on next to nothing")
    o = parser.parse_args(arguments)
    if o.small:
        o.games, o.models, o.steps, o.budget = "Pong", "vos,okk:random,vos:random", 1_200, 2_048
        o.episodes, o.samples = 1, 300
    return o


def answer(file: Path, *arguments: object) -> dict[str, Any]:
    """Run a command, and save its JSON output in a file; read it if the file exists."""
    if not file.exists():
        print("wsa", *arguments, flush=True)
        command = [sys.executable, "-m", "wsa.cli", *map(str, arguments), "--json"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(".part")
        half.write_text(output)
        half.replace(file)
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def fill(o: argparse.Namespace, game: str, models: Sequence[str]) -> None:
    """Collect and encode what is missing."""
    store = ("--store", o.folder / "store", "--game", game)
    collect = ("collect", *store, "--steps", o.steps)
    wsa(*collect, "--num-envs", 8)
    policies = dict(pair.split("=", 1) for pair in o.policies.split(",") if pair)
    if game in policies:
        wsa(*collect, "--num-envs", 8, "--policy", policies[game], "--eps", 0.2, "--seed", 1000)
    wsa("encode", *store, "--models", ",".join(models))


def returns(o: argparse.Namespace, game: str, model: str) -> list[float]:
    """Mean return of full games after training over one encoder, for each seed."""
    means = []
    for seed in range(1, o.seeds + 1):
        name = f"{game}-{model.replace(':', '-')}-{seed}"
        run = o.folder / "runs" / name
        result = o.folder / "returns" / f"{name}.json"
        if not result.exists():
            wsa(
                "learn", "--online", "--algo", "ppo", "--game", game, "--models", model,
                "--fusion", "single", "--store", o.folder / "store", "--seed", seed,
                "--total-timesteps", o.budget, "--run-dir", run,
            )  # fmt: skip
        played = answer(result, "eval", run, "--episodes", o.episodes)
        means.append(float(played["return_mean"]))
    return means


def rows(probed: dict[str, Any], models: Sequence[str]) -> Iterator[tuple[str, list[float | None]]]:
    """Yield the probe's results for each encoder, in the order of `COLUMNS`, then F1."""
    lines = {line["name"]: line for line in probed["models"]}
    for model in models:
        line = lines[model]
        cells = [(line.get(way) or {}).get(mean) for way, mean in COLUMNS.values()]
        yield model, [*(cell and cell["value"] for cell in cells), line["mean_f1"]]


def main(arguments: Sequence[str] | None = None) -> None:
    o = parse_arguments(arguments)
    models = o.models.split(",")
    columns = [*COLUMNS, "F1"]
    for game in o.games.split(","):
        fill(o, game, models)
        options = ["--samples", o.samples, "--models", o.models, *(["--f1"] if o.f1 else [])]
        file = o.folder / "probes" / f"{game}.json"
        probed = answer(file, "probe", "--store", o.folder / "store", "--game", game, *options)
        scores = dict(rows(probed, models))
        earned = {model: returns(o, game, model) for model in models}
        means = {model: sum(own) / len(own) for model, own in earned.items()}
        order = sorted(models, key=lambda model: -means[model])
        print(f"\n## {game}\n")
        markdown(
            ["encoder", "return", *columns],
            [
                [model, f"{means[model]:.1f}", *("-" if v is None else f"{v:.2f}" for v in scores[model])]
                for model in order
            ],
        )  # fmt: skip
        print()
        if len(set(means.values())) == 1:
            print("All returned the same, so there is no order to compare.")
            continue
        correlations = []
        for i, column in enumerate(columns):
            values = [scores[model][i] for model in models]
            if None not in values:
                rho = spearmanr(values, [means[model] for model in models])
                correlations.append([column, f"{rho.statistic:.2f}", f"{rho.pvalue:.2f}"])
        markdown(["column of the probe", "rank correlation with the return", "p"], correlations)


if __name__ == "__main__":
    main()
