"""Online double DQN, in the style of CleanRL's `dqn_atari`, optionally mixed with stored data.

The update is the offline learner's (`wsa.learn.offline.dqn.DQN`) without the conservative term. The
replay buffer holds row numbers (`wsa.learn.online.replay_buffer`), so an update runs no frozen
model. A fraction of each batch may come from the game's stored transitions: exactly
`offline_fraction`, which changes linearly to `offline_fraction_end` over the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsa.learn.configs.algorithms import OnlineDQNConfig
from wsa.learn.data.transitions import Batch, OfflineBatches
from wsa.learn.networks.heads import QNetwork
from wsa.learn.offline.dqn import DQN
from wsa.learn.online.replay_buffer import Replay
from wsa.learn.online.session import Played, Session
from wsa.learn.training.loop import Loop, OnLine, times


def train_dqn(
    config: OnlineDQNConfig,
    session: Session,
    network: QNetwork,
    folder: Path,
    device: str = "cpu",
    on_line: OnLine = lambda step, line: None,
) -> Played:
    """Train DQN, resuming from the newest checkpoint in `folder` if there is one.

    Args:
        session: The environments, their embedding table, and stored transitions if batches mix
            them in.

    Raises:
        DamagedError: If the newest checkpoint, or a file that it refers to, is damaged.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after a checkpoint is saved.
    """
    runner, stride = session.runner, config.num_envs
    learner = DQN(config.learner, network.to(device))
    generator = np.random.default_rng([session.seed, 2])
    draws = Draws(config, session, folder)
    updates, before = 0, dict[str, float]()  # `before`: scalars of the resumed checkpoint.
    scalars = dict[str, Tensor]()
    _, extra = session.resume(folder, learner.modules, learner.optimizer)
    if extra:
        generator.bit_generator.state = extra["explore"]
        draws.restore(extra["draws"])
        updates, before = extra["updates"], extra["scalars"]

    def losses() -> dict[str, float]:
        """Scalars of the last update. Reading them waits for a GPU, so only what is logged is read."""
        return session.line(scalars) if scalars else before

    def save(step: int) -> None:
        draws.replay.flush()
        state = {
            "explore": generator.bit_generator.state,
            "draws": draws.state(),
            "updates": updates,
            "scalars": losses(),
        }
        session.save(folder, learner.modules, learner.optimizer, {}, state)

    with Loop(
        folder, runner.steps, config.last_step, stride=stride, save=save,
        save_frequency=config.save_frequency, on_line=on_line, evaluation=session.evaluation,
        network=network, trained=lambda: updates > 0,
    ) as loop:  # fmt: skip
        for step in loop:
            states, first = runner.stacks, runner.first
            actions = act(config, session, network, generator)
            played = runner.step(actions)
            draws.replay.add(states, first, actions, played, config.terminal_on_life_loss)
            session.log_episodes(loop.metrics, played)
            if step >= config.learning_starts:
                session.settle(learner.online, learner.target)
                for _ in range(times(config.train_frequency, step, stride)):
                    learner.online.train()
                    updates += 1
                    scalars = learner.update(updates, draws.draw(step))
            if loop.every(config.log_frequency):
                rates = {
                    "charts/epsilon": config.epsilon(step),
                    "charts/learning_rate": config.learning_rate,
                }
                loop.write(losses() | rates | session.scalars())
    return session.played(network)


def act(
    config: OnlineDQNConfig, session: Session, network: QNetwork, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Choose epsilon-greedy actions, (n,)."""
    runner = session.runner
    explore = generator.random(runner.num_envs) < config.epsilon(runner.steps)
    random_actions = generator.integers(runner.actions, size=runner.num_envs)
    if explore.all():
        return random_actions
    if network.training:  # No dropout while acting.
        network.eval()
    with torch.no_grad():
        stacks = session.table.gather(runner.stacks).to(network.device)
        values = network(stacks)[0]
    return np.where(explore, random_actions, values.argmax(dim=1).cpu().numpy())


class Draws:
    """Draw batches from the replay buffer and, if configured, from stored transitions."""

    def __init__(self, config: OnlineDQNConfig, session: Session, folder: Path) -> None:
        self._config = config
        runner = session.runner
        depth = runner.stacks.shape[1]
        steps = config.total_timesteps // config.num_envs
        discounting = config.discounting._asdict()
        self.replay = Replay(
            folder, session.table, config.num_envs, steps, depth, config.buffer_size, **discounting
        )
        self._generator = np.random.default_rng([session.seed, 3])
        self._stored: OfflineBatches | None = None
        if config.mixes_stored:
            assert session.stored is not None, "such a run is configured with some"
            self._stored = OfflineBatches(
                session.stored, depth, config.batch_size, session.seed,
                life_loss_ends=config.terminal_on_life_loss, **discounting,
            )  # fmt: skip

    def draw(self, step: int) -> Batch:
        """Draw the batch for training step `step`; stored transitions come first in it."""
        stored = self._config.stored_of(step) if self._stored else 0
        parts = []
        if stored and self._stored:
            parts.append(self._stored.draw(stored))
        if stored < self._config.batch_size:
            parts.append(self.replay.draw(self._config.batch_size - stored, self._generator))
        return parts[0] if len(parts) == 1 else Batch.join(parts)

    def state(self) -> dict[str, Any]:
        """Return the state of the buffer and the generators as JSON values."""
        return {
            "replay": self.replay.state(),
            "generator": self._generator.bit_generator.state,
            "stored": self._stored.state() if self._stored else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.replay.restore(state["replay"])
        self._generator.bit_generator.state = state["generator"]
        if self._stored:
            self._stored.restore(state["stored"])
