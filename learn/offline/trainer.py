"""Offline training: the loop that all offline learners share.

All embeddings were computed when the store was encoded, so the loop runs no frozen model. It samples
transitions from the flat map. Whole episodes are held out, and the learner's scalars on them are
logged as `validation/...`.
"""

from __future__ import annotations

import functools
import logging
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsa.encode.inference.encoder import Encoder
from wsa.learn.configs.algorithms import OfflineConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.data.nstep import hold_out, horizon, walk
from wsa.learn.data.transitions import Batch, OfflineBatches, moments
from wsa.learn.evaluation.periodic import PeriodicEvaluation
from wsa.learn.fusion.base import Inputs
from wsa.learn.fusion.losses import log_line
from wsa.learn.networks.heads import QNetwork
from wsa.learn.training import checkpoint
from wsa.learn.training.loop import Loop, OnLine
from wsa.store.common.errors import ConflictError
from wsa.store.objects.flat_map import FlatMap

_log = logging.getLogger(__name__)

VALIDATED = 2048  # Maximum number of held-out steps to validate on.
CHUNK = 256


class Learner(Protocol):
    """An offline algorithm, bound to a network.

    Attributes:
        modules: The networks that a checkpoint holds, by name; one of them is `online`.
        optimizer: Optimizer of everything that is trained; a checkpoint holds no other.
        judge: Validation scalar by which networks are compared; lower is better.
    """

    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    judge: str

    def update(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """Make gradient step `step`. Return scalars to log, and `weights` (models,) if any."""
        ...

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return scalars of held-out transitions, each a mean over the batch."""
        ...


@dataclass(frozen=True)
class Trained:
    """Result of one call of `train_offline`. The counts and the rate are those of this call."""

    network: QNetwork
    updates: int
    updates_per_s: float
    passes: int

    def summary(self) -> dict[str, float]:
        """Return the counts and rates as JSON values."""
        return {
            "updates": self.updates,
            "updates_per_s": self.updates_per_s,
            "backbone_passes": self.passes,
        }


def train_offline(
    config: OfflineConfig,
    network: NetworkConfig,
    flat: FlatMap,
    inputs: Inputs,
    actions: int,
    seed: int,
    folder: Path,
    device: str = "cpu",
    *,
    warm_start: Callable[[QNetwork], object] = lambda network: None,
    compiled: bool = False,
    evaluation: PeriodicEvaluation | None = None,
    on_line: OnLine = lambda step, line: None,
) -> Trained:
    """Train on the flat map, resuming from the newest checkpoint in `folder` if there is one.

    Args:
        config: Hyperparameters; their class selects the algorithm.
        inputs: Shapes of the models' embeddings.
        actions: Number of actions.
        seed: Seed of initialization and sampling.
        warm_start: Changes the initial weights of a new run.
        compiled: Whether to use torch.compile on the networks.

    Raises:
        UsageError: If the fusion cannot take these inputs.
        DamagedError: If the newest checkpoint is damaged.
        ConflictError: If the learner does not return the scalar that its `judge` names.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after a checkpoint is saved.
    """
    evaluation = evaluation or PeriodicEvaluation()
    torch.manual_seed(seed)
    online = QNetwork(inputs, actions, network)
    if network.normalize == "standard":
        online.torso.set_moments(*moments(flat))
    checkpoints = folder / "checkpoints"
    resuming = bool(checkpoint.all_of(checkpoints))
    if not resuming:
        warm_start(online)
    online.to(device)
    learner = make_learner(config, online)
    if compiled:
        for module in learner.modules.values():
            module.compile()
    training, held_out = hold_out(flat, config.validation_fraction)
    batches = OfflineBatches(
        flat, inputs.depth, config.batch_size, seed, steps=training,
        **config.discounting._asdict(),
    )  # fmt: skip
    validation = Validation(config, inputs.depth, flat, held_out)
    start, best = 0, inf
    if resuming:
        newest = checkpoint.latest(checkpoints)
        start, extra = checkpoint.load(newest, learner.modules, learner.optimizer)
        batches.restore(extra["draws"])
        best = extra["best"] if extra["best"] is not None else inf
    if start >= config.updates and not evaluation.skipped(folder, start, last=True):
        return Trained(online, 0, 0.0, 0)
    evaluation.open()

    passes_before = Encoder.total_passes - evaluation.finished_passes

    def passes() -> int:
        return Encoder.total_passes - evaluation.finished_passes - passes_before

    def save(step: int) -> None:
        extra = {"draws": batches.state(), "best": best if isfinite(best) else None}
        checkpoint.save(checkpoints, step, learner.modules, learner.optimizer, extra)

    with Loop(
        folder, start, config.updates, save=save, save_frequency=config.save_frequency,
        on_line=on_line, evaluation=evaluation, network=online,
    ) as loop:  # fmt: skip
        logged, lap = start, 0.0
        for step in loop:
            scalars = learner.update(step, batches.draw())
            validating = bool(len(held_out)) and loop.every(config.validation_frequency)
            if loop.every(config.log_frequency) or validating:
                line = log_line(scalars, flat.models)
                line["charts/learning_rate"] = learner.optimizer.param_groups[0]["lr"]
                line["time/updates_per_s"] = (step - logged) / (loop.seconds - lap)
                line["cache/backbone_passes"] = passes()
                # Without a cache, an update runs every model on its states and its next states.
                line["cache/backbone_passes_saved"] = (
                    2 * config.batch_size * len(inputs.shapes) * step
                )
                if validating:
                    line |= validation(learner)
                    if config.save_best and (score := score_of(learner, line)) < best:
                        best = score
                        checkpoint.save(checkpoints, step, {"online": online}, name=checkpoint.BEST)
                lap, logged = loop.seconds, step
                loop.write(line)
        updates = loop.step - start
        return Trained(online, updates, updates / loop.seconds, passes())


def make_learner(config: OfflineConfig, network: QNetwork) -> Learner:
    """Create the learner that a configuration names."""
    learner: Learner = pkgutil.resolve_name(config.LEARNER)(config, network)
    return learner


def score_of(learner: Learner, scalars: Mapping[str, float]) -> float:
    """Return the scalar by which networks are compared; lower is better.

    Raises:
        ConflictError: If the learner does not return it.
    """
    if learner.judge not in scalars:
        own = ", ".join(name for name in scalars if name.startswith("validation/"))
        raise ConflictError(
            "user-code",
            f"{type(learner).__name__}.judge is {learner.judge!r}, but its validate() returns "
            f"{own or 'nothing'}. Name one of these.",
        )
    return scalars[learner.judge]


class Validation:
    """Validation on a fixed, evenly spaced sample of the held-out transitions."""

    def __init__(
        self, config: OfflineConfig, depth: int, flat: FlatMap, held: NDArray[np.int64]
    ) -> None:
        at = np.unique(np.linspace(0, max(len(held) - 1, 0), VALIDATED).astype(np.int64))
        self._rows = held[at] if len(held) else held
        self._batches = OfflineBatches(
            flat, depth, CHUNK, 0,
            **config.discounting._asdict(),
        )  # fmt: skip
        self._config, self._flat = config, flat
        self._warned = False

    @functools.cached_property
    def _returns(self) -> NDArray[np.float32]:
        """Discounted returns of those sampled steps whose return the data holds in full."""
        _, gamma, clip = self._config.discounting
        earned = walk(self._flat, self._rows, horizon(gamma), gamma, clip)
        return earned.returns[earned.whole]

    def __call__(self, learner: Learner) -> dict[str, float]:
        """Return a learner's validation scalars, without training it or drawing random numbers."""
        sums: dict[str, float] = {}
        trained = [module for module in learner.modules.values() if module.training]
        for module in trained:
            module.eval()
        with torch.no_grad():
            for at in range(0, len(self._rows), CHUNK):
                rows = self._rows[at : at + CHUNK]
                for key, value in learner.validate(self._batches.of(rows)).items():
                    sums[key] = sums.get(key, 0.0) + value.item() * len(rows) / len(self._rows)
        for module in trained:
            module.train()
        if "validation/max_q" in sums and len(self._returns):
            sums["validation/return"] = float(self._returns.mean())
            self._warn(sums["validation/max_q"])
        return sums

    def _warn(self, value: float) -> None:
        """Warn once if the mean value is far outside the range of the data's returns."""
        low, high = 2 * min(self._returns.min(), 0) - 1, 2 * max(self._returns.max(), 0) + 1
        if not self._warned and not low <= value <= high:
            self._warned = True
            _log.warning(
                f"states of held-out episodes are valued at {value:,.3g} on average, and no "
                f"discounted return in them is above {self._returns.max():,.3g} (mean "
                f"{self._returns.mean():,.3g}): the values diverge, as they often do on fixed "
                "data. Use --algo cql, with a larger --cql-alpha if you did, or --algo bc."
            )
