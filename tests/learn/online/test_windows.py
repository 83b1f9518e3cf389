"""Online runs with models of several frames, beside others of one, on the emulator."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learn_kit import (
    RESNET,
    SHORT_DQN,
    SHORT_PPO,
    killed_at_checkpoint,
    plan_online,
    read_metrics,
    train_online,
)

from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.run import encode
from wsa.encode.models.registry import parse_request
from wsa.encode.registration.register import register
from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.runs.dry_run import estimate
from wsa.learn.runs.evaluate import evaluate_run
from wsa.store.common import hashing
from wsa.store.format.records import EmbeddingMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects.probe import MAX_STEP_ERROR
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = {"models": ("stacked4", "test_resnet_r160_in1k", "stacked2"), "max_episode_steps": 10}
PPO: dict[str, Any] = {**SHORT_PPO, **MODELS, "total_timesteps": 32}
DQN: dict[str, Any] = {**SHORT_DQN, **MODELS}


@pytest.fixture(scope="module")
def requests(stacked):
    """Models of four frames, of one, and of two."""
    return [stacked(4), parse_request(RESNET, {}, "pooled"), stacked(2)]


@pytest.fixture(scope="module")
def registered(tmp_path_factory, requests):
    """A store that has the models, and nothing of the game."""
    store = tmp_path_factory.mktemp("registered") / "store"
    backend = open_store(str(store), create=True)
    for request in requests:
        register(take_snapshot(backend), request, MAX_STEP_ERROR, "cpu")
    return store


@pytest.fixture
def store(registered, tmp_path):
    """A copy of that store."""
    return Path(shutil.copytree(registered, tmp_path / "store", copy_function=os.link))


def forget_embeddings(snapshot, store):
    """Remove the commits of all embeddings from a store."""
    for path, commit in snapshot.commits.items():
        if isinstance(commit.meta, EmbeddingMeta):
            name = hashing.object_id(path)
            (store / "commits" / name[:2] / f"{name}.json").unlink()


@pytest.mark.parametrize("algo", [PPO, pytest.param(DQN, marks=pytest.mark.slow)])
def test_a_run_records_what_encoding_would_give(store, tmp_path, algo, requests, monkeypatch):
    # Segments end inside of episodes.
    monkeypatch.setattr("wsa.learn.online.record_segments.SEGMENT_STEPS", 15)
    config, played = train_online(store, tmp_path / "one", **algo, record=True)
    assert config.model_windows == (4, 1, 2)
    backend = open_store(config.store)
    assert not verify(backend).damage
    snapshot = take_snapshot(backend)
    segments = snapshot.segments("Breakout")
    assert sum(m.steps for m in segments) == algo["total_timesteps"] and len(segments) == 4
    assert sorted(snapshot.models_of("Breakout")) == sorted(config.models)
    context = sum(int(snapshot.read_rows(m)["context"].sum()) for m in segments)
    assert context > 0
    line = [line for line in read_metrics(tmp_path / "one") if "cache/hit_rate" in line][-1]
    counted = []
    for window, model in zip(config.model_windows, config.models, strict=True):
        embedded = snapshot.embeddings("Breakout", model)
        assert {m.window for m in embedded} == {window}
        assert all(m.passes + m.copied == m.shape[0] for m in embedded)
        passes = sum(m.passes for m in embedded)
        distinct = line["cache/distinct_" + ("frames" if window == 1 else f"windows_{window}")]
        # The agent did not see the windows of context rows.
        assert distinct <= passes <= distinct + (context if window > 1 else 0)
        counted.append(distinct)
    assert line["cache/backbone_passes"] == sum(counted)
    assert played.passes == sum(m.passes for m in snapshot.embeddings("Breakout"))

    # Encoding the same segments takes as many passes, and gives the same bits.
    shutil.copytree(store, tmp_path / "bare")
    forget_embeddings(snapshot, tmp_path / "bare")
    bare = open_store(str(tmp_path / "bare"))
    assert (
        encode(bare, Encoding(requests, device="cpu"), scheduler="inproc").passes == played.passes
    )
    encoded = take_snapshot(bare)
    for model in config.models:
        for meta in segments:
            one, other = (s.read_embedding("Breakout", model, meta.segment)
                          for s in (snapshot, encoded))  # fmt: skip
            assert one.dtype == other.dtype and one.tobytes() == other.tobytes()

    if algo is PPO:
        again, replayed = train_online(store, tmp_path / "two", **algo)
        assert len(again.segments) == len(segments)
        assert replayed.passes == 0 and replayed.hit_rate == 1.0
        first, second = (
            [{k: v for k, v in li.items() if "cache" not in k} for li in read_metrics(folder)]
            for folder in (tmp_path / "one", tmp_path / "two")
        )
        assert first == second
    else:  # Another run can begin from it, and mix in what it recorded.
        flags = {**DQN, "models": (), "init": str(tmp_path / "one"), "frame_stack": 4,
                 "fusion_size": 256, "hidden": ("256",), "offline_fraction": 0.5, "seed": 2}  # fmt: skip
        begun, mixed = train_online(store, tmp_path / "two", **flags)
        assert begun.models == config.models and begun.mixes_stored and mixed.passes > 0


@pytest.mark.slow
def test_a_killed_run_records_each_window_once(store, tmp_path, monkeypatch):
    monkeypatch.setattr("wsa.learn.online.record_segments.SEGMENT_STEPS", 10)
    flags = {**PPO, "total_timesteps": 48, "record": True, "save_frequency": 16}
    stores = store, Path(shutil.copytree(store, tmp_path / "other"))
    train_online(stores[0], tmp_path / "whole", **flags)
    for step in (16, 32):
        with killed_at_checkpoint(step):
            train_online(stores[1], tmp_path / "killed", **flags)
    config, _ = train_online(stores[1], tmp_path / "killed", **flags)
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    recorded = []
    for folder in stores:
        snapshot = take_snapshot(open_store(str(folder)))
        assert not verify(snapshot.backend).damage
        recorded.append({
            (meta.env, meta.start): [
                snapshot.read_rows(meta)["digest"].tobytes(),
                *(snapshot.read_embedding("Breakout", m, meta.segment).tobytes()
                  for m in config.models),
            ]
            for meta in snapshot.segments("Breakout")
        })  # fmt: skip
    assert recorded[0] == recorded[1] and len(recorded[0]) >= 4


@pytest.mark.slow
def test_a_model_with_a_window_may_stand_alone_or_give_the_context(store, tmp_path):
    short = {"total_timesteps": 16}
    flags = {**PPO, **short, "models": ("stacked4",)}
    config, played = train_online(store, tmp_path / "alone", **flags)
    assert config.model_windows == (4,) and 0 < played.passes <= 16 + 4
    live = evaluate_run(
        tmp_path / "alone", EvaluationRequest(episodes=1, epsilon=1.0, num_envs=1)
    ).live
    assert live.frames > 3 and live.passes == live.frames - live.found - live.remembered
    flags = {**DQN, **short, "models": MODELS["models"][1:2], "context": "stacked2"}
    config, _ = train_online(store, tmp_path / "beside", **flags)
    assert config.model_windows == (1, 2) and len(config.models) == 1
    # A row holds each model's embedding, two bytes a number, its digests, and the frame's row.
    width = sum(map(np.prod, config.shapes))
    snapshot = take_snapshot(open_store(str(store)))
    assert estimate(snapshot, config, "cpu")["table_bytes"] == 16 * (2 * width + 2 * 16 + 4)


def test_the_papers_encoders_keep_their_windows_and_shapes(store, tmp_path):
    config = plan_online(store, tmp_path / "run", **{**PPO, "models": ("vos:random", "sr:random")})
    assert config.model_windows == (2, 1) and config.shapes == ((512,), (608,))
