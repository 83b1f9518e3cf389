"""The grid of a bench, its shared settings, and its runs on Dask workers; `tests/cli/test_bench.py` trains."""

from __future__ import annotations

import _thread
import logging
import shutil
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import command_kit
import pytest
from distributed import KilledWorker
from learn_kit import add_play

from wsa.encode.jobs.cluster import connect
from wsa.learn.bench import grid, run_cell, runner
from wsa.learn.bench.run_cell import Failure
from wsa.learn.training import interrupt
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

SETTINGS = grid.Settings({"store": "/lab/wsa"}, {"Pong": ("a", "b")})


def options(**flags):
    parsed = command_kit.options("bench", **{"games": ("Pong",), "seeds": (1,), **flags})
    return parsed


def plan(**flags):
    return grid.cells(options(**flags), SETTINGS)


def test_every_game_method_and_seed_is_a_run():
    cells = plan(
        games=("Pong", "Breakout"), seeds=(1, 2, 1), fusions=("wsa", "single", "nature"),
        online=True, algo="ppo",
        models_subsets=("lite0+lite1", "lite0"),
    )  # fmt: skip
    methods = [("wsa", ("lite0", "lite1")), ("wsa", ("lite0",)), ("single", ("lite0",)),
               ("single", ("lite1",)), ("nature", ())]  # fmt: skip
    assert [(c.request.game, (c.request.fusion, c.request.models), c.request.seed)
            for c in cells] == [(game, method, seed) for game in ("Pong", "Breakout")
                                for method in methods for seed in (1, 2)]  # fmt: skip
    assert len({cell.folder for cell in cells}) == len(cells)
    assert cells[0].folder.name == "Pong__wsa__lite0+lite1__1"
    assert {cell.segments for cell in cells if cell.request.game == "Pong"} == {("a", "b")}
    assert all(cell.request.store == "/lab/wsa" and cell.folder.is_absolute() for cell in cells)
    assert str(cells[0]) == "Pong, wsa, lite0+lite1, seed 1"


def test_a_run_has_the_options_that_its_fusion_uses():
    shared: dict[str, Any] = {
        "online": True, "algo": "ppo", "total_timesteps": 2048, "context": "ae",
        "weight_entropy_coef": 0.5, "parameters": 99,
    }  # fmt: skip
    cells = plan(fusions=("wsa", "mean", "lin", "nature"), models=("vit",), **shared)
    requests: Any = [cell.request for cell in cells]
    assert [r.method.context for r in requests] == ["ae", "ae", "mean", "mean"]
    assert [r.algorithm.weight_entropy_coef for r in requests] == [0.5, 0, 0, 0]
    assert [r.data.parameters for r in requests] == [0, 0, 0, 99]
    assert {cell.total for cell in cells} == {2048}
    assert requests[3].models == () and not hasattr(requests[3].network, "fusion")


def test_options_of_live_models_serve_the_evaluation():
    """An offline run plays no other games, unless --eval-frequency asks for some."""
    live: dict[str, Any] = {"weights": ("vit=/w",), "engine": "torch", "models": ("vit",)}
    ways: list[dict[str, Any]] = [{}, {"eval_frequency": 5}, {"online": True, "algo": "ppo"}]
    for way in ways:
        o = options(fusions=("wsa",), **live, **way)
        grid.check(o)
        [cell] = grid.cells(o, SETTINGS)
        assert cell.request.live.engine == "torch"
    with pytest.raises(UsageError, match="--eval-episodes is an option of --eval-frequency"):
        grid.check(options(models=("vit",), eval_episodes=30))


def test_a_bench_keeps_its_shared_settings(tmp_path):
    """Also those that some of its runs do not use, and the output of the models."""
    snapshot = take_snapshot(open_store(str(tmp_path / "store"), create=True))
    ppo: dict[str, Any] = {"online": True, "algo": "ppo", "bench_dir": str(tmp_path / "bench")}

    def begin(**flags):
        o = options(**ppo, **flags)
        grid.write(o, grid.shared_settings(o, snapshot))

    begin(models=("a",), fusions=("wsa", "nature"), hidden=(128,), output="pooled")
    begin(fusions=("nature",), output="pooled")
    for change in ({"hidden": (256,)}, {"hidden": (128,), "output": "cls"}):
        with pytest.raises(ConflictError, match="was started with"):
            begin(**{"models": ("a",), "fusions": ("wsa",), "output": "pooled", **change})
    begin(models=("a",), fusions=("mean",), hidden=(128,), output="pooled")


def test_all_runs_of_a_bench_learn_from_the_same_encoded_segments(breakout, tmp_path):
    shutil.copytree(breakout.backend.url, tmp_path / "store")
    first, second = breakout.models
    longer = add_play(open_store(str(tmp_path / "store")), [first])
    o = options(
        games=("Breakout",), models_subsets=(first, f"{first}+{second}"), encoded_only=True,
        bench_dir=str(tmp_path / "bench"),
    )  # fmt: skip
    settings = grid.shared_settings(o, longer)
    whole = {m.segment for m in breakout.segments("Breakout")}
    assert set(settings.segments["Breakout"]) == whole < {m.segment for m in longer.segments()}
    cells = grid.cells(o, settings)
    assert len(cells) > 2 and {frozenset(cell.segments) for cell in cells} == {frozenset(whole)}
    grid.write(o, settings)
    later = add_play(open_store(str(tmp_path / "store")), [first, second])
    assert grid.shared_settings(o, later).segments == settings.segments


def test_a_bench_from_before_clipping_stays_unclipped(tmp_path):
    snapshot = take_snapshot(open_store(str(tmp_path / "store"), create=True))
    o = options(models=("a",), bench_dir=str(tmp_path / "bench"))
    before = grid.shared_settings(o, snapshot)
    del before.options["clip_embeddings"]
    grid.write(o, before)
    with pytest.raises(ConflictError, match="was started with --clip-embeddings 0"):
        grid.shared_settings(o, snapshot)
    unclipped = options(models=("a",), bench_dir=str(tmp_path / "bench"), clip_embeddings=0.0)
    assert grid.shared_settings(unclipped, snapshot).options["clip_embeddings"] == 0
    # A bench of pixels alone names neither, and may gain runs on embeddings.
    playing: dict[str, Any] = {"online": True, "algo": "ppo", "bench_dir": str(tmp_path / "pixels")}
    pixels = options(fusions=("nature",), **playing)
    grid.write(pixels, grid.shared_settings(pixels, snapshot))
    both = options(models=("a",), fusions=("nature", "wsa"), **playing)
    assert grid.shared_settings(both, snapshot).options["clip_embeddings"] == 5


def test_a_bench_may_have_recorded_an_option_under_its_old_name(tmp_path):
    snapshot = take_snapshot(open_store(str(tmp_path / "store"), create=True))

    def settings(normalizer):
        bench = str(tmp_path / "bench")
        o = options(models=("a",), normalizer=normalizer, bench_dir=bench)
        return o, grid.shared_settings(o, snapshot)

    o, begun = settings("sigmoid")
    begun.options["normaliser"] = begun.options.pop("normalizer")
    grid.write(o, begun)
    with pytest.raises(ConflictError, match="was started with --normalizer sigmoid, not softmax"):
        settings("softmax")
    assert "normaliser" not in settings("sigmoid")[1].options


def test_a_table_names_the_changed_options():
    assert grid.changed(options(models=("a",))) == []
    changed = grid.changed(options(models=("a",), fusion_preset="thesis", updates=7))
    assert changed == ["--fusion-preset thesis", "--updates 7"]


def test_folders_of_odd_model_names_are_plain_and_distinct():
    models = ("mod:net", "mod/net", "mod_net", "x" * 300, "x" * 301)
    names = [cell.folder.name for cell in plan(fusions=("single",), models=models)]
    assert len(set(names)) == len(models) and max(map(len, names)) < 130
    assert not any(set(name) & set(":/ ") for name in names)
    assert "Pong__single__mod_net__1" in names


def test_a_run_whose_worker_dies_is_tried_three_times(monkeypatch):
    deaths = {"mean": 2, "uniform": 3}
    # Dask copies a test's function with what it refers to, but not a module.
    tries = Counter()
    monkeypatch.setattr(runner, "tries", tries, raising=False)

    def attempt(cell, bench):
        fusion = cell.request.fusion
        runner.tries[fusion] += 1  # type: ignore[attr-defined]
        if runner.tries[fusion] <= deaths.get(fusion, 0):  # type: ignore[attr-defined]
            worker: Any = SimpleNamespace(address="tcp://worker")
            raise KilledWorker("attempt", worker, 0)
        if fusion == "lin":
            raise ModuleNotFoundError("No module named 'wsa'")
        return Failure(str(cell), "no-memory", "x", 6) if fusion == "fix" else None

    monkeypatch.setattr(runner, "attempt_on_worker", attempt)
    cells = plan(fusions=("wsa", "mean", "uniform", "lin", "fix"), models=("vit",))
    o = options(json=True, device="cpu")
    connections: list[dict[str, Any]] = []

    def connect_and_note(*_, **settings):
        connections.append(settings)
        return connect_inproc(**settings)

    monkeypatch.setattr(runner, "connect", connect_and_note)
    failures = [f for f in runner._run_on_workers(o, cells) if f]
    assert tries == {"wsa": 1, "mean": 3, "uniform": 3, "lin": 1, "fix": 1}
    assert {f.cell.split(", ")[1]: (f.kind, f.exit_code) for f in failures} == {
        "lin": ("unavailable", 6), "fix": ("no-memory", 6), "uniform": ("worker-died", 6),
    }  # fmt: skip
    assert connections == [{"threads": 1, "imports": runner._IMPORTS}]
    assert list(runner._run_on_workers(o, [])) == [] and len(connections) == 1


def test_an_interrupted_bench_saves_the_run_in_progress_and_starts_no_other(monkeypatch, capsys):
    saved = []

    def attempt(cell, on_progress):
        with interrupt.StopRequest() as stop:
            _thread.interrupt_main()
            while not stop.asked:
                time.sleep(0.01)
        saved.append(cell.request.fusion)
        raise stop.asked

    monkeypatch.setattr(run_cell, "attempt", attempt)
    monkeypatch.setattr(runner, "connect", connect_inproc)
    cells = plan(fusions=("wsa", "mean", "lin"), models=("vit",))
    with pytest.raises(KeyboardInterrupt):
        list(runner._run_on_workers(options(json=True, device="cpu"), cells))
    assert len(saved) == 1 and "saving the runs in progress" in capsys.readouterr().err


def test_a_run_stops_also_while_it_is_set_up_or_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # The folder of a bench is relative.
    reached = []

    def train(cell, on_line):
        if bench == "set up":
            run_cell.stop_on_worker(bench)
        with interrupt.StopRequest() as stop:
            on_line(1, {})
        if stop.asked:
            raise stop.asked
        reached.append(bench)

    def evaluate(cell, on_step):
        on_step("run", 1, 0)
        run_cell.stop_on_worker(bench)
        on_step("run", 2, 0)
        reached.append("its end")

    monkeypatch.setattr(run_cell, "_train", train)
    monkeypatch.setattr(run_cell, "_evaluate", evaluate)
    monkeypatch.setattr(run_cell, "_stopped", set())
    for bench in ("set up", "evaluated"):
        assert run_cell.attempt_on_worker(plan(models=("vit",))[0], bench) is None
    assert reached == ["evaluated"]


def connect_inproc(*_, **settings):
    return connect("inproc", 0, "cpu", threads=settings["threads"])


def test_a_worker_prints_the_remarks_of_a_run(monkeypatch, capsys):
    def attempt(cell, on_progress):
        logging.getLogger("wsa.learn").warning("no reward")
        logging.getLogger("wsa.learn").info("extended")

    monkeypatch.setattr(run_cell, "attempt", attempt)
    assert run_cell.attempt_on_worker(plan(models=("vit",))[0], "bench") is None
    assert capsys.readouterr().err == "warning: no reward\nextended\n"
