"""`wsa learn --track`, with something in the place of Weights & Biases."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from wsa.learn.configs.algorithms import BCConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari
from wsa.learn.runs.config import OfflineRun
from wsa.learn.runs.track import tracked
from wsa.store.common.errors import MissingError

CONFIG = OfflineRun(
    store="s3://me:my-password@host/lab",
    game="Pong",
    protocol=atari.protocol("Pong", "classic"),
    models=("vit-0123456789ab",),
    context="mean",
    network=NetworkConfig(),
    seed=1,
    segments=(),
    hyperparameters=BCConfig(updates=7),
)


@pytest.fixture
def calls(monkeypatch):
    found = []
    run = SimpleNamespace(finish=lambda: found.append("finished"))

    def init(**how):
        found.append(how)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return found


def test_a_run_is_begun_before_it_logs_and_ended_whatever_happens(calls, tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), tracked(tmp_path / "run", CONFIG, "lab", ""):
            assert calls[-1]["sync_tensorboard"]
            raise KeyboardInterrupt
    first, ended, second, _ = calls
    assert ended == "finished" and first["id"] == second["id"] and first["resume"] == "allow"
    assert (first["project"], first["entity"], first["name"]) == ("lab", None, "run")
    assert first["config"]["hyperparameters"]["updates"] == 7
    assert "my-password" not in str(first)


def test_it_is_said_that_it_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(MissingError, match="pip install wandb"),
        tracked(tmp_path / "run", CONFIG, "lab", ""),
    ):
        pass
    assert not (tmp_path / "run").exists()
