"""Online learning: PPO's update compared with CleanRL's, steps per second, and passes.

    OMP_NUM_THREADS=1 python -m benchmarks.learning.online_speed

1. One PPO update (1,024 steps, 4 epochs of 4 minibatches) on cached embeddings of 3 models, with 1
   and with 4 frames in a state, compared with the same on pixels with the network and the loop of
   CleanRL's `ppo_atari`.
2. Steps per second of a whole online run whose frames are all in the store, compared with the
   emulator and the updates alone: the cost of looking frames up, of the table, and of metrics.
3. Passes per environment step: the number of states that went through the network, which a learner
   with the backbones inside it pays for each model, compared with frames that went through wsa's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.kit import interleave, markdown, rate, table
from wsa import cli
from wsa.encode.live.frame_history import FrameHistory
from wsa.learn.commands.learn import plan_run
from wsa.learn.configs.algorithms import PPOConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari as games
from wsa.learn.fusion.base import Inputs
from wsa.learn.networks.heads import ActorCritic
from wsa.learn.networks.nature import Ready
from wsa.learn.online import ppo
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import EnvRunner
from wsa.learn.online.ppo import Rollout
from wsa.learn.online.session import Session
from wsa.learn.runs import train
from wsa.learn.runs.config import OnlineRun
from wsa.learn.runs.folder import begin

CONFIG = PPOConfig()
ACTIONS = 6
WIDTH = 512


class Noise:
    """Random embeddings instead of a model's."""

    dtype, found, passes = np.dtype(np.float16), 0, 0

    def __init__(self, models: int) -> None:
        self.width = models * WIDTH
        self.places = (slice(0, self.width),)
        self.lookups = {1: self}
        self._generator = np.random.default_rng(0)

    def rows(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Report that the store has none of the frames."""
        return np.full(len(digests), -1)

    def begin(self, digests: Sequence[bytes], inputs: Any) -> Ready:
        """Return random rows."""
        rows = self._generator.standard_normal((len(digests), self.width))
        return Ready(rows.astype(np.float16))


def ours(models: int, depth: int, folder: Path) -> Any:
    """Make a PPO update from a table of embeddings, with `depth` frames in a state."""
    game = games.make_env("Pong", games.protocol("Pong", "classic"), CONFIG.num_envs)
    filled = Table(folder, Noise(models))
    frames = np.arange(2000, dtype="<u8").view(np.uint8).reshape(2000, 1, 1, 8)[..., :3]
    filled.see(FrameHistory(1).push(frames, np.ones(2000, np.bool_), np.arange(2000)))
    stage = EnvRunner([game], filled, depth, 1)
    keys = [f"model{i}" for i in range(models)]
    session = Session(stage, keys, [slice(0, filled.width)], unsettled=())
    shapes = ((depth, WIDTH),) * models
    network = ActorCritic(Inputs(shapes), ACTIONS, NetworkConfig(frame_stack=depth))
    optimizer = torch.optim.Adam(network.parameters(), lr=2.5e-4, eps=1e-5, fused=True)
    shape = (CONFIG.num_steps, CONFIG.num_envs)
    stacks = np.random.default_rng(1).integers(0, len(filled), (*shape, depth))
    rest = [torch.randn(shape) for _ in range(5)]
    rollout = Rollout(
        stacks, torch.zeros(shape), torch.randint(ACTIONS, shape), *rest[:3], torch.zeros(shape),
        torch.zeros(shape), rest[3], None,
    )  # fmt: skip

    def update() -> int:
        ppo.update_policy(CONFIG, session, network, optimizer, rollout, "cpu")
        return 1

    return update


class CleanRLAgent(nn.Module):
    """The network of CleanRL's `ppo_atari`."""

    def __init__(self) -> None:
        super().__init__()

        def layer(made: Any, gain: float = 2**0.5) -> Any:
            nn.init.orthogonal_(made.weight, gain)
            nn.init.constant_(made.bias, 0.0)
            return made

        self.network = nn.Sequential(
            layer(nn.Conv2d(4, 32, 8, stride=4)), nn.ReLU(),
            layer(nn.Conv2d(32, 64, 4, stride=2)), nn.ReLU(),
            layer(nn.Conv2d(64, 64, 3, stride=1)), nn.ReLU(),
            nn.Flatten(), layer(nn.Linear(64 * 7 * 7, 512)), nn.ReLU(),
        )  # fmt: skip
        self.actor = layer(nn.Linear(512, ACTIONS), 0.01)
        self.critic = layer(nn.Linear(512, 1), 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and values for pixels of shape (B, 4, 84, 84)."""
        hidden = self.network(pixels / 255.0)
        return self.actor(hidden), self.critic(hidden)


def cleanrl() -> Any:
    """The update of CleanRL's `ppo_atari`, on pixels stored as float tensors, as in CleanRL."""
    agent = CleanRLAgent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=2.5e-4, eps=1e-5)
    size = CONFIG.rollout_size
    pixels = torch.randint(256, (size, 4, 84, 84)).float()
    actions = torch.randint(ACTIONS, (size,))
    logprobs, values, advantages, returns = torch.randn(4, size).unbind()

    def update() -> int:
        for _ in range(CONFIG.update_epochs):
            for at in torch.from_numpy(np.random.permutation(size)).chunk(CONFIG.num_minibatches):
                logits, value = agent(pixels[at])
                policy = torch.distributions.Categorical(logits=logits)
                ratio = (policy.log_prob(actions[at]) - logprobs[at]).exp()
                advantage = advantages[at]
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                policy_loss = torch.max(
                    -advantage * ratio, -advantage * ratio.clamp(0.9, 1.1)
                ).mean()
                value = value.view(-1)
                near = values[at] + (value - values[at]).clamp(-0.1, 0.1)
                errors = torch.max((value - returns[at]) ** 2, (near - returns[at]) ** 2)
                loss = policy_loss - 0.01 * policy.entropy().mean() + 0.5 * 0.5 * errors.mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        return 1

    return update


def online_run(folder: Path, name: str, **changes: Any) -> tuple[Any, int, int]:
    """Train; also return the numbers of states that went through the networks, and of models."""
    details: dict[str, Any] = {
        "store": folder / "store", "game": "Pong", "models": "lite0", "run_dir": folder / name,
        **changes,
    }  # fmt: skip
    record = ["--record"] if details.pop("record", False) else []
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in details.items()]
    _, config, where = plan_run(cli.parse("learn", ["--online", *record, *flags]), "cpu")
    assert isinstance(config, OnlineRun)
    begin(where, config)
    states = 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal states
        states += len(inputs[0])

    real = train.make_network

    def counted(*how: Any) -> Any:
        network = real(*how)
        network.torso.register_forward_hook(count)
        return network

    train.make_network = counted
    try:
        return train.train_playing(where, config), states, len(config.models)
    finally:
        train.make_network = real


def alone(steps: int, updates: int, update: Any) -> float:
    """Steps per second of the emulator, acting, and updates, without anything else."""
    stated = games.protocol("Pong", "classic")
    env = games.make_env("Pong", stated, CONFIG.num_envs)
    network = ActorCritic(Inputs(((4, WIDTH),)), ACTIONS, NetworkConfig())
    states = torch.randn(CONFIG.num_envs, 4, WIDTH)
    env.reset(seed=1)
    began = time.perf_counter()
    for _ in range(steps // CONFIG.num_envs):
        with torch.no_grad():
            logits = network(states)[0]
        env.step(torch.distributions.Categorical(logits=logits).sample().numpy())
    for _ in range(updates):
        update()
    seconds = time.perf_counter() - began
    env.close()
    return steps / seconds


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contenders = {
            "CleanRL's network on pixels": cleanrl(),
            "3 models, 4 frames in a state": ours(3, 4, folder / "deep"),
            "3 models, 1 frame in a state": ours(3, 1, folder / "flat"),
        }
        print("PPO updates of 1,024 steps:\n")
        rates = interleave({n: (lambda w=w: rate(w, 1.0)) for n, w in contenders.items()}, 3)
        table("updates/s", rates, "CleanRL's network on pixels")

        steps = 4 * CONFIG.rollout_size
        options: dict[str, Any] = {"algo": "ppo", "total_timesteps": steps}
        first, states, models = online_run(folder, "first", **options, record=True)
        warm, _, _ = online_run(folder, "warm", **options)
        assert warm.passes == 0
        update = ours(1, 4, folder / "one")
        bare = alone(steps, steps // CONFIG.rollout_size - 1, update)
        print(f"\nPPO, {steps:,} steps of Pong, lite0, every frame in the store:\n")
        markdown(
            ["", "steps/s", "ratio"],
            [
                ["emulator, acting, updates", f"{bare:.0f}", "1.00"],
                ["online run", f"{warm.steps_per_s:.0f}", f"{warm.steps_per_s / bare:.2f}"],
            ],
        )
        dqn, dqn_states, _ = online_run(
            folder, "dqn", algo="dqn", total_timesteps=1000, learning_starts=100, seed=5
        )
        print("\nPasses of each model an environment step:\n")
        markdown(
            [
                "",
                "models in the network",
                "wsa, nothing in the store",
                "wsa, everything in the store",
            ],
            [
                ["PPO", f"{states / steps:.2f}", f"{first.passes / models / steps:.2f}", "0"],
                ["double DQN", f"{dqn_states / 1000:.2f}", f"{dqn.passes / 1000:.2f}", "0"],
            ],
        )


if __name__ == "__main__":
    main()
