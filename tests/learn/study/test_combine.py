"""The grid of `wsa study combine`, and its report of invented results."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import msgspec
import numpy as np
import pytest
from command_kit import options, read_csv

from wsa import cli
from wsa.learn.bench.grid import RESULT, Result, Settings, cells
from wsa.learn.bench.report import complete
from wsa.learn.bench.run_cell import Failure
from wsa.learn.evaluation.scores import human_normalized
from wsa.learn.study import combine_plan, combine_report
from wsa.learn.study.combine_plan import Plan, Planned, bench_options, method_of, untrained
from wsa.learn.study.combine_report import EvaluatedRun
from wsa.learn.study.games import better_than_random
from wsa.learn.study.output import PAGE


def parse(*flags):
    return cli.parse("study", ["combine", "--models", "palette,vos", *flags])


def make_plan(tmp_path, *flags):
    """The grid, without a store."""
    o = dataclasses.replace(parse(*flags), study_dir=str(tmp_path))
    bench = bench_options(o)
    settings = Settings({"store": "/lab/wsa"}, {})
    runs = [
        Planned(cell, method_of(cell.request), None, 1000 + i)
        for i, cell in enumerate(cells(bench, settings))
    ]
    return Plan(bench, settings, tuple(runs), {"Pong, cnn": "every model gives a vector"})


def write_result(run, mean, std=1.0):
    """Write a run's returns of 100 games; those of the random policy are -20 +- 1."""
    r = run.cell.request
    summary = {
        "updates": 7, "episodes": 100, "return_mean": mean, "return_std": std,
        "return_low": mean - 1, "return_high": mean + 1, "random_return_mean": -20.0,
        "random_return_std": 1.0, "human_normalized": human_normalized(r.game, mean),
    }  # fmt: skip
    run.cell.folder.mkdir(parents=True)
    result = Result(r.game, r.fusion, r.models, r.seed, run.cell.evaluation, summary)
    (run.cell.folder / RESULT).write_bytes(msgspec.json.encode(result))


def test_the_grid_has_the_papers_methods_and_controls(tmp_path):
    plan = make_plan(tmp_path, "--games", "Pong", "--seeds", "1")
    assert [run.method for run in plan.runs] == [
        "wsa", "lin", "fix", "cnn", "mix", "res", "dpa", "uniform", "unshared", "moe",
        "single palette", "single vos",
    ]  # fmt: skip
    online = make_plan(tmp_path, "--games", "Pong", "--seeds", "1", "--online", "--algo", "ppo")
    assert online.runs[-1].method == "pixels"
    assert len(make_plan(tmp_path, "--games", "Pong,Breakout").runs) == 2 * 3 * 12
    # With a model as context, the mean is a method of its own.
    context = make_plan(tmp_path, "--games", "Pong", "--seeds", "1", "--context", "vos")
    assert "mean" in [run.method for run in context.runs]


def test_untrained_networks_are_offered_for_models_with_weights():
    assert untrained(("palette", "vos")) == ("palette", "vos:random")
    assert untrained(("palette", "objects")) == () == untrained(("vos:random", "palette"))


def test_untrained_models_are_decoded_and_a_trained_context_too(tmp_path, monkeypatch):
    def planned(cell, method, *_):
        return Planned(cell, method, None, None)

    monkeypatch.setattr(combine_plan, "_planned", planned)
    store: Any = types.SimpleNamespace(backend=types.SimpleNamespace(url="s"), games=())
    flags = ("--games", "Pong", "--seeds", "1", "--context", "vos", "--decode", "vos")
    o = dataclasses.replace(parse(*flags), study_dir=str(tmp_path))
    decoded = {
        run.method: run.cell.request.method.decode
        for run in combine_plan.plan(o, store, "cpu").runs
    }
    assert decoded["wsa"] == decoded["single vos"] == ("vos",)
    assert decoded["single palette"] == ()
    assert decoded["wsa, untrained models"] == ("vos", "vos:random")


def test_quick_studies_are_short(tmp_path):
    quick = bench_options(parse("--quick", "--seeds", "4,5"))
    assert (quick.seeds, quick.episodes) == ((4,), combine_plan.QUICK_GAMES)
    assert quick.algorithm.updates == combine_plan.QUICK["updates"]  # type: ignore[attr-defined]
    assert bench_options(parse("--quick", "--updates", "7")).algorithm.updates == 7  # type: ignore[attr-defined]
    online = bench_options(parse("--quick", "--online", "--algo", "dqn"))
    assert online.algorithm.total_timesteps == combine_plan.QUICK["total_timesteps"]  # type: ignore[attr-defined]
    assert options("bench").episodes == bench_options(parse()).episodes == 100


def test_runs_beat_the_random_policy_by_their_standard_errors(tmp_path):
    plan = make_plan(tmp_path, "--games", "Pong", "--seeds", "1")
    # Standard errors are 0.1005 each, 0.142 of the difference: the threshold is 1.972 x 0.142 = 0.28.
    for run, mean in zip(plan.runs, (-19.71, -19.73, -21.0), strict=False):
        write_result(run, mean)
    runs = [EvaluatedRun(r.method, r.cell.result(), 1, r.cell.folder) for r in plan.runs[:3]]  # type: ignore[arg-type]
    assert [run.beats_random for run in runs] == [True, False, False]
    # Few games need a larger difference, and one game shows nothing.
    summary = runs[0].result.summary
    assert not better_than_random({**summary, "return_mean": -18.6, "episodes": 4})
    assert better_than_random({**summary, "return_mean": -17.0, "episodes": 4})
    assert not better_than_random({**summary, "return_mean": 21.0, "episodes": 1})
    # Without a spread, any positive difference counts.
    equal = {**summary, "return_std": 0.0, "random_return_std": 0.0}
    assert better_than_random(equal)
    assert not better_than_random({**equal, "return_mean": -20.0})


def test_only_seeds_that_played_all_games_count():
    raw = {"Pong": {1: 1.0, 2: 2.0, 3: 3.0}, "Breakout": {3: 30.0, 1: 10.0}}
    np.testing.assert_array_equal(complete(raw, ["Pong", "Breakout"]), [[1, 10], [3, 30]])
    assert complete(raw, ["Pong", "Qbert"]).size == 0 == complete({}, []).size


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two games and three seeds, with a failed and a missing run."""
    folder = tmp_path_factory.mktemp("combine")
    plan = make_plan(folder, "--games", "Pong,Breakout")
    quality = {"wsa": 8.0, "lin": 3.0, "uniform": -30.0}
    for run in plan.runs:
        if run.method in quality and (run.method, run.cell.request.seed) != ("lin", 3):
            write_result(run, quality[run.method] + run.cell.request.seed)
    failed = [Failure("Pong, fix, seed 1", "no-memory", "It needs 9 GB. Take fewer models.", 6)]
    written = combine_report.write(folder, plan, failed)
    return folder, written.markdown, written.table


def test_the_report_has_the_results_and_names_missing_runs(report):
    folder, text, table = report
    assert "16 of 72 runs are trained and evaluated." in text
    assert "Pong, fix, seed 1" in text and "It needs 9 GB." in text
    assert "Pong, cnn" in text and "every model gives a vector" in text
    assert "| 3 of 3 " in text  # Runs of uniform no better than random.
    rows = read_csv(folder / "combine.csv")
    assert len(rows) == 16
    assert {r["method"]: r["better_than_random"] for r in rows} == {
        "wsa": "True", "lin": "True", "uniform": "False",
    }  # fmt: skip
    by_name = {line["method"]: line for line in table}
    assert by_name["moe"]["runs"] == 0 and by_name["moe"]["iqm"] is None
    # wsa has 9, 10, 11 and lin 4, 5: wsa wins every pair, also against uniform.
    assert by_name["lin"]["against"] == by_name["uniform"]["against"] == (1, 1, 1)
    assert by_name["wsa"]["against"] is None and by_name["uniform"]["no_better"] == 6
    low, high = (human_normalized(g, x) for g, x in (("Breakout", 9.0), ("Pong", 11.0)))
    assert low and high and low < by_name["wsa"]["iqm"].value < high


def test_the_page_has_its_figures(report):
    folder, *_ = report
    page = (folder / PAGE).read_text()
    for title in ("Interquartile mean", "Score against parameters", "Performance profile",
                  "Probability that wsa is better", "Raw return: Pong"):  # fmt: skip
        assert title in page
    assert len(page) < 300_000
