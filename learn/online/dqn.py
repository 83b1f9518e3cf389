"""Double DQN while playing, in the manner of CleanRL's `dqn_atari`, with a share of stored data.

The learner is the offline one (`wsa.learn.offline.dqn.DQN`) without its conservative term. Replay is row
numbers (`wsa.learn.online.replay_buffer`), so an update runs no backbone. Of each batch exactly
`offline_fraction` may come from what the store has of the game, a share that is moved linearly
towards `offline_fraction_end` over the run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from wsa.learn.configs.checks import check_ranges
from wsa.learn.data.transitions import Batch, OfflineBatches
from wsa.learn.evaluation.periodic import times
from wsa.learn.networks.heads import QNetwork
from wsa.learn.offline.dqn import DQN, DQNConfig
from wsa.learn.online.replay_buffer import Replay
from wsa.learn.online.session import Played, Session
from wsa.learn.training import interrupt
from wsa.learn.training.metrics import Metrics
from wsa.store.common.errors import UsageError
from wsa.store.objects.flat_map import FlatMap


class OnlineDQNConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="algo", tag="dqn"
):
    """Hyperparameters, named and set as CleanRL's.

    Attributes:
        total_timesteps: Agent steps to play, in all environments together.
        learning_rate: Of Adam.
        num_envs: Environments side by side.
        buffer_size: Newest steps that draws see.
        gamma: Discount of a step.
        n_step: Steps whose rewards a target adds up before it trusts the target network.
        target_network_frequency: Steps between copies to the target network.
        batch_size: Transitions in a batch.
        start_e, end_e: Probability of a random action at first and at last.
        exploration_fraction: Share of the run in which it falls.
        learning_starts: Steps before the first update.
        train_frequency: Steps between updates.
        offline_fraction, offline_fraction_end: Share of each batch that is stored data, at the
            run's begin and end.
        clip_rewards: Train on the sign of rewards; reports are always of raw ones.
        terminal_on_life_loss: Value nothing beyond a lost life. The game goes on.
        weight_entropy_coef: Weight of a loss that raises the entropy of the fusion's weights.
        load_balance_coef: Weight of a loss that evens out how much each model is used.
        log_frequency: Steps between lines of metrics.
        save_frequency: Steps between checkpoints.
        eval_frequency: Steps between evaluations; 0 for none.
        eval_episodes: Games of each.
    """

    total_timesteps: int = 10_000_000
    learning_rate: float = 1e-4
    num_envs: int = 1
    buffer_size: int = 1_000_000
    gamma: float = 0.99
    n_step: int = 1
    target_network_frequency: int = 1000
    batch_size: int = 32
    start_e: float = 1.0
    end_e: float = 0.01
    exploration_fraction: float = 0.1
    learning_starts: int = 80_000
    train_frequency: int = 4
    offline_fraction: float = 0.0
    offline_fraction_end: float = 0.0
    clip_rewards: bool = True
    terminal_on_life_loss: bool = False
    weight_entropy_coef: float = 0.0
    load_balance_coef: float = 0.0
    log_frequency: int = 1000
    save_frequency: int = 100_000
    eval_frequency: int = 0
    eval_episodes: int = 10

    def __post_init__(self) -> None:
        check_ranges(
            self,
            counts=("total_timesteps", "num_envs", "buffer_size", "target_network_frequency",
                    "batch_size", "learning_starts", "train_frequency", "log_frequency", "n_step",
                    "save_frequency", "eval_episodes"),
            shares=("gamma", "start_e", "end_e", "exploration_fraction", "offline_fraction",
                    "offline_fraction_end"),
            positive=("learning_rate",),
            optional=("eval_frequency",),
        )  # fmt: skip
        if self.total_timesteps < self.num_envs:
            raise UsageError(
                "bad-option", "--total-timesteps must be at least one step of each environment."
            )

    @property
    def offline(self) -> bool:
        """Whether any batch holds stored data."""
        return self.offline_fraction > 0 or self.offline_fraction_end > 0

    @property
    def learner(self) -> DQNConfig:
        """What the learner takes; it counts in updates what is counted in steps here."""
        return DQNConfig(
            learning_rate=self.learning_rate,
            gamma=self.gamma,
            n_step=self.n_step,
            target_network_frequency=max(1, self.target_network_frequency // self.train_frequency),
            cql_alpha=0.0,
            clip_rewards=self.clip_rewards,
            weight_entropy_coef=self.weight_entropy_coef,
            load_balance_coef=self.load_balance_coef,
        )

    def epsilon(self, step: int) -> float:
        """Probability of a random action after so many steps."""
        done = min(1.0, step / max(1.0, self.exploration_fraction * self.total_timesteps))
        return self.start_e + done * (self.end_e - self.start_e)

    def stored_of(self, step: int) -> int:
        """Transitions of a batch that are stored data, after so many steps."""
        done = step / self.total_timesteps
        share = self.offline_fraction + done * (self.offline_fraction_end - self.offline_fraction)
        return round(share * self.batch_size)


def train(
    config: OnlineDQNConfig,
    session: Session,
    network: QNetwork,
    flat: FlatMap | None,
    seed: int,
    folder: Path,
    device: str = "cpu",
    on_update: Callable[[int, dict[str, float]], None] = lambda step, scalars: None,
) -> Played:
    """Play and train; continue from the newest checkpoint in `folder` if there is one.

    Args:
        config: Hyperparameters.
        session: What is played.
        network: What is trained.
        flat: The stored data, where batches hold some.
        seed: Of exploration and draws.
        folder: The run's folder.
        device: Where to train.
        on_update: Called with every line of metrics.

    Raises:
        DamagedError: The newest checkpoint, or what stands beside it, is damaged.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint has been saved.
    """
    stage = session.stage
    learner = DQN(config.learner, network.to(device))
    generator = np.random.default_rng([seed, 2])
    draws = Draws(config, session, flat, seed, folder)
    evaluation, stride = session.evaluation, config.num_envs
    updates, scalars = 0, dict[str, float]()
    _, extra = session.resume(folder, learner.modules, learner.optimizer)
    if extra:
        generator.bit_generator.state = extra["explore"]
        draws.restore(extra["draws"])
        updates, scalars = extra["updates"], extra["scalars"]
    steps = config.total_timesteps // config.num_envs
    with Metrics(folder, stage.steps) as metrics, interrupt.StopRequest() as stop:
        last = stage.steps == steps * stride
        if updates and evaluation.owed(folder, stage.steps, stride=stride, last=last):
            evaluation.play(network, stage.steps, metrics, stop)
            if stop.asked:
                raise stop.asked
        for t in range(stage.steps // config.num_envs, steps):
            before, first = stage.stacks, stage.first
            actions = act(config, session, network, generator)
            step = stage.step(actions)
            draws.replay.add(before, first, actions, step, config.terminal_on_life_loss)
            session.log_episodes(metrics, step)
            last = t == steps - 1
            logging = times(config.log_frequency, stage.steps, stride) or last
            if stage.steps >= config.learning_starts:
                session.settle(learner.online, learner.target)
                for _ in range(times(config.train_frequency, stage.steps, stride)):
                    learner.online.train()
                    updates += 1
                    found = learner.update(updates, draws.draw(stage.steps))
                    if logging:
                        scalars = session.line(found)
            if logging:
                line = {
                    **scalars,
                    "charts/epsilon": config.epsilon(stage.steps),
                    "charts/learning_rate": config.learning_rate,
                    **session.scalars(),
                }
                metrics.write(stage.steps, line)
                on_update(stage.steps, line)
            # Before the first update it would be the same network again and again.
            if updates and evaluation.due(stage.steps, stride=stride, last=last):
                evaluation.play(network, stage.steps, metrics, stop)
            stopping = stop.asked  # Once: a signal may come between the lines below.
            if times(config.save_frequency, stage.steps, stride) or last or stopping:
                metrics.flush()
                draws.replay.flush()
                state = {
                    "explore": generator.bit_generator.state,
                    "draws": draws.state(),
                    "updates": updates,
                    "scalars": scalars,
                }
                session.save(folder, learner.modules, learner.optimizer, {}, state)
            if stopping:
                raise stopping
    return session.played(network)


def act(
    config: OnlineDQNConfig, session: Session, network: QNetwork, generator: np.random.Generator
) -> NDArray[np.int64]:
    """The actions of greatest value, or with probability epsilon random ones, (n,)."""
    stage = session.stage
    explore = generator.random(stage.num_envs) < config.epsilon(stage.steps)
    random = generator.integers(stage.actions, size=stage.num_envs)
    if explore.all():
        return random
    if network.training:  # Dropout is for updates.
        network.eval()
    with torch.no_grad():
        stacks = session.table.gather(stage.stacks).to(network.device)
        values = network(stacks)[0]
    return np.where(explore, random, values.argmax(dim=1).cpu().numpy())


class Draws:
    """Batches of what was played and, as far as asked for, of what is stored.

    Args:
        config: Hyperparameters.
        session: What is played.
        flat: The stored data.
        seed: Of the draws.
        folder: The run's folder.
    """

    def __init__(
        self,
        config: OnlineDQNConfig,
        session: Session,
        flat: FlatMap | None,
        seed: int,
        folder: Path,
    ) -> None:
        self._config = config
        stage = session.stage
        depth = stage.stacks.shape[1]
        steps = config.total_timesteps // config.num_envs
        counting: dict[str, Any] = {
            "n_step": config.n_step, "gamma": config.gamma, "clip": config.clip_rewards
        }  # fmt: skip
        self.replay = Replay(
            folder, session.table, config.num_envs, steps, depth, config.buffer_size, **counting
        )
        self._generator = np.random.default_rng([seed, 3])
        self._stored: OfflineBatches | None = None
        if config.offline:
            assert flat is not None, "a run that mixes in stored data is configured with some"
            self._stored = OfflineBatches(flat, depth, config.batch_size, seed, **counting)

    def draw(self, step: int) -> Batch:
        """The batch after so many steps, stored transitions first."""
        stored = self._config.stored_of(step) if self._stored else 0
        parts = []
        if stored and self._stored:
            parts.append(self._stored.draw(stored))
        if stored < self._config.batch_size:
            parts.append(self.replay.draw(self._config.batch_size - stored, self._generator))
        return parts[0] if len(parts) == 1 else Batch.join(parts)

    def state(self) -> dict[str, Any]:
        """Where the draws stand, as JSON values."""
        return {
            "replay": self.replay.state(),
            "generator": self._generator.bit_generator.state,
            "stored": self._stored.state() if self._stored else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.replay.restore(state["replay"])
        self._generator.bit_generator.state = state["generator"]
        if self._stored:
            self._stored.restore(state["stored"])
