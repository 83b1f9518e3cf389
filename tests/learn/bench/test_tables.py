"""Tables and files of a bench, from invented results."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from command_kit import read_csv

from wsa.learn.bench import report as bench_report
from wsa.learn.bench.grid import RESULT, Result
from wsa.learn.bench.report import ALL, RUN_COLUMNS, Method, tabulate
from wsa.learn.configs.evaluation import EvaluationSettings
from wsa.learn.evaluation.scores import human_normalized, interquartile_mean, stratified_interval

EVALUATION = EvaluationSettings(episodes=100, epsilon=0.001, seed=10_000, num_envs=4)
OPTIONS = {"store": "/lab/wsa", "algo": "cql", "updates": 7, "hidden": ["256"]}


def make_result(game, seed, mean, fusion="wsa", evaluation=EVALUATION):
    summary: dict[str, Any] = dict.fromkeys(RUN_COLUMNS, 0)
    summary |= {"return_mean": mean, "random_return_mean": -20.0}
    summary["parameters"] = 1000 + len(game)
    return Result(game, fusion, ("lite0", "lite1"), seed, evaluation, summary)


SCORES = {"Breakout": [30.0, 8.0, 12.0], "Pong": [-3.0, 4.0, 9.0], "Qbert": [900.0, 200.0, 4000.0]}


def make_results():
    return [make_result(game, seed, x) for game, by in SCORES.items() for seed, x in enumerate(by)]


def test_a_method_is_summarized_by_game_and_over_all_games():
    *by_game, overall = tabulate(make_results())
    assert [(line.game, line.seeds) for line in by_game] == [(game, 3) for game in SCORES]
    for line in by_game:
        returns = SCORES[line.game]
        assert line.mean == pytest.approx(np.mean(returns))
        assert line.std == pytest.approx(np.std(returns, ddof=1))
        assert line.normalized == pytest.approx(
            human_normalized(line.game, float(np.mean(returns)))
        )
    table = np.array([[human_normalized(g, SCORES[g][s]) for g in SCORES] for s in range(3)])
    assert overall.game == ALL and (overall.games, overall.seeds) == (3, 3)
    assert overall.normalized == pytest.approx(interquartile_mean(table))
    assert overall.interval == stratified_interval(table)


def test_each_method_has_its_lines_and_one_run_has_no_spread():
    lines = list(tabulate([*make_results(), make_result("Pong", 0, 1.0, "mean")]))
    assert [line.method.fusion for line in lines] == ["wsa"] * 4 + ["mean"] * 2
    assert (lines[4].mean, lines[4].std, lines[4].seeds) == (1.0, None, 1)
    assert str(lines[4].method) == "mean lite0+lite1"
    assert str(Method("nature", ())) == "nature"


def test_a_method_has_the_parameters_of_its_largest_network():
    lines = list(tabulate(make_results()))
    assert [line.parameters for line in lines] == [1008, 1004, 1004 + 1, 1008]
    older = make_results()
    for one in older:
        del one.summary["parameters"]  # Older versions did not count them.
    assert {line.parameters for line in tabulate(older)} == {None}


def test_the_aggregate_is_over_complete_seeds_and_games_with_a_human_score():
    incomplete = [r for r in make_results() if (r.game, r.seed) != ("Pong", 1)]
    *_, overall = tabulate([*incomplete, make_result("Adventure", 0, 5.0)])
    assert (overall.games, overall.seeds) == (3, 2)
    *_, raw, empty = tabulate([make_result("Adventure", 0, 5.0)])
    assert (raw.mean, raw.normalized) == (5.0, None)
    assert (empty.games, empty.seeds, empty.interval) == (0, 0, None)


def test_the_files_of_a_bench(tmp_path):
    other = msgspec.structs.replace(EVALUATION, episodes=10)
    first = make_results()
    del first[0].summary["parameters"]  # As older versions write it.
    first[1].summary["updates"] = 50 + first[1].summary.pop("trained")
    first[1].summary["human_normalised"] = 0.5 + first[1].summary.pop("human_normalized")
    runs = [
        *first,
        make_result("Pong", 9, 99.0, evaluation=other),
        make_result("Adventure", 0, 5.0, "lin"),
    ]
    for number, run in enumerate(runs):
        folder = tmp_path / "runs" / str(number)
        folder.mkdir(parents=True)
        (folder / RESULT).write_bytes(msgspec.json.encode(run))
    (tmp_path / "runs" / "begun").mkdir()
    (tmp_path / "runs" / "0" / "metrics.jsonl").write_text(
        '{"step": 3, "time": 1, "charts/episodic_return": 2.5, "losses/td_loss": 1}\n'
        '{"step": 4, "validation/td_error": null, "wsa/weight/lite0": 0.5}\n'
    )
    report = bench_report.write(tmp_path, EVALUATION, "/lab/wsa", ["--updates 7"])
    assert len(report.results) == len(runs) - 1
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in report.markdown.splitlines()]
    assert ["method", "Adventure", "Breakout", "Pong", "Qbert"] in cells
    assert ["wsa lite0+lite1", "", "16.7 +- 11.7 (3)", "3.33 +- 6.03 (3)"] in [c[:4] for c in cells]
    assert ["lin lite0+lite1", "5 (1)", "", "", ""] in cells
    assert any(c[-2:] == ["games x seeds", "parameters"] for c in cells)
    assert any(c[:1] == ["wsa lite0+lite1"] and c[-1] == "1,008" for c in cells)
    assert "`wsa learn` with --updates 7; store /lab/wsa" in report.markdown
    for name, count in (("results.csv", 10), ("table.csv", 6), ("curves.csv", 2)):
        rows = read_csv(tmp_path / name)
        assert len(rows) == count
        if name == "results.csv":
            assert sorted(row["trained"] for row in rows) == ["0"] * 9 + ["50"]
            assert [row["human_normalized"] for row in rows if row["trained"] == "50"] == ["0.5"]
    assert [(r["step"], r["scalar"], r["value"]) for r in rows] == [
        ("3", "charts/episodic_return", "2.5"), ("4", "wsa/weight/lite0", "0.5"),
    ]  # fmt: skip
    assert [path.name for path in tmp_path.glob("*.png")] == ["curves-Breakout.png"]
    before = next(tmp_path.glob("*.png")).read_bytes()
    (tmp_path / "runs" / "1" / "metrics.jsonl").write_text(
        '{"step": 4, "time": 1, "eval/episodic_return": 1.5, "eval/backbone_passes": 3}\n'
    )
    # Evaluations during training are drawn instead of training returns.
    bench_report.write(tmp_path, EVALUATION, "/lab/wsa", ["--updates 7"])
    assert next(tmp_path.glob("*.png")).read_bytes() != before
    rows = read_csv(tmp_path / "curves.csv")
    assert ("eval/episodic_return", "1.5") in [(r["scalar"], r["value"]) for r in rows]
    summary = report.summary([])
    assert summary["runs"] == 10 and summary["table"][1]["human_normalized"] is None


def test_a_game_without_a_common_stretch_of_steps_has_no_empty_figure(tmp_path):
    for number, run in enumerate(make_results()[:2]):
        folder = tmp_path / "runs" / str(number)
        folder.mkdir(parents=True)
        (folder / RESULT).write_bytes(msgspec.json.encode(run))
        line = {"step": 10 + 500 * number, "charts/episodic_return": 2.5}
        (folder / "metrics.jsonl").write_bytes(msgspec.json.encode(line))
    bench_report.write(tmp_path, EVALUATION, "/lab/wsa", [])
    assert (tmp_path / "curves-Breakout.png").exists()  # It shows the runs themselves.
    assert 'aria-label="Breakout"' not in (tmp_path / "report.html").read_text()
