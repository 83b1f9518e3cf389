"""What tests of training share: collected play, a game of five states, and comparisons of runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import gymnasium
import numpy as np
import pytest
import safetensors
import torch
from command_kit import options
from numpy.typing import NDArray

from wsa.learn.collect.collect import collect, plan_collection
from wsa.learn.commands.learn import plan_run
from wsa.learn.configs.algorithms import CQLConfig, OnlineDQNConfig, PPOConfig
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari
from wsa.learn.fusion.base import Inputs
from wsa.learn.networks.heads import ActorCritic, QNetwork
from wsa.learn.networks.nature import Ready
from wsa.learn.networks.recurrent import RecurrentActorCritic
from wsa.learn.online import dqn, ppo
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import EnvRunner
from wsa.learn.online.session import Played, Session
from wsa.learn.runs.config import OfflineRun, OnlineRun
from wsa.learn.runs.folder import begin
from wsa.learn.runs.setup.make_run import make_offline
from wsa.learn.runs.train import train_playing
from wsa.learn.training import checkpoint
from wsa.store.backends.base import Backend
from wsa.store.format.records import EmbeddingMeta, Protocol
from wsa.store.objects.snapshot import Snapshot, take_snapshot
from wsa.store.objects.writer import commit_embedding

STATES = 5


def collect_play(
    backend: Backend, protocol: Protocol, game: str = "Breakout", **options: Any
) -> Snapshot:
    """Collect random play; the options are those of `plan_collection`."""
    defaults = {"num_envs": 2, "policy": "random", "seed": 1, "segment_steps": 64}
    plan = plan_collection(take_snapshot(backend), game, protocol, **{**defaults, **options})
    collect(plan, backend)
    return take_snapshot(backend)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """A run's lines of metrics, without what a clock measured."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    clock = ("charts/SPS", "cache/live_encode_ms")
    return [
        {name: value for name, value in line.items() if name[:4] != "time" and name not in clock}
        for line in lines
    ]


def read_checkpoint(folder: Path) -> dict[str, bytes]:
    """The tensors of a run's newest checkpoint, to the last bit."""
    with safetensors.safe_open(checkpoint.latest(folder / "checkpoints"), "np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


class Killed(Exception):
    """The run dies, as far as it can tell."""


@contextlib.contextmanager
def killed_at_checkpoint(step: int) -> Iterator[None]:
    """Expect the run to die in place of the first checkpoint at or after a step."""
    save = checkpoint.save

    def save_or_die(folder: Path, at: int, *rest: Any, **details: Any) -> Path:
        if at >= step:
            raise Killed
        return save(folder, at, *rest, **details)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "save", save_or_die)
        yield


def read_video(path: Path) -> list[NDArray[np.int64]]:
    """The frames of a video, as RGB integers that can be subtracted."""
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(read[1][..., ::-1].astype(int))
    video.release()
    return frames


class Walk:
    """A walk of five states with the interface of ale-py's vector environment.

    Each state has a color; 1, 2, or 3 is the first, by the seed. Actions go left, go right, stay.
    0 ends the episode with nothing, 4 with a reward of 3. It is truncated after `limit` steps.
    Staying costs one of three lives, and nothing else.
    """

    def __init__(self, num_envs: int, limit: int = 8) -> None:
        self.num_envs, self.limit = num_envs, limit
        self.single_action_space = gymnasium.spaces.Discrete(3)
        self.generators = [np.random.default_rng(0) for _ in range(num_envs)]
        self.state = np.zeros(num_envs, np.int64)
        self.played = np.zeros(num_envs, np.int64)
        self.lives = np.zeros(num_envs, np.int32)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        envs = np.flatnonzero(mask)
        if isinstance(seed, int):
            seed = seed + np.arange(len(envs))
        for at, env in enumerate(envs):
            if seed is not None:
                self.generators[env] = np.random.default_rng(int(seed[at]))
            self._begin(int(env))
        return self._screens(), {"lives": self.lives.copy()}

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.state += np.array([-1, 1, 0])[actions]
        self.lives -= actions == 2
        self.played += 1
        terminated = (self.state == 0) | (self.state == STATES - 1)
        truncated = ~terminated & (self.played >= self.limit)
        rewards = 3 * (self.state == STATES - 1).astype(np.int32)
        info: dict[str, Any] = {}
        if (terminated | truncated).any():
            info["final_obs"] = self._screens()
        for env in np.flatnonzero(terminated | truncated):
            self._begin(int(env))
        info["lives"] = self.lives.copy()
        return self._screens(), rewards, terminated, truncated, info

    def close(self) -> None:
        pass

    def _begin(self, env: int) -> None:
        self.state[env] = self.generators[env].integers(1, STATES - 1)
        self.played[env], self.lives[env] = 0, 3

    def _screens(self) -> NDArray[np.uint8]:
        return screens_of(self.state)[:, None]


def screens_of(states: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Screens (n, 4, 5, 3) of states of the walk."""
    screens = np.zeros((len(states), 4, 5, 3), np.uint8)
    screens[..., 0] = 40 * states[:, None, None]
    return screens


class WalkModel:
    """Embeds a screen of the walk as a one-hot state, or a window as its states, oldest first."""

    dtype, found = np.dtype(np.float16), 0

    def __init__(self, window: int, begin: int) -> None:
        self.window, self.passes = window, 0
        self.width = STATES if window == 1 else window
        self.places = (slice(begin, begin + self.width),)

    def begin(self, digests: Any, inputs: Any) -> Ready:
        self.passes += len(digests)
        return Ready(self.embed(inputs(list(range(len(digests))))))

    def embed(self, frames: NDArray[np.uint8]) -> NDArray[Any]:
        states = frames[..., 0, 0, 0] // 40
        return np.eye(STATES, dtype=np.float16)[states] if self.window == 1 else states


class WalkEncoder:
    """Models of the walk, one for each window, which count their passes."""

    dtype = np.dtype(np.float16)

    def __init__(self, windows: tuple[int, ...] = (1,)) -> None:
        self.lookups: dict[int, Any] = {}
        self.width = 0
        for window in windows:
            self.lookups[window] = WalkModel(window, self.width)
            self.width += self.lookups[window].width

    @property
    def passes(self) -> int:
        return sum(model.passes for model in self.lookups.values())

    def __call__(self, frames: NDArray[np.uint8], *_: Any) -> NDArray[Any]:
        return self.lookups[1].embed(frames)


# A minute's work of a real run is a second's on the walk.
PPO = PPOConfig(
    total_timesteps=256, num_envs=4, num_steps=16, num_minibatches=2, update_epochs=2,
    learning_rate=1e-3, save_frequency=128,
)  # fmt: skip
DQN = OnlineDQNConfig(
    total_timesteps=240, num_envs=3, learning_starts=60, train_frequency=6, batch_size=8,
    target_network_frequency=60, buffer_size=300, log_frequency=60, save_frequency=120,
    learning_rate=1e-3,
)  # fmt: skip
NETWORK = NetworkConfig(FusionConfig(size=16), frame_stack=2, hidden=(16,))


class WalkRun:
    """An online run on the walk.

    Args:
        windows: Of the models, in the order in which their embeddings stand in a row.
        groups: Of environments.
    """

    def __init__(
        self, folder: Path, config: Any, *, seed: int = 1, windows: tuple[int, ...] = (1,),
        groups: int = 1, network: NetworkConfig = NETWORK, compiled: bool = False,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.folder, self.config = folder, config
        self.encoder = WalkEncoder(windows)
        self.table = Table(folder / "table", self.encoder)
        self.envs = [Walk(size) for size in atari.group_sizes(config.num_envs, groups)]
        self.runner = EnvRunner(self.envs, self.table, 2, seed=10 * seed)
        models = [f"model{window}" for window in windows]
        columns = [self.encoder.lookups[window].places[0] for window in windows]
        self.session = Session(
            self.runner, models, columns, range(len(models)), seed=seed, compiled=compiled
        )
        inputs = Inputs(tuple((2, STATES) if w == 1 else (1, w) for w in windows))
        kind = QNetwork if isinstance(config, OnlineDQNConfig) else ActorCritic
        self.network: Any = kind(inputs, 3, network)
        if isinstance(config, PPOConfig) and config.recurrent:
            self.network = RecurrentActorCritic(self.network.torso, 3)

    def train(self) -> Any:
        train: Any = dqn.train_dqn if isinstance(self.config, OnlineDQNConfig) else ppo.train_ppo
        return train(self.config, self.session, self.network, self.folder)

    def roll_out(self, memory: Any = None, network: Any = None) -> tuple[ppo.Rollout, Any]:
        """Play one rollout of PPO; returns it, and the memory after it."""
        silent: Any = SimpleNamespace(write=lambda *_: None)
        network = network or self.network
        return ppo.collect_rollout(self.config, self.session, network, memory, "cpu", silent)


RESNET = "timm:test_resnet.r160_in1k:random"
SHORT_PPO: dict[str, Any] = {
    "algo": "ppo", "total_timesteps": 48, "num_envs": 2, "num_steps": 8, "num_minibatches": 2,
    "update_epochs": 2,
}  # fmt: skip
SHORT_DQN: dict[str, Any] = {
    "algo": "dqn", "total_timesteps": 48, "num_envs": 2, "learning_starts": 16, "batch_size": 8,
    "train_frequency": 4, "target_network_frequency": 16,
}  # fmt: skip


def plan_online(store: Path, folder: Path, **changes: Any) -> OnlineRun:
    """What `wsa learn --online` makes of flags, for a small network on Breakout."""
    flags: dict[str, Any] = {
        "store": str(store), "run_dir": str(folder), "game": "Breakout", "online": True,
        "models": (RESNET,), "fusion_size": 16, "hidden": ("16",), "frame_stack": 2, **changes,
    }  # fmt: skip
    _, config, _ = plan_run(options("learn", **flags), "cpu")
    assert isinstance(config, OnlineRun)
    return config


def train_online(store: Path, folder: Path, **changes: Any) -> tuple[OnlineRun, Played]:
    """Begin a run of `plan_online` in a folder, and train it."""
    config = plan_online(store, folder, **changes)
    begin(folder, config)
    return config, train_playing(folder, config)


ALIASES = ("test_resnet_r160_in1k", "test_vit_r160_in1k")
MAX_STEPS = 24
"""Of an episode in the store `breakout`."""


def plan_offline(snapshot: Snapshot, **changes: Any) -> OfflineRun:
    """A short offline run on both models of the store `breakout`."""
    hyperparameters = CQLConfig(
        updates=50, batch_size=8, validation_fraction=0.0, log_frequency=10, save_frequency=20
    )
    details: dict[str, Any] = {
        "game": "Breakout", "models": ALIASES, "context": ALIASES[0], "seed": 1,
        "hyperparameters": hyperparameters, "network": NetworkConfig(FusionConfig(size=16)),
        **changes,
    }  # fmt: skip
    return make_offline(snapshot, **details)


def add_play(backend: Backend, models: Sequence[str] = (), **rules: Any) -> Snapshot:
    """Add a little Breakout to a store, and zeros as what models gave for what they lack."""
    protocol = atari.protocol("Breakout", **{"name": "classic", "max_steps": MAX_STEPS, **rules})
    steps = 32 + sum(m.steps for m in take_snapshot(backend).segments() if m.protocol == protocol)
    snapshot = collect_play(backend, protocol, steps=steps)
    for model in models:
        embedded = {meta.segment: meta for meta in snapshot.embeddings(model=model)}
        shape = next((meta.shape[1:] for meta in embedded.values()), (3,))
        for meta in snapshot.segments():
            if meta.segment not in embedded:
                array = np.zeros((meta.frames, *shape), np.float16)
                record = EmbeddingMeta(
                    meta.game, meta.segment, model, array.shape, "float16", meta.frames, 0, 1.0
                )
                commit_embedding(backend, record, array)
    return take_snapshot(backend)
