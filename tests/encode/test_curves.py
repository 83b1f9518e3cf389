from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata

from wsa.learn.configs.algorithms import CQLConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari
from wsa.learn.runs.config import OfflineRun
from wsa.learn.runs.track import METRICS, write_hparams
from wsa.learn.training.metrics import Metrics

KEYS = (
    "charts/episodic_return",
    "charts/learning_rate",
    "losses/td_loss",
    "losses/q_values",
    "losses/cql",
    "eval/episodic_return",
    "wsa/weight/lite0-0123456789ab",
    "wsa/weight_entropy",
    "cache/hit_rate",
    "cache/backbone_passes_saved",
    "time/updates_per_s",
)


def lines(folder: Path) -> list[dict[str, Any]]:
    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (folder / "metrics.jsonl").read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line, parse_constant=no_constants) for line in text.splitlines()]


def events(folder: Path, key: str = "losses/td_loss") -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(key)]


def write(folder: Path, start: int, steps: range, shift: float = 0.0) -> None:
    with Metrics(folder, start) as metrics:
        for step in steps:
            metrics.write(step, {"losses/td_loss": step + shift})


def test_both_files_say_the_same_under_cleanrls_keys(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        for step in (10, 20):
            metrics.write(step, {key: step + i / 4 for i, key in enumerate(KEYS)})
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert sorted(board.Tags()["scalars"]) == sorted(KEYS)
    for i, key in enumerate(KEYS):
        assert events(tmp_path, key) == [(10, 10 + i / 4), (20, 20 + i / 4)]
        assert [line[key] for line in lines(tmp_path)] == [10 + i / 4, 20 + i / 4]
    assert lines(tmp_path)[0]["time"] <= lines(tmp_path)[1]["time"]


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 9))
    write(tmp_path, 5, range(6, 12), shift=0.5)
    expected = [(s, float(s)) for s in range(1, 6)] + [(s, s + 0.5) for s in range(6, 12)]
    assert [(line["step"], line["losses/td_loss"]) for line in lines(tmp_path)] == expected
    assert events(tmp_path) == expected


def test_a_run_that_stopped_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 9))
    time.sleep(1)  # TensorBoard orders event files by name, in which time is in seconds.
    write(tmp_path, 0, range(1, 4), shift=0.5)
    expected = [(s, s + 0.5) for s in range(1, 4)]
    assert [(line["step"], line["losses/td_loss"]) for line in lines(tmp_path)] == expected
    assert events(tmp_path) == expected


@pytest.mark.parametrize(
    "torn",
    ['{"step": 3, "ti', '{"step": 3, "time": 1.0, "losses/td_loss": 3.0}', "3", "{}", "\0\0"],
)
def test_a_line_that_was_cut_off_spoils_nothing(tmp_path: Path, torn: str) -> None:
    write(tmp_path, 0, range(1, 3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write(tmp_path, 3, range(4, 6))
    steps = [line["step"] for line in lines(tmp_path)]
    assert steps in ([1, 2, 4, 5], [1, 2, 3, 4, 5])
    assert (3 in steps) == torn.endswith("3.0}")


def test_lines_are_in_the_file_as_soon_as_they_are_written(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.write(1, {"losses/td_loss": 1.0})
    assert len(lines(tmp_path)) == 1
    metrics.flush()
    assert events(tmp_path) == [(1, 1.0)]
    metrics.__exit__(None, None, None)


def test_a_crash_while_old_lines_are_dropped_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 0, range(1, 9))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("wsa.store.common.atomic_files._write", full)
        with pytest.raises(OSError, match="No room left"):
            Metrics(tmp_path, 5)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_still_json(tmp_path: Path, value: float) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.write(1, {"losses/td_loss": value, "losses/cql": 1.0})
    assert lines(tmp_path)[0]["losses/td_loss"] is None
    assert lines(tmp_path)[0]["losses/cql"] == 1.0
    [(_, shown)] = events(tmp_path)
    assert shown == value or (math.isnan(shown) and math.isnan(value))


def test_hyperparameters_are_in_the_events_of_the_run(tmp_path: Path) -> None:
    config = OfflineRun(
        store="gone", game="Pong", protocol=atari.protocol("Pong", "classic"), models=("a", "b"),
        context="mean", network=NetworkConfig(), seed=3, segments=("s",),
        hyperparameters=CQLConfig(updates=400),
    )  # fmt: skip
    write_hparams(tmp_path, config)
    write(tmp_path, 0, range(1, 4))
    write_hparams(tmp_path, config)  # Once more, where the run is resumed.
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert board.Tags()["scalars"] == ["losses/td_loss"]
    assert events(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    told = board.SummaryMetadata(hparams_metadata.SESSION_START_INFO_TAG)
    start = hparams_metadata.parse_session_start_info_plugin_data(told.plugin_data.content)
    found = {k: getattr(v, v.WhichOneof("kind")) for k, v in start.hparams.items()}
    assert found["algorithm"] == "cql" and found["models"] == "a,b" and found["seed"] == 3
    assert found["updates"] == 400 and found["cql_alpha"] == 1 and found["fusion size"] == 256
    told = board.SummaryMetadata(hparams_metadata.EXPERIMENT_TAG)
    experiment = hparams_metadata.parse_experiment_plugin_data(told.plugin_data.content)
    assert {one.name for one in experiment.hparam_infos} == set(found)
    assert [one.name.tag for one in experiment.metric_infos] == list(METRICS)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
