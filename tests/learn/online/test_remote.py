"""Online runs whose models run on the workers of a Dask scheduler."""

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from learn_kit import RESNET, SHORT_PPO, plan_online, read_metrics

from wsa.encode.jobs import tasks
from wsa.encode.live import remote
from wsa.encode.live.remote import remote_encoders
from wsa.encode.registration.register import open_model
from wsa.learn.runs.folder import begin
from wsa.learn.runs.machine import Machine
from wsa.learn.runs.train import train_playing
from wsa.store.common.errors import StorageError, UsageError
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot


@pytest.mark.parametrize(
    ("models", "workers"),
    [
        pytest.param(
            (RESNET,), {"n_workers": 1, "processes": False, "protocol": "tcp://"}, id="threads"
        ),
        pytest.param(
            (RESNET, "vos:random"), {"n_workers": 2, "processes": True}, id="processes",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_workers_give_the_same_bits_and_the_same_run(models, workers, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    flags = {**SHORT_PPO, "models": models, "output": "pooled", "total_timesteps": 32}
    config = plan_online(tmp_path / "store", here, **flags)
    begin(here, config)
    begin(there, config)
    frames = np.random.default_rng(0).integers(0, 256, (5, 210, 160, 3)).astype(np.uint8)
    local = open_model(take_snapshot(open_store(config.store)), config.models[0], engine="torch")
    with (
        LocalCluster(
            **workers, threads_per_worker=1, dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL, scheduler_kwargs={"dashboard": False},
        ) as cluster,
        remote_encoders(
            str(cluster.scheduler_address),  # type: ignore[union-attr]
            config.store, config.models, "torch",
        ) as encoders,
    ):  # fmt: skip
        np.testing.assert_array_equal(encoders[0](frames), local(frames))
        assert encoders[0].passes == 5
        played = train_playing(there, config, encoders=encoders)
    assert played.passes == train_playing(here, config, Machine(engine="torch")).passes > 0
    assert read_metrics(there) == read_metrics(here)


def test_a_wrong_or_silent_address_is_an_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("refused")

    monkeypatch.setattr("wsa.encode.jobs.cluster._Client", refuse)
    for address, kind, message in (
        ("gpu-box", UsageError, "is not an address"),
        ("tcp://127.0.0.1:1", StorageError, "No Dask scheduler answers"),
    ):
        with (
            pytest.raises(kind, match=message),
            remote_encoders(address, str(tmp_path), ["lite0-0123456789ab"]),
        ):
            pass


def test_a_worker_keeps_all_models_of_a_run(monkeypatch):
    opened = []

    def open_model(snapshot, key, **how):
        opened.append(key)
        return SimpleNamespace(engine=SimpleNamespace(name="torch"))

    monkeypatch.setattr(tasks, "_models", {})
    monkeypatch.setattr(tasks, "open_store", lambda url: None)
    monkeypatch.setattr(tasks, "take_objects", lambda backend, paths: None)
    monkeypatch.setattr(tasks, "open_model", open_model)

    def run_here(task, *args, **options):
        return task(*args)

    client = SimpleNamespace(submit=run_here, gather=list)
    workers: Any = SimpleNamespace(client=client, options=dict)
    monkeypatch.setattr(remote.RemoteEncoder, "_wait", lambda encoder, futures: None)
    keys = [f"vit-{number:012x}" for number in range(tasks.MODELS_KEPT + 1)]
    for _ in range(2):
        for key in keys:
            remote.RemoteEncoder(workers, "store", key, models=len(keys))
    assert opened == keys
