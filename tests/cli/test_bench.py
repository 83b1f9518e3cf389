"""`wsa bench`: the grid it plans, what it runs, what it leaves, and that it goes on where it stopped."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsa.learn.bench import run_cell
from wsa.learn.training import checkpoint

RESNET, VIT = "test_resnet_r160_in1k", "test_vit_r160_in1k"
SHORT = ("--max-episode-steps", 12)  # As the store that is given.
LEARN = ("--batch-size", 4, "--fusion-size", 8, "--frame-stack", 1, "--validation-fraction", 0,
         "--log-frequency", 1)  # fmt: skip
JUDGE = ("--episodes", 2, "--epsilon", 0.5, "--eval-num-envs", 1)
BENCH = ("bench", "--games", "Breakout", "--updates", 6, *LEARN, *JUDGE)
GRID = ("--seeds", "1,2", "--fusions", "wsa,single", "--models-subsets", f"{RESNET}+{VIT}")


@pytest.fixture
def ready(wsa, two_models, monkeypatch):
    """`wsa` on that store."""
    monkeypatch.setenv("WSA_STORE", str(two_models))
    return wsa


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_grid_is_run_once_and_tabulated(ready, tmp_path, unchanged):
    planned = json.loads(ready(*BENCH, *GRID, "--dry-run", "--json").out)
    assert (planned["runs"], planned["left"], planned["updates_left"]) == (6, 6, 36)
    assert not (tmp_path / "bench").exists()
    outcome = ready(*BENCH, *GRID)
    assert outcome.code == 0, outcome.err
    bench = tmp_path / "bench"
    runs = rows(bench / "results.csv")
    assert [(r["fusion"], r["models"], r["seed"]) for r in runs] == [
        (fusion, models, seed)
        for fusion, models in (("single", RESNET), ("single", VIT), ("wsa", f"{RESNET}+{VIT}"))
        for seed in ("1", "2")
    ]  # fmt: skip
    assert {(r["game"], r["episodes"], r["updates"]) for r in runs} == {("Breakout", "2", "6")}
    sizes = {(r["fusion"], r["models"]): int(r["parameters"]) for r in runs}
    assert sizes["wsa", f"{RESNET}+{VIT}"] > max(sizes["single", RESNET], sizes["single", VIT]) > 0
    for run in runs:
        folder = bench / "runs" / f"Breakout__{run['fusion']}__{run['models']}__{run['seed']}"
        played = [r for r in rows(folder / "eval.csv") if r["policy"] == "run"]
        mean = sum(float(r["return"]) for r in played) / len(played)
        assert float(run["return_mean"]) == mean
        assert float(run["human_normalised"]) == pytest.approx((mean - 1.7) / (30.5 - 1.7))
        assert (folder / "eval_weights.npz").exists() == (run["fusion"] == "wsa")
    table = rows(bench / "table.csv")
    assert [(r["fusion"], r["models"], r["game"], r["seeds"]) for r in table[:2]] == [
        ("single", RESNET, "Breakout", "2"), ("single", RESNET, "all games", "2"),
    ]  # fmt: skip
    assert all(float(r["low"]) <= float(r["human_normalised"]) <= float(r["high"])
               for r in table if r["game"] == "all games")  # fmt: skip
    assert outcome.out == (bench / "table.md").read_text() + "\n"
    assert "--updates 6" in outcome.out and f"| wsa {RESNET}+{VIT} |" in outcome.out
    curves = rows(bench / "curves.csv")
    steps = [r["step"] for r in curves if r["scalar"] == "wsa/weight_entropy" and r["seed"] == "1"]
    assert steps == [str(n) for n in range(1, 7)]
    with unchanged():
        again = ready(*BENCH, *GRID, "--dry-run", "--json")
    assert json.loads(again.out)["left"] == 0
    before = {p: p.read_bytes() for p in bench.rglob("*") if p.is_file()}
    assert ready(*BENCH, *GRID).code == 0
    assert {p: p.read_bytes() for p in bench.rglob("*") if p.is_file()} == before


ONE = ("--seeds", "1", "--fusions", "wsa", "--models-subsets", f"{RESNET}+{VIT}")


def test_a_run_that_was_killed_goes_on_to_the_same_result(ready, tmp_path, monkeypatch):
    often = (*BENCH, *ONE, "--save-frequency", 2)
    assert ready(*often, "--bench-dir", "whole").code == 0
    save = checkpoint.save

    class Killed(BaseException):
        pass

    def dying(folder, step, *rest, **more):
        save(folder, step, *rest, **more)
        if step == 4:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "save", dying)
        ready(*often)
    planned = json.loads(ready(*often, "--dry-run", "--json").out)
    assert (planned["left"], planned["updates_left"]) == (1, 2)
    assert planned["grid"][0]["updates"] == "4 of 6"
    evaluate = run_cell.evaluate_run

    def interrupted(*arguments, **options):
        evaluate(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_cell, "evaluate_run", interrupted)
        assert ready(*often).code == 130
    planned = json.loads(ready(*often, "--dry-run", "--json").out)
    assert (planned["left"], planned["updates_left"]) == (1, 0)
    assert ready(*often).code == 0
    for name in ("results.csv", "table.csv", "table.md"):
        whole = (tmp_path / "whole" / name).read_text()
        assert (tmp_path / "bench" / name).read_text() == whole


@pytest.mark.slow
def test_a_bench_that_is_killed(ready, tmp_path):
    often = (*BENCH, *GRID, "--updates", 400, "--save-frequency", 100)
    assert ready(*often, "--bench-dir", "whole").code == 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-m", "wsa.cli", *map(str, often)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        before, made = set((tmp_path / "bench").rglob("*.safetensors")), set()
        while process.poll() is None and len(made) <= 4:
            made |= {*(tmp_path / "bench").rglob("*.safetensors")} - before
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert ready(*often).code == 0
    for name in ("results.csv", "table.csv"):
        assert (tmp_path / "bench" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_run_that_fails_is_named_and_the_rest_is_done(ready, tmp_path, monkeypatch):
    command = (*BENCH, "--seeds", "1", "--fusions", "cnn,mean", "--models-subsets",
               f"lite0,{RESNET}")  # fmt: skip
    train = run_cell.launch

    def out_of_memory(folder, *rest, **more):
        if "mean__test" in str(folder):
            raise RuntimeError("out of\nmemory")
        return train(folder, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(run_cell, "launch", out_of_memory)
        code, out, err = ready(*command, "--seeds", "1,2", "--json")
    report = json.loads(out)
    assert (code, report["runs"]) == (3, 0)
    assert [(f["cell"], f["kind"]) for f in report["failed"]] == [
        ("Breakout, cnn, lite0, seed 1", "not-encoded"),
        ("Breakout, cnn, lite0, seed 2", "not-encoded"),
        (f"Breakout, cnn, {RESNET}, seed 1", "bad-option"),
        (f"Breakout, cnn, {RESNET}, seed 2", "bad-option"),
        ("Breakout, mean, lite0, seed 1", "not-encoded"),
        ("Breakout, mean, lite0, seed 2", "not-encoded"),
        (f"Breakout, mean, {RESNET}, seed 1", "RuntimeError"),
        (f"Breakout, mean, {RESNET}, seed 2", "RuntimeError"),
    ]
    assert err.splitlines()[-1].startswith("wsa bench: 8 of 8 runs failed; the others are done.")
    assert "wsa encode --game Breakout --models lite0" in err
    assert "out of memory" in err and "Traceback" not in err
    error = tmp_path / "bench" / "runs" / f"Breakout__mean__{RESNET}__1" / "error.txt"
    assert "in out_of_memory" in error.read_text()
    code, out, err = ready(*command)
    assert code == 3 and err.splitlines()[-1].startswith("wsa bench: 3 of 4 runs failed")
    assert not error.exists()
    assert [(r["fusion"], r["models"]) for r in rows(tmp_path / "bench" / "results.csv")] == [
        ("mean", RESNET)
    ]


def test_other_games_to_judge_by_train_nothing_anew(ready, tmp_path, unchanged):
    assert ready(*BENCH, *ONE).code == 0
    # Runs of other options are not put beside each other.
    with unchanged():
        outcome = ready(*BENCH, *ONE, "--updates", 7)
    assert outcome.code == 4
    assert outcome.error == (
        "wsa bench: bench was started with --updates 6, not 7, so the runs would not be "
        "comparable. Use the same value, or another --bench-dir."
    )
    (folder,) = (tmp_path / "bench" / "runs").iterdir()
    before = {p: p.read_bytes() for p in (folder / "checkpoints").iterdir()}
    assert ready(*BENCH, *ONE, "--episodes", 3).code == 0
    assert {p: p.read_bytes() for p in (folder / "checkpoints").iterdir()} == before
    assert [r["episodes"] for r in rows(tmp_path / "bench" / "results.csv")] == ["3"]
    assert [r["policy"] for r in rows(folder / "eval.csv")] == [
        *["run"] * 2, *["random"] * 2, "run", "random",
    ]  # fmt: skip  # Of the three games two are those that were there.


@pytest.mark.slow
def test_later_runs_learn_from_the_same_data(wsa, two_models, tmp_path):
    import shutil

    shutil.copytree(two_models, tmp_path / "store")
    assert wsa(*BENCH, *ONE).code == 0
    more = ("--game", "Breakout", "--steps", 128, "--num-envs", 2, "--segment-steps", 32, *SHORT)
    assert wsa("collect", *more).code == 0
    assert wsa(*BENCH, *ONE, "--seeds", "2").code == 0
    one, two = (
        json.loads((tmp_path / "bench" / "runs" / name / "config.json").read_text())
        for name in (f"Breakout__wsa__{RESNET}+{VIT}__{seed}" for seed in (1, 2))
    )
    assert one["segments"] == two["segments"]
    assert len(rows(tmp_path / "bench" / "results.csv")) == 2


@pytest.mark.slow
def test_online_and_end_to_end(ready, tmp_path):
    outcome = ready(
        "bench", "--online", "--algo", "ppo", "--games", "Breakout", "--seeds", "1",
        "--fusions", "wsa,nature", "--models-subsets", RESNET, "--total-timesteps", 16,
        "--num-envs", 2, "--num-steps", 4, "--num-minibatches", 2, "--update-epochs", 1,
        "--fusion-size", 8, "--max-episode-steps", 3, *JUDGE,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "bench" / "curves-Breakout.png").read_bytes().startswith(b"\x89PNG")
    assert [(r["fusion"], r["models"], r["updates"]) for r in rows(tmp_path / "bench/results.csv")] \
        == [("nature", "", "16"), ("wsa", RESNET, "16")]  # fmt: skip


@pytest.mark.slow
def test_runs_on_workers_are_those_of_one_process(ready, tmp_path):
    assert ready(*BENCH, *GRID, "--bench-dir", "one").code == 0
    outcome = ready(*BENCH, *GRID, "--scheduler", "local", "--workers", 2, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    for name in ("results.csv", "table.csv"):
        assert (tmp_path / "bench" / name).read_text() == (tmp_path / "one" / name).read_text()


@pytest.mark.parametrize(
    ("options", "says"),
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
def test_what_cannot_be_benched_is_refused_in_a_line(ready, unchanged, options, says):
    with unchanged():
        outcome = ready(*BENCH, *ONE, *options.split())
    assert outcome.code == 2 and says in outcome.error, outcome.err
    assert outcome.err.count("\n") == 1
