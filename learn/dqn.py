"""Offline double DQN on cached embeddings, with an optional conservative (CQL) term.

Everything a learner needs of a frame was computed once, when the store was filled, so this file
runs no backbone: it draws transitions from the flat map and says so by counting (`passes`).

Double DQN: van Hasselt et al., 2016 (arXiv 1509.06461). CQL: Kumar et al., 2020 (arXiv 2006.04779),
equation 4 with the entropy regulariser, as a term of the loss: alpha * (logsumexp Q - Q(a)).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from math import inf
from pathlib import Path

import torch
from torch import nn

from wsa.encode.forward import Encoder
from wsa.learn import checkpoint
from wsa.learn.adapters import FusionConfig, Inputs
from wsa.learn.features import Batch, OfflineBatches, moments
from wsa.learn.heads import NetworkConfig, QNetwork
from wsa.learn.metrics import Metrics
from wsa.store.errors import UsageError
from wsa.store.flat import FlatMap
from wsa.store.windows import MAX_STACK_FRAMES


@dataclasses.dataclass(frozen=True)
class DQNConfig:
    """Hyperparameters.

    Attributes:
        updates: Gradient steps.
        batch_size: Transitions in a batch.
        learning_rate: Of Adam.
        gamma: Discount per agent step.
        target_network_frequency: Gradient steps between copies to the target network.
        cql_alpha: Weight of the conservative term; 0 is plain double DQN.
        clip_rewards: Train on the sign of the reward, as DQN does; reports stay raw.
        frame_stack: Frames in a state.
        fusion_size: Length of the fused state vector.
        log_frequency: Gradient steps between lines of metrics.
        save_frequency: Gradient steps between checkpoints.
    """

    updates: int = 100_000
    batch_size: int = 32
    learning_rate: float = 1e-4
    gamma: float = 0.99
    target_network_frequency: int = 1000
    cql_alpha: float = 1.0
    clip_rewards: bool = True
    frame_stack: int = 4
    fusion_size: int = 256
    log_frequency: int = 100
    save_frequency: int = 10_000

    def __post_init__(self) -> None:
        for field in ("updates", "batch_size", "frame_stack", "fusion_size", "log_frequency",
                      "save_frequency", "target_network_frequency"):  # fmt: skip
            if getattr(self, field) < 1:
                raise UsageError(
                    "bad-option",
                    f"--{field.replace('_', '-')} must be at least 1, not {getattr(self, field)}.",
                )
        if self.frame_stack > MAX_STACK_FRAMES:
            raise UsageError(
                "bad-option",
                f"--frame-stack must be at most {MAX_STACK_FRAMES}, not {self.frame_stack}: "
                "segments repeat no more frames of each other.",
            )
        if not (
            0 < self.learning_rate < inf and 0 <= self.gamma <= 1 and 0 <= self.cql_alpha < inf
        ):
            raise UsageError(
                "bad-option",
                "--learning-rate must be positive, --gamma from 0 to 1, --cql-alpha at least 0.",
            )


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training did just now.

    Attributes:
        network: The trained network.
        updates: Gradient steps made now; 0 where the run was finished already.
        updates_per_s: Their rate.
        passes: Frames that went through a backbone meanwhile: 0.
    """

    network: QNetwork
    updates: int
    updates_per_s: float
    passes: int


def make_network(
    config: DQNConfig, widths: list[int], actions: int, context: int | None
) -> QNetwork:
    """The network that a run trains and an evaluation loads."""
    inputs = Inputs(tuple((config.frame_stack, width) for width in widths), context)
    fusion = FusionConfig(size=config.fusion_size)
    return QNetwork(inputs, actions, NetworkConfig(fusion, config.frame_stack))


def train(
    config: DQNConfig,
    flat: FlatMap,
    actions: int,
    context: int | None,
    seed: int,
    folder: Path,
    device: str = "cpu",
    on_update: Callable[[int, dict[str, float]], None] = lambda step, scalars: None,
) -> Trained:
    """Train from the flat map; continue from the newest checkpoint in `folder` if there is one.

    Args:
        config: Hyperparameters.
        flat: The data.
        actions: Number of actions.
        context: Index of the model that gives WSA's context, or None.
        seed: Of initialisation and draws.
        folder: The run's folder.
        device: Where to train.
        on_update: Called with every line of metrics.

    Raises:
        DamagedError: The newest checkpoint is damaged.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint has been saved.
    """
    passes_before = Encoder.total_passes
    torch.manual_seed(seed)
    widths = [columns.stop - columns.start for columns in flat.columns]
    online = make_network(config, widths, actions, context)
    online.torso.set_moments(*moments(flat))
    target = make_network(config, widths, actions, context)
    target.load_state_dict(online.state_dict())
    online.to(device)
    target.to(device)
    optimizer = torch.optim.Adam(online.parameters(), lr=config.learning_rate, fused=True)
    batches = OfflineBatches(flat, config.frame_stack, config.batch_size, seed)
    modules: dict[str, nn.Module] = {"online": online, "target": target}
    checkpoints = folder / "checkpoints"
    start = 0
    if checkpoint.all_of(checkpoints):
        start, extra = checkpoint.load(checkpoint.latest(checkpoints), modules, optimizer)
        batches.restore(extra["draws"])
    if start >= config.updates:
        return Trained(online, 0, 0.0, 0)
    step = logged = start
    began = lap = time.perf_counter()
    with Metrics(folder, start) as metrics, checkpoint.StopRequest() as stop:
        for step in range(start + 1, config.updates + 1):
            loss, scalars = update_loss(config, online, target, batches.draw(), device)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step % config.target_network_frequency == 0:
                target.load_state_dict(online.state_dict())
            if step % config.log_frequency == 0 or step == config.updates:
                now = time.perf_counter()
                weights = scalars.pop("weights").tolist()
                line = {key: value.item() for key, value in scalars.items()}
                for key, weight in zip(flat.models, weights, strict=True):
                    line[f"wsa/weight/{key}"] = weight
                line["charts/learning_rate"] = config.learning_rate
                line["time/updates_per_s"] = (step - logged) / (now - lap)
                line["cache/backbone_passes"] = Encoder.total_passes - passes_before
                # Without a cache each update runs every model on a batch of states and of next states.
                line["cache/backbone_passes_saved"] = 2 * config.batch_size * len(widths) * step
                lap, logged = now, step
                metrics.write(step, line)
                on_update(step, line)
            stopping = stop.asked  # Once: a signal may come between the lines below.
            if step % config.save_frequency == 0 or step == config.updates or stopping:
                metrics.flush()
                checkpoint.save(checkpoints, step, modules, optimizer, {"draws": batches.state()})
            if stopping:
                raise stopping
    passes = Encoder.total_passes - passes_before
    assert passes == 0, "offline training must not run a backbone"
    seconds = time.perf_counter() - began
    return Trained(online, step - start, (step - start) / seconds, passes)


def update_loss(
    config: DQNConfig, online: QNetwork, target: QNetwork, batch: Batch, device: str
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of one batch, and what to log of it.

    Returns:
        The loss, and `losses/td_loss`, `losses/cql`, `losses/q_values`, `wsa/weight_entropy` as
        scalars, `weights` (models,).
    """
    states = batch.states.to(device)
    actions = batch.actions.to(device)
    rewards = batch.rewards.to(device)
    if config.clip_rewards:
        rewards = rewards.sign()
    with torch.no_grad():
        best = online(states[:, 1:])[0].argmax(dim=1)
        following = target(states[:, 1:])[0].gather(1, best[:, None]).squeeze(1)
        wanted = rewards + config.gamma * (1 - batch.terminated.to(device)) * following
    values, weights = online(states[:, :-1])
    assert weights is not None
    taken = values.gather(1, actions[:, None]).squeeze(1)
    td_loss = nn.functional.smooth_l1_loss(taken, wanted)
    conservative = (values.logsumexp(dim=1) - taken).mean()
    loss = td_loss + config.cql_alpha * conservative
    with torch.no_grad():
        entropy = -(weights * weights.clamp_min(1e-12).log()).sum(dim=1).mean()
        scalars = {
            "losses/td_loss": td_loss,
            "losses/cql": conservative,
            "losses/q_values": taken.mean(),
            "wsa/weight_entropy": entropy,
            "weights": weights.mean(dim=0),
        }
    return loss, scalars
