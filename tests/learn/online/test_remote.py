"""Misses embedded by the workers of a Dask scheduler."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_kit import options as parsed
from distributed import LocalCluster

from wsa.encode.live.remote import remote_encoders
from wsa.encode.registration.register import open_model
from wsa.learn.commands.learn import plan_run
from wsa.learn.configs.learn import LearnOptions
from wsa.learn.runs.config import OnlineRun
from wsa.learn.runs.folder import begin
from wsa.learn.runs.train import train_playing
from wsa.store.common.errors import StorageError, UsageError
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

RESNET = "timm:test_resnet.r160_in1k:random"


def address(cluster: Any) -> str:
    return str(cluster.scheduler_address)


@pytest.mark.parametrize(
    ("models", "workers"),
    [
        pytest.param(
            (RESNET,), {"n_workers": 1, "processes": False, "protocol": "tcp://"}, id="threads"
        ),
        pytest.param(
            (RESNET, "vos:random"),
            {"n_workers": 2, "processes": True},
            id="processes",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_workers_give_the_same_bits_and_the_same_run(
    models: tuple[str, ...], workers: dict[str, Any], tmp_path: Path, read_metrics: Any
) -> None:
    def options(folder: str) -> LearnOptions:
        return parsed(
            "learn",
            store=str(tmp_path / "store"), game="Breakout", online=True, algo="ppo",
            models=models, output="pooled", total_timesteps=32, num_envs=2,
            num_steps=8, num_minibatches=2, update_epochs=1, fusion_size=16, hidden=("16",),
            run_dir=str(tmp_path / folder),
        )  # fmt: skip

    config, here = plan_run(options("here"), "cpu")[1:]
    _, _, there = plan_run(options("there"), "cpu")
    assert isinstance(config, OnlineRun)
    begin(here, config)
    begin(there, config)
    frames = np.random.default_rng(0).integers(0, 256, (5, 210, 160, 3)).astype(np.uint8)
    local = open_model(take_snapshot(open_store(config.store)), config.models[0], engine="torch")
    with (
        LocalCluster(
            **workers, threads_per_worker=1, dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL, scheduler_kwargs={"dashboard": False},
        ) as cluster,
        remote_encoders(address(cluster), config.store, config.models, "torch") as encoders,
    ):  # fmt: skip
        np.testing.assert_array_equal(encoders[0](frames), local(frames))
        assert encoders[0].passes == 5
        played = train_playing(there, config, "cpu", encoders=encoders)
    assert played.passes == train_playing(here, config, "cpu", engine="torch").passes > 0
    assert read_metrics(there) == read_metrics(here)


def test_addresses_that_are_none(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="is no address"),
        remote_encoders("gpu-box", str(tmp_path), ["lite0-0123456789ab"]),
    ):
        pass
    with (
        pytest.raises(StorageError, match="No Dask scheduler answers"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("wsa.encode.jobs.cluster.Client", _refused)
        with remote_encoders("tcp://127.0.0.1:1", str(tmp_path), ["lite0-0123456789ab"]):
            pass


def _refused(*_: Any, **__: Any) -> Any:
    raise OSError("refused")
