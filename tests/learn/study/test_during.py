"""Models added and dropped during training: orders, stages, networks after a change, and the report."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import msgspec
import numpy as np
import torch

from wsa import cli
from wsa.learn.bench import runner
from wsa.learn.bench.grid import RESULT, Result, Settings
from wsa.learn.bench.run_cell import Failure
from wsa.learn.configs.algorithms import CQLConfig
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.runs.folder import begin
from wsa.learn.runs.setup.make_run import make_offline
from wsa.learn.runs.train import train_stored
from wsa.learn.study.combine_plan import bench_options
from wsa.learn.study.games import PlayedGames
from wsa.learn.study.scaling import during, during_report
from wsa.learn.study.scaling.during import start_of
from wsa.learn.study.scaling.during_plan import orders, stages
from wsa.learn.training import checkpoint
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot


def make_stages(folder, models="a,b,c"):
    words = ["scale", "--during", "--models", models, "--games", "Pong", "--seeds", "1",
             "--updates", "10"]  # fmt: skip
    o = dataclasses.replace(cli.parse("study", words), study_dir=str(folder))
    bench = bench_options(o, fusions=("wsa",), bench_dir=str(folder))
    return stages(bench, Settings({"store": "/lab/wsa"}, {}))


def write_result(cell, mean):
    """Leave the result of a run, as if it had been trained and evaluated."""
    summary = {"return_mean": mean, "return_low": 0.0, "return_high": 9.0, "return_std": 1.0,
               "random_return_mean": 0.5, "random_return_std": 1.0, "episodes": 100}  # fmt: skip
    r = cell.request
    result = Result(r.game, "wsa", r.models, r.seed, cell.evaluation, summary)
    cell.folder.mkdir(parents=True)
    (cell.folder / RESULT).write_bytes(msgspec.json.encode(result))


def test_orders_have_each_model_once_in_each_place():
    assert len(set(orders("abc"))) == 6
    square = np.array(orders("abcd"))
    assert square.shape == (4, 4)
    for lines in (square, square.T):
        assert all(sorted(line) == list("abcd") for line in lines.tolist())


def test_orders_share_their_first_stages(tmp_path):
    plan = make_stages(tmp_path)
    ways = [stage.way for stage in plan]
    assert [ways.count(way) for way in ("add", "drop", "control")] == [15, 10, 4]
    assert len({stage.cell.folder for stage in plan}) == 29
    for stage in plan:
        updates = stage.cell.total
        assert updates == (30 if stage.way == "control" else 10)
        start = stage.cell.request.start
        if stage.before is None:
            assert not start.init and stage.cell.request.models == stage.present
        else:
            assert plan.index(stage.before) < plan.index(stage)
            assert start.init == str(stage.before.cell.folder)
            moved = set(stage.present) ^ set(stage.before.present)
            assert moved == set(start.add) | set(start.drop) == {stage.changed[-1]}
    assert next(str(s) for s in plan if s.present == ("a", "b", "c")) == "a + b + c"
    assert "all - b - a" in [str(s) for s in plan] and str(plan[-1]) == "c"
    assert len({str(stage.cell) for stage in plan}) == 29
    assert str(plan[-1].cell) == "Pong, never changed: c, seed 1"


def test_stages_after_a_failed_one_are_not_run(walk_url, tmp_path, monkeypatch, capsys):
    ran: list[str] = []

    def run_cells(o, cells):
        for cell in cells:
            ran.append(cell.label)
            if cell.label == "b":
                yield Failure(str(cell), "no-memory", "There is no memory.", 6)
            else:
                write_result(cell, 1.0)

    monkeypatch.setattr(runner, "run_cells", run_cells)
    monkeypatch.setattr(during, "_just_changed", lambda *_: PlayedGames((1.0, 2.0), 10, 3))
    words = ["study", "scale", "--during", "--models", "a,b", "--games", "Pong", "--seeds", "1",
             "--store", walk_url, "--study-dir", str(tmp_path / "st")]  # fmt: skip
    assert cli.main(words) == 6
    assert "a + b" in ran and "b + a" not in ran
    errors = capsys.readouterr().err
    assert "failed: Pong, b, seed 1: There is no memory.\n" in errors
    because = "not run, because the stage before it failed: Pong, b, seed 1\n"
    assert f"failed: Pong, b + a, seed 1: {because}" in errors
    assert cli.main([*words, "--json"]) == 6
    found = json.loads(capsys.readouterr().out)
    assert len(found["failed"]) == 2 and len(found["table"]) == found["runs"] - 2
    rows = {(row["way"], row["order"]): row for row in found["table"]}
    assert rows["add", "a + b"]["return_after_change"] == 1.5
    assert rows["control", "a"]["return_at_end"] == 1


def test_the_network_after_a_change_is_the_one_that_training_starts_with(kit, walk_url, tmp_path):
    snapshot = take_snapshot(open_store(walk_url))
    learner = CQLConfig(updates=10, batch_size=16, log_frequency=10)
    details: dict[str, Any] = {
        "network": NetworkConfig(FusionConfig(size=8), frame_stack=2, hidden=(8,)),
    }
    one, both = ([kit.key("lite0")], [kit.key("lite0"), kit.key("vit")])
    first = make_offline(snapshot, kit.GAME, one, "mean", 1, learner, **details)
    begin(tmp_path / "one", first)
    train_stored(tmp_path / "one", first)
    frozen = msgspec.structs.replace(learner, updates=1, learning_rate=1e-30)
    init = str(checkpoint.latest(tmp_path / "one" / "checkpoints"))
    second = make_offline(snapshot, kit.GAME, both, "mean", 1, frozen, init=init, **details)
    begin(tmp_path / "two", second)
    trained = train_stored(tmp_path / "two", second).network.state_dict()
    started = start_of(second).state_dict()
    assert started.keys() == trained.keys()
    for name, tensor in started.items():
        torch.testing.assert_close(tensor, trained[name], rtol=0, atol=1e-9)


def test_the_report_shows_returns_before_and_after_each_change(tmp_path):
    plan = make_stages(tmp_path, "a,b")
    changes = {}
    for i, stage in enumerate(plan[:-1]):  # The last is missing.
        write_result(stage.cell, float(i))
        if stage.before:
            changes[stage.cell.folder] = PlayedGames((-5.0, -7.0), 10, 3)
    bench = bench_options(cli.parse("study", ["scale", "--during", "--models", "a,b"]))
    text = during_report.write(tmp_path, bench, plan, changes, [])
    assert "9 of 10 runs are trained and evaluated." in text
    assert "1 of them plays no better than a random policy" in text
    adding = next(line for line in text.splitlines() if line.startswith("| a + b "))
    assert [cell.strip() for cell in adding.split("|")[1:-1]] == [
        "a + b", "20", "0", "-6", "1", "1",
    ]  # fmt: skip
    page = (tmp_path / "index.html").read_text()
    assert page.count("Shock and recovery") == 4  # Two figures, also for screen readers.
