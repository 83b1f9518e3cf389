"""Metrics of a run: lines of JSON and TensorBoard events, also after interruptions."""

import json
import math
import time

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


def read_lines(folder):
    def no_constants(name):
        raise AssertionError(f"{name} is not JSON")

    text = (folder / "metrics.jsonl").read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line, parse_constant=no_constants) for line in text.splitlines()]


def read_events(folder, key="losses/td_loss"):
    board = EventAccumulator(str(folder))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(key)]


def write(folder, start, steps, shift=0.0):
    with Metrics(folder, start) as metrics:
        for step in steps:
            metrics.write(step, {"losses/td_loss": step + shift})


def test_json_and_tensorboard_have_the_same_values_under_cleanrl_keys(tmp_path):
    with Metrics(tmp_path) as metrics:
        for step in (10, 20):
            metrics.write(step, {key: step + i / 4 for i, key in enumerate(KEYS)})
    assert [line["step"] for line in read_lines(tmp_path)] == [10, 20]
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert sorted(board.Tags()["scalars"]) == sorted(KEYS)
    for i, key in enumerate(KEYS):
        assert read_events(tmp_path, key) == [(10, 10 + i / 4), (20, 20 + i / 4)]
        assert [line[key] for line in read_lines(tmp_path)] == [10 + i / 4, 20 + i / 4]
    assert read_lines(tmp_path)[0]["time"] <= read_lines(tmp_path)[1]["time"]


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path):
    write(tmp_path, 0, range(1, 9))
    write(tmp_path, 5, range(6, 12), shift=0.5)
    expected = [(s, float(s)) for s in range(1, 6)] + [(s, s + 0.5) for s in range(6, 12)]
    assert [(line["step"], line["losses/td_loss"]) for line in read_lines(tmp_path)] == expected
    assert read_events(tmp_path) == expected


def test_a_run_that_stopped_before_its_first_checkpoint_starts_again(tmp_path, monkeypatch):
    write(tmp_path, 0, range(1, 9))
    # TensorBoard orders event files by name, which has the time in seconds.
    now = time.time() + 10
    monkeypatch.setattr(time, "time", lambda: now)
    write(tmp_path, 0, range(1, 4), shift=0.5)
    expected = [(s, s + 0.5) for s in range(1, 4)]
    assert [(line["step"], line["losses/td_loss"]) for line in read_lines(tmp_path)] == expected
    assert read_events(tmp_path) == expected


@pytest.mark.parametrize(
    "torn",
    ['{"step": 3, "ti', '{"step": 3, "time": 1.0, "losses/td_loss": 3.0}', "3", "{}", "\0\0"],
)
def test_a_truncated_line_is_dropped(tmp_path, torn):
    write(tmp_path, 0, range(1, 3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write(tmp_path, 3, range(4, 6))
    steps = [line["step"] for line in read_lines(tmp_path)]
    assert steps in ([1, 2, 4, 5], [1, 2, 3, 4, 5])
    assert (3 in steps) == torn.endswith("3.0}")


def test_lines_are_written_immediately(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.write(1, {"losses/td_loss": 1.0})
    assert len(read_lines(tmp_path)) == 1
    metrics.flush()
    assert read_events(tmp_path) == [(1, 1.0)]
    metrics.__exit__(None, None, None)


def test_a_full_disk_while_old_lines_are_dropped_loses_none(tmp_path, monkeypatch):
    write(tmp_path, 0, range(1, 9))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("wsa.store.common.atomic_files._write", full)
        with pytest.raises(OSError, match="No room left"):
            Metrics(tmp_path, 5)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_null_in_json(tmp_path, value):
    with Metrics(tmp_path) as metrics:
        metrics.write(1, {"losses/td_loss": value, "losses/cql": 1.0})
    assert read_lines(tmp_path)[0]["losses/td_loss"] is None
    assert read_lines(tmp_path)[0]["losses/cql"] == 1.0
    [(_, shown)] = read_events(tmp_path)
    assert shown == value or (math.isnan(shown) and math.isnan(value))


def test_tensorboard_shows_the_hyperparameters(tmp_path):
    config = OfflineRun(
        store="gone", game="Pong", protocol=atari.protocol("Pong", "classic"), models=("a", "b"),
        context="mean", network=NetworkConfig(), seed=3, segments=("s",),
        hyperparameters=CQLConfig(updates=400),
    )  # fmt: skip
    write_hparams(tmp_path, config)
    write(tmp_path, 0, range(1, 4))
    write_hparams(tmp_path, config)  # Again, when the run is resumed.
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert board.Tags()["scalars"] == ["losses/td_loss"]
    assert read_events(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    summary = board.SummaryMetadata(hparams_metadata.SESSION_START_INFO_TAG)
    start = hparams_metadata.parse_session_start_info_plugin_data(summary.plugin_data.content)
    values = {k: getattr(v, v.WhichOneof("kind")) for k, v in start.hparams.items()}
    assert values["algorithm"] == "cql" and values["models"] == "a,b" and values["seed"] == 3
    assert values["updates"] == 400 and values["cql_alpha"] == 1 and values["fusion size"] == 256
    summary = board.SummaryMetadata(hparams_metadata.EXPERIMENT_TAG)
    experiment = hparams_metadata.parse_experiment_plugin_data(summary.plugin_data.content)
    assert {one.name for one in experiment.hparam_infos} == set(values)
    assert [one.name.tag for one in experiment.metric_infos] == list(METRICS)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
