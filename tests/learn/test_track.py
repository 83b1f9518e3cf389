"""`wsa learn --track`, with a fake Weights & Biases."""

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
    calls = []
    run = SimpleNamespace(finish=lambda: calls.append("finished"))

    def init(**options):
        calls.append(options)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return calls


def test_a_tracked_run_ends_after_an_error_and_resumes_under_its_id(calls, tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), tracked(tmp_path / "run", CONFIG, "lab", ""):
            assert calls[-1]["sync_tensorboard"]
            raise KeyboardInterrupt
    first, ended, second, _ = calls
    assert ended == "finished" and first["id"] == second["id"] and first["resume"] == "allow"
    assert (first["project"], first["entity"], first["name"]) == ("lab", None, "run")
    assert first["config"]["hyperparameters"]["updates"] == 7
    assert "my-password" not in str(first)


def test_a_missing_wandb_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(MissingError, match="pip install wandb"),
        tracked(tmp_path / "run", CONFIG, "lab", ""),
    ):
        pass
    assert not (tmp_path / "run").exists()
