"""Learning while playing from models that look at several frames, beside others that look at one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from command_kit import options as parsed

from wsa.encode.jobs.run import encode
from wsa.encode.models.registry import Request, parse_request
from wsa.encode.registration.register import register
from wsa.learn.commands.learn import plan_run
from wsa.learn.configs.algorithms import OnlineDQNConfig, PPOConfig
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.fusion.base import Inputs
from wsa.learn.networks.heads import ActorCritic, QNetwork
from wsa.learn.networks.recurrent import RecurrentActorCritic
from wsa.learn.online import dqn, ppo
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import EnvRunner
from wsa.learn.online.session import Session
from wsa.learn.runs.config import OnlineRun
from wsa.learn.runs.dry_run import estimate
from wsa.learn.runs.evaluate import evaluate_run
from wsa.learn.runs.folder import begin
from wsa.learn.runs.train import train_playing
from wsa.learn.training import checkpoint
from wsa.store.common import hashing
from wsa.store.common.errors import DamagedError
from wsa.store.format.records import EmbeddingMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects.probe import MAX_STEP_ERROR
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot

WINDOWS = (4, 1, 2)
"""Of the models, in the order in which they stand in a row."""


pytestmark = pytest.mark.usefixtures("one_thread")


# On the walk, whose windows can be told literally.


def literal(history: list[int], depth: int, states: int, windows: tuple[int, ...]) -> np.ndarray:
    """What a state is made of, whose episode has shown `history`: (depth, width)."""
    padded = [history[0]] * 4 + history
    parts = []
    for window in windows:
        part = np.zeros((depth, states if window == 1 else window))
        if window == 1:
            part[np.arange(depth), padded[-depth:]] = 1
        else:
            part[-1] = padded[-window:]
        parts.append(part)
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("windows", [WINDOWS, (2,), (1, 3)])
def test_no_window_reaches_over_an_episodes_border(
    walk: SimpleNamespace, tmp_path: Path, windows: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """States, those that end a game included, are the literal ones; nothing is run twice for them."""
    monkeypatch.setattr("wsa.learn.online.digest_table.GROWTH", 16)
    monkeypatch.setattr("wsa.learn.online.digest_table.RECENT", 3)
    encoder = walk.Counting(windows)
    table = Table(tmp_path, encoder)
    env = walk.Walk(3)
    stage = EnvRunner([env], table, 3, seed=1)
    stage.begin()
    history = [[int(state)] for state in env.state]
    shown: dict[int, set[tuple[int, ...]]] = {window: set() for window in windows}
    generator = np.random.default_rng(0)
    ends = 0

    def check(rows: np.ndarray, frames: list[int]) -> None:
        wanted = literal(frames, 3, walk.states, windows)
        np.testing.assert_array_equal(table.gather(rows), wanted)
        for window in windows:
            shown[window].add(tuple(([frames[0]] * 4 + frames)[-window:]))

    for _ in range(150):
        for i in range(3):
            check(stage.stacks[i], history[i])
        actions = generator.integers(3, size=3)
        moved = env.state + np.array([-1, 1, 0])[actions]
        step = stage.step(actions)
        for i in range(3):
            history[i].append(int(moved[i]))
            check(step.final[i], history[i])
            if step.ended[i]:
                history[i] = [int(env.state[i])]
                ends += 1
    for i in range(3):
        check(stage.stacks[i], history[i])
    assert ends > 20
    for window, seen in shown.items():
        assert len(table.parts[window]) == encoder.lookups[window].passes == len(seen)
    assert table.passes == encoder.passes == table.asked - table.known


def test_a_part_that_was_damaged_is_noticed(
    walk: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsa.learn.online.digest_table.GROWTH", 16)
    table = Table(tmp_path / "whole", walk.Counting(WINDOWS))
    stage = EnvRunner([walk.Walk(2)], table, 2, seed=1)
    stage.begin()
    for _ in range(20):
        stage.step(np.array([0, 1]))
    table.flush()
    state = table.state()
    rows = np.arange(len(table))[:, None]
    again = Table(tmp_path / "whole", walk.Counting(WINDOWS))
    again.restore(state)
    assert torch.equal(again.gather(rows), table.gather(rows)) and len(again) > 5
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.bin")]
    assert len(files) == 3 * 2 + 1
    for file in files:
        shutil.copytree(tmp_path / "whole", tmp_path / "hurt")
        hurt = np.memmap(tmp_path / "hurt" / file, np.uint8, "r+")
        hurt[2] ^= 1
        hurt.flush()
        with pytest.raises(DamagedError, match="does not match the run"):
            Table(tmp_path / "hurt", walk.Counting(WINDOWS)).restore(state)
        shutil.rmtree(tmp_path / "hurt")


SMALL_PPO = PPOConfig(
    total_timesteps=320, num_envs=4, num_steps=16, num_minibatches=2, update_epochs=2,
    learning_rate=1e-3, save_frequency=128,
)  # fmt: skip
SMALL_DQN = OnlineDQNConfig(
    total_timesteps=300, num_envs=3, learning_starts=60, train_frequency=6, batch_size=8,
    target_network_frequency=60, log_frequency=30, save_frequency=150, learning_rate=1e-3,
    n_step=3,
)  # fmt: skip
RECURRENT = msgspec.structs.replace(SMALL_PPO, recurrent=True)


def train(walk: SimpleNamespace, folder: Path, config: Any) -> Any:
    """A run on the walk with models of four frames, of one and of two."""
    torch.manual_seed(1)
    encoder = walk.Counting(WINDOWS)
    table = Table(folder / "table", encoder)
    stage = EnvRunner([walk.Walk(config.num_envs)], table, 2, seed=3)
    places = [encoder.lookups[window].places[0] for window in WINDOWS]
    session = Session(stage, ["four", "one", "two"], places, settled=False, seed=5)
    inputs = Inputs(((1, 4), (2, walk.states), (1, 2)))
    network = NetworkConfig(FusionConfig(size=16), frame_stack=2, hidden=(16,))
    if isinstance(config, OnlineDQNConfig):
        made = QNetwork(inputs, 3, network)
        return dqn.train_dqn(config, session, made, folder)
    critic: Any = ActorCritic(inputs, 3, network)
    if config.recurrent:
        critic = RecurrentActorCritic(critic.torso, 3)
    return ppo.train_ppo(config, session, critic, folder)


@pytest.mark.parametrize(
    "config",
    [SMALL_DQN, *(pytest.param(c, marks=pytest.mark.slow) for c in (SMALL_PPO, RECURRENT))],
)
def test_a_killed_run_continues_as_if_nothing_had_happened(
    walk: SimpleNamespace, tmp_path: Path, read_metrics: Any, config: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Inside of episodes, and so of windows."""
    monkeypatch.setattr("wsa.learn.online.env_runner.STRETCH", 20)
    whole = train(walk, tmp_path / "whole", config)
    real = checkpoint.save

    def save(folder: Path, at: int, *args: Any, **details: Any) -> Path:
        if at == config.total_timesteps:
            raise RuntimeError("killed")
        return real(folder, at, *args, **details)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(RuntimeError, match="killed"):
            train(walk, tmp_path / "killed", config)
    again = train(walk, tmp_path / "killed", config)
    assert 0 < again.steps < config.total_timesteps
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name


# On the emulator, with real networks.

PPO: dict[str, Any] = {
    "algo": "ppo", "total_timesteps": 48, "num_envs": 2, "num_steps": 8, "num_minibatches": 2,
    "update_epochs": 2,
}  # fmt: skip
DQN: dict[str, Any] = {
    "algo": "dqn", "total_timesteps": 48, "num_envs": 2, "learning_starts": 16, "batch_size": 8,
    "train_frequency": 4, "target_network_frequency": 16,
}  # fmt: skip
MODELS = ("stacked4", "test_resnet_r160_in1k", "stacked2")


@pytest.fixture(scope="module")
def requests(stacked: Callable[..., Any]) -> list[Request]:
    """Models of four frames, of one, and of two."""
    single = parse_request("timm:test_resnet.r160_in1k:random", {}, "pooled")
    return [stacked(4), single, stacked(2)]


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, requests: list[Request]) -> Path:
    """A store that has the models, and nothing of the game."""
    store = tmp_path_factory.mktemp("registered") / "store"
    made = open_store(str(store), create=True)
    for request in requests:
        register(take_snapshot(made), request, MAX_STEP_ERROR, "cpu")
    return store


@pytest.fixture
def here(registered: Path, tmp_path: Path) -> Path:
    """A folder with such a store."""
    shutil.copytree(registered, tmp_path / "store", copy_function=os.link)
    return tmp_path


def settle(here: Path, name: str, **changes: Any) -> tuple[OnlineRun, Path]:
    details: dict[str, Any] = {
        "store": str(here / "store"), "game": "Breakout", "online": True, "models": MODELS,
        "fusion_size": 16, "hidden": ("16",), "frame_stack": 2, "max_episode_steps": 10,
        "run_dir": str(here / name), **changes,
    }  # fmt: skip
    _, config, folder = plan_run(parsed("learn", **details), "cpu")
    assert isinstance(config, OnlineRun)
    begin(folder, config)
    return config, folder


def learn(here: Path, name: str, **changes: Any) -> tuple[OnlineRun, Any]:
    config, folder = settle(here, name, **changes)
    return config, train_playing(folder, config, "cpu")


def without_embeddings(snapshot: Snapshot, store: Path) -> None:
    """Take back, in the copy of a store, that anything is embedded."""
    for path, commit in snapshot.commits.items():
        if isinstance(commit.meta, EmbeddingMeta):
            name = hashing.object_id(path)
            (store / "commits" / name[:2] / f"{name}.json").unlink()


@pytest.mark.parametrize("algo", [PPO, pytest.param(DQN, marks=pytest.mark.slow)])
def test_what_is_recorded_is_what_encoding_gives(
    here: Path, algo: dict[str, Any], requests: list[Request], read_metrics: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of windows and frames alike, to the last bit; each once, and the next run needs no pass."""
    monkeypatch.setattr(
        "wsa.learn.online.record_segments.SEGMENT_STEPS", 15
    )  # Cuts inside of episodes.
    config, played = learn(here, "one", **algo, record=True)
    assert config.model_windows == (4, 1, 2)
    backend = open_store(config.store)
    assert not verify(backend).damage
    snapshot = take_snapshot(backend)
    metas = snapshot.segments("Breakout")
    assert sum(m.steps for m in metas) == 48 and len(metas) == 4
    assert sorted(snapshot.models_of("Breakout")) == sorted(config.models)
    context = sum(int(snapshot.read_rows(m)["context"].sum()) for m in metas)
    assert context > 0
    line = [li for li in read_metrics(here / "one") if "cache/hit_rate" in li][-1]
    of = dict(zip(config.model_windows, config.models, strict=True))
    for window, name in ((1, "frames"), (2, "windows_2"), (4, "windows_4")):
        embedded = snapshot.embeddings("Breakout", of[window])
        assert {m.window for m in embedded} == {window}
        assert all(m.passes + m.copied == m.shape[0] for m in embedded)
        passes, distinct = sum(m.passes for m in embedded), line[f"cache/distinct_{name}"]
        # No agent saw the windows of context rows.
        assert distinct <= passes <= distinct + (context if window > 1 else 0)
    assert played.passes == sum(m.passes for m in snapshot.embeddings("Breakout"))
    assert line["cache/backbone_passes"] == sum(
        line[f"cache/distinct_{name}"] for name in ("frames", "windows_2", "windows_4")
    )
    # Encoded anew.
    shutil.copytree(here / "store", here / "bare")
    without_embeddings(snapshot, here / "bare")
    bare = open_store(str(here / "bare"))
    report = encode(bare, requests, scheduler="inproc", device="cpu")
    assert report.passes == played.passes
    offline = take_snapshot(bare)
    for key in config.models:
        for meta in metas:
            one = snapshot.read_embedding("Breakout", key, meta.segment)
            other = offline.read_embedding("Breakout", key, meta.segment)
            assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
    # What was played live is what is found now; it can be begun from, and mixed in.
    if algo is PPO:
        again, replayed = learn(here, "two", **algo)
        assert len(again.segments) == len(metas)
        assert replayed.passes == 0 and replayed.hit_rate == 1.0
        one, two = (
            [{k: v for k, v in li.items() if "cache" not in k} for li in read_metrics(here / name)]
            for name in ("one", "two")
        )
        assert one == two
    else:
        given = {"models": (), "init": str(here / "one"), "frame_stack": 4, "fusion_size": 256}
        given |= {"hidden": ("256",), "offline_fraction": 0.5, "seed": 2}
        begun, mixed = learn(here, "two", **{**DQN, **given})
        assert begun.models == config.models and begun.mixes_stored and mixed.passes > 0


@pytest.mark.slow
def test_a_recorded_run_that_was_killed_keeps_each_window_once(
    here: Path, read_metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store then has is what a run that was never killed leaves in it, to the bit."""
    monkeypatch.setattr("wsa.learn.online.record_segments.SEGMENT_STEPS", 10)
    changes = {**PPO, "record": True, "save_frequency": 16}
    shutil.copytree(here / "store", here / "other" / "store")
    learn(here, "run", **changes)
    config, folder = settle(here / "other", "run", **changes)
    for step in (16, 32):

        def kill(now: int, line: Any, step: int = step) -> None:
            if (
                now >= step
            ):  # Before this step's checkpoint: what came after the last is played anew.
                raise RuntimeError("killed")

        with pytest.raises(RuntimeError, match="killed"):
            train_playing(folder, config, "cpu", kill)
    train_playing(folder, config, "cpu")
    assert read_metrics(folder) == read_metrics(here / "run")
    snapshots = [take_snapshot(open_store(str(at / "store"))) for at in (here, here / "other")]
    told = []
    for snapshot in snapshots:
        assert not verify(snapshot.backend).damage
        found = {}
        for meta in snapshot.segments("Breakout"):
            rows = snapshot.read_rows(meta)
            arrays = [
                snapshot.read_embedding("Breakout", key, meta.segment) for key in config.models
            ]
            found[meta.env, meta.start] = [a.tobytes() for a in (rows["digest"], *arrays)]
        told.append(found)
    assert told[0] == told[1] and len(told[0]) >= 4


@pytest.mark.slow
def test_a_model_with_a_window_may_stand_alone_or_give_the_context(here: Path) -> None:
    short = {"total_timesteps": 16}
    config, played = learn(here, "alone", **{**PPO, **short}, models=("stacked4",))
    assert config.model_windows == (4,) and 0 < played.passes <= 16 + 4
    seen = evaluate_run(here / "alone", 1, epsilon=1.0, num_envs=1).live
    assert seen.frames > 3 and seen.passes == seen.frames - seen.found - seen.remembered
    snapshot = take_snapshot(open_store(str(here / "store")))
    config, _ = learn(here, "beside", **{**DQN, **short}, models=MODELS[1:2], context="stacked2")
    assert config.model_windows == (1, 2) and len(config.models) == 1
    # A row of each part, and where the frame's stands.
    width = sum(map(np.prod, config.shapes))
    assert estimate(snapshot, config, "cpu")["table_bytes"] == 16 * (2 * width + 2 * 16 + 4)


def test_the_papers_own_encoders_are_kept_as_encoding_keeps_them(here: Path) -> None:
    config, _ = settle(here, "own", **PPO, models=("vos:random", "sr:random"))
    assert config.model_windows == (2, 1) and config.shapes == ((512,), (608,))
