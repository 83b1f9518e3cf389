"""`wsa bench`: the grid it plans, what it runs and leaves, and how it goes on after a kill."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from command_kit import (
    ALIAS,
    LEARN,
    OTHER_ALIAS,
    Outcome,
    read_config,
    read_csv,
    read_files,
    read_json,
    run_all,
    wait_until,
)

from wsa.learn.bench import run_cell
from wsa.learn.training import checkpoint

BOTH = f"{ALIAS}+{OTHER_ALIAS}"
TRAIN = ("--updates", 6, *LEARN[3:], "--validation-fraction", 0, "--log-frequency", 1,
         "--save-frequency", 2)  # fmt: skip
EVALUATE = ("--episodes", 2, "--epsilon", 0.5, "--eval-num-envs", 1)
BENCH = ("bench", "--games", "Breakout", *TRAIN, *EVALUATE)
GRID = ("--seeds", "1", "--fusions", "wsa,single", "--models-subsets", BOTH)
ONE = ("--seeds", "1", "--fusions", "wsa", "--models-subsets", BOTH)
TWO = ("--seeds", "1,2", *ONE[2:])


class Benched(NamedTuple):
    """A bench of GRID: its plan, what it printed, and its folder."""

    planned: Outcome
    outcome: Outcome
    folder: Path


@pytest.fixture(scope="module")
def benched(two_models, tmp_path_factory):
    """A finished bench of three runs; a test that continues it takes `bench`, a copy."""
    folder = tmp_path_factory.mktemp("bench")
    commands = ((*BENCH, *GRID, "--dry-run", "--json"), (*BENCH, *GRID))
    planned, outcome = run_all(folder, *commands, store=two_models)
    return Benched(planned, outcome, folder / "bench")


@pytest.fixture
def bench(benched, tmp_path):
    return Path(shutil.copytree(benched.folder, tmp_path / "bench"))


def test_a_dry_run_refuses_what_the_bench_would(ready):
    models = ("--seeds", "1", "--models", "vit")
    planned, refused = ready(*BENCH, *models, "--dry-run"), ready(*LEARN[:3], "--models", "vit")
    assert planned.code == refused.code == 3
    assert planned.error.removeprefix("wsa bench") == refused.error.removeprefix("wsa learn")


def test_every_cell_of_the_grid_is_trained_evaluated_and_tabulated(benched):
    planned, outcome, bench = benched
    assert {name: planned.json[name] for name in ("runs", "left", "updates_left")} == {
        "runs": 3, "left": 3, "updates_left": 18,
    }  # fmt: skip
    runs = read_csv(bench / "results.csv")
    assert [(r["fusion"], r["models"], r["seed"]) for r in runs] == [
        ("single", ALIAS, "1"), ("single", OTHER_ALIAS, "1"), ("wsa", BOTH, "1"),
    ]  # fmt: skip
    assert {(r["game"], r["episodes"], r["trained"]) for r in runs} == {("Breakout", "2", "6")}
    *singles, both = (int(r["parameters"]) for r in runs)
    assert both > max(singles) > 0
    for run in runs:
        folder = bench / "runs" / f"Breakout__{run['fusion']}__{run['models']}__1"
        games = [row for row in read_csv(folder / "eval.csv") if row["policy"] == "run"]
        mean = sum(float(game["return"]) for game in games) / len(games)
        assert float(run["return_mean"]) == mean
        assert float(run["human_normalized"]) == pytest.approx((mean - 1.7) / (30.5 - 1.7))
        assert (folder / "eval_weights.npz").exists() == (run["fusion"] == "wsa")
    table = read_csv(bench / "table.csv")
    assert [(r["fusion"], r["models"], r["game"], r["seeds"]) for r in table[:2]] == [
        ("single", ALIAS, "Breakout", "1"), ("single", ALIAS, "all games", "1"),
    ]  # fmt: skip
    assert outcome.out == (bench / "table.md").read_text() + "\n"
    assert "--updates 6" in outcome.out and f"| wsa {BOTH} |" in outcome.out
    curves = read_csv(bench / "curves.csv")
    entropies = [row["step"] for row in curves if row["scalar"] == "wsa/weight_entropy"]
    assert entropies == [str(n) for n in range(1, 7)]


def test_a_grid_is_not_run_again_and_another_seed_joins_it(ready, bench):
    assert ready(*BENCH, *GRID, "--dry-run", "--json").json["left"] == 0
    before = read_files(bench)
    assert ready(*BENCH, *GRID).code == 0
    assert read_files(bench) == before
    assert ready(*BENCH, *TWO, "--dry-run", "--json").json["left"] == 1
    assert ready(*BENCH, *TWO).code == 0
    seeds = [(r["fusion"], r["seed"]) for r in read_csv(bench / "results.csv")]
    assert seeds == [("single", "1"), ("single", "1"), ("wsa", "1"), ("wsa", "2")]
    means = [row for row in read_csv(bench / "table.csv") if row["game"] == "all games"]
    assert [(mean["fusion"], mean["seeds"]) for mean in means] == [
        ("single", "1"), ("single", "1"), ("wsa", "2"),
    ]  # fmt: skip
    assert means[0]["low"] == means[0]["high"] == "", "one seed has no interval"
    for mean in means[2:]:
        assert float(mean["low"]) <= float(mean["human_normalized"]) <= float(mean["high"])


def test_a_killed_run_goes_on_to_the_same_result(ready, bench, tmp_path, monkeypatch):
    for run in (bench / "runs").glob("*__single__*"):
        shutil.rmtree(run)
    assert ready(*BENCH, *ONE).code == 0  # It writes the tables of the run that is left.
    killed = (*BENCH, *ONE, "--bench-dir", "killed")
    save, evaluate = checkpoint.save, run_cell.evaluate_run

    class Killed(BaseException):
        pass

    def save_and_die(folder, step, *rest, **more):
        save(folder, step, *rest, **more)
        if step == 4:
            raise Killed

    def evaluate_and_interrupt(*arguments, **options):
        evaluate(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "save", save_and_die)
        ready(*killed)
    planned = ready(*killed, "--dry-run", "--json").json
    assert (planned["left"], planned["updates_left"]) == (1, 2)
    assert planned["grid"][0]["updates"] == "4 of 6"
    with monkeypatch.context() as patch:
        patch.setattr(run_cell, "evaluate_run", evaluate_and_interrupt)
        assert ready(*killed).code == 130
    planned = ready(*killed, "--dry-run", "--json").json
    assert (planned["left"], planned["updates_left"]) == (1, 0)
    assert ready(*killed).code == 0
    for name in ("results.csv", "table.csv", "table.md"):
        assert (tmp_path / "killed" / name).read_text() == (bench / name).read_text()


def test_more_games_to_evaluate_train_nothing_again(ready, bench, unchanged, monkeypatch):
    # Runs with other options are not put beside these.
    with unchanged():
        outcome = ready(*BENCH, *ONE, "--updates", 7)
    assert outcome.code == 4
    assert outcome.error == (
        "wsa bench: bench was started with --updates 6, not 7, so the runs would not be "
        "comparable. Use the same value, or another --bench-dir."
    )
    run = bench / "runs" / f"Breakout__wsa__{BOTH}__1"
    checkpoints, two = read_files(run / "checkpoints"), (bench / "results.csv").read_text()
    assert ready(*BENCH, *ONE, "--episodes", 3).code == 0
    assert read_files(run / "checkpoints") == checkpoints
    assert [r["episodes"] for r in read_csv(bench / "results.csv")] == ["3"]
    # Two of the three games were there.
    assert [r["policy"] for r in read_csv(run / "eval.csv")] == [
        "run", "run", "random", "random", "run", "random",
    ]  # fmt: skip
    # Back to two, which are not played again.
    monkeypatch.setattr(run_cell, "evaluate_run", None)
    assert ready(*BENCH, *ONE).code == 0
    assert (bench / "results.csv").read_text() == two


def test_a_run_that_fails_is_named_and_the_others_are_done(ready, tmp_path, monkeypatch):
    command = (*BENCH, "--seeds", "1", "--fusions", "cnn,mean", "--models-subsets",
               f"lite0,{ALIAS}")  # fmt: skip
    launch = run_cell.launch

    def lose_the_device(folder, *rest, **more):
        if "mean__test" in str(folder):
            raise RuntimeError("lost the\ndevice")
        return launch(folder, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(run_cell, "launch", lose_the_device)
        code, out, err = ready(*command)
    assert code == 3
    assert err.splitlines()[-1].startswith("wsa bench: 4 of 4 runs failed. Fix the errors")
    assert "wsa encode --game Breakout --models lite0" in err
    assert "lost the device" in err and "Traceback" not in err
    error = tmp_path / "bench" / "runs" / f"Breakout__mean__{ALIAS}__1" / "error.txt"
    assert "in lose_the_device" in error.read_text()
    code, out, err = ready(*command, "--json")
    report = read_json(out)
    assert (code, report["runs"]) == (3, 1)
    assert [(f["cell"], f["kind"]) for f in report["failed"]] == [
        ("Breakout, cnn, lite0, seed 1", "not-encoded"),
        (f"Breakout, cnn, {ALIAS}, seed 1", "bad-option"),
        ("Breakout, mean, lite0, seed 1", "not-encoded"),
    ]
    assert err.splitlines()[-1].startswith("wsa bench: 3 of 4 runs failed; the others are done")
    assert not error.exists()
    results = read_csv(tmp_path / "bench" / "results.csv")
    assert [(r["fusion"], r["models"]) for r in results] == [("mean", ALIAS)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--games Pongg", "Did you mean Pong"),
        ("--seeds 1,two", "--seeds: 'two' is not a whole number"),
        ("--seeds 9999999999", "--seeds must be from 0"),
        ("--fusions wsaa", "--fusions wsaa: there is no such choice"),
        ("--fusions nature", "--fusions nature needs --online"),
        ("--algo ppo", "--algo ppo needs --online"),
        ("--episodes 0", "--episodes must be at least 1"),
        ("--updates 0", "--updates must be at least 1"),
        ("--models-subsets ,", "Name the models to fuse"),
        ("--models-subsets lite0+", "write models with + between them"),
        ("--models lite0", "Give --models or --models-subsets, not both"),
        ("--game Pong", "Unrecognized options: --game"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(ready, unchanged, options, message):
    with unchanged():
        outcome = ready(*BENCH, *ONE, *options.split())
    assert outcome.code == 2 and message in outcome.error, outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.slow
def test_a_bench_killed_six_times_ends_with_the_same_tables(ready, tmp_path):
    often = (*BENCH, *GRID, "--seeds", "1,2", "--updates", 400, "--save-frequency", 100)
    assert ready(*often, "--bench-dir", "whole").code == 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-m", "wsa.cli", *map(str, often)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        checkpoints = set((tmp_path / "bench").rglob("*.safetensors"))
        wait_until(
            lambda process=process, before=checkpoints: (
                process.poll() is not None
                or len({*(tmp_path / "bench").rglob("*.safetensors")} - before) > 4
            )
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert ready(*often).code == 0
    for name in ("results.csv", "table.csv"):
        assert (tmp_path / "bench" / name).read_text() == (tmp_path / "whole" / name).read_text()


@pytest.mark.slow
def test_later_runs_learn_from_the_same_data(wsa, two_models, tmp_path):
    shutil.copytree(two_models, tmp_path / "store")
    assert wsa(*BENCH, *ONE).code == 0
    more = ("--game", "Breakout", "--steps", 128, "--num-envs", 2, "--segment-steps", 32)
    assert wsa("collect", *more, "--max-episode-steps", 12).code == 0
    assert wsa(*BENCH, *TWO).code == 0
    one, two = (tmp_path / "bench" / "runs" / f"Breakout__wsa__{BOTH}__{seed}" for seed in (1, 2))
    assert read_config(one)["segments"] == read_config(two)["segments"]
    assert len(read_csv(tmp_path / "bench" / "results.csv")) == 2


@pytest.mark.slow
def test_online_and_end_to_end_runs_stand_in_one_bench(ready, tmp_path):
    outcome = ready(
        "bench", "--online", "--algo", "ppo", "--games", "Breakout", "--seeds", "1",
        "--fusions", "wsa,nature", "--models-subsets", ALIAS, "--total-timesteps", 16,
        "--num-envs", 2, "--num-steps", 4, "--num-minibatches", 2, "--update-epochs", 1,
        "--fusion-size", 8, "--max-episode-steps", 3, *EVALUATE,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "bench" / "curves-Breakout.png").exists()
    results = read_csv(tmp_path / "bench/results.csv")
    assert [(r["fusion"], r["models"], r["trained"]) for r in results] == [
        ("nature", "", "16"), ("wsa", ALIAS, "16"),
    ]  # fmt: skip


@pytest.mark.slow
def test_worker_processes_give_the_tables_of_one_process(ready, benched, tmp_path):
    outcome = ready(*BENCH, *GRID, "--scheduler", "local", "--workers", 2, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    for name in ("results.csv", "table.csv"):
        assert (tmp_path / "bench" / name).read_text() == (benched.folder / name).read_text()
