"""`wsa study scale --after cached`: what a trained network is worth with every set of its models.

On stored states nothing needs to be run but the network itself: no pass, and no game. What is asked
is whether it would have done the same, and what it gives up by its own judgement where it would not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder
from wsa.learn.configs.algorithms import BCConfig, PPOConfig
from wsa.learn.evaluation.video import labels
from wsa.learn.runs.config import read_config
from wsa.learn.runs.presence import check_can_lose
from wsa.learn.study.scaling.stored_states import STATES, StoredStates
from wsa.learn.study.scaling.subsets import Mask, shapley, subsets
from wsa.store.common.errors import UsageError

MOST_MODELS = 10  # A thousand sets.


@dataclasses.dataclass(frozen=True)
class Measured:
    """A set of a run's models, beside the whole.

    Attributes:
        present: Which of the run's models it has.
        agreement: Share of states in which the network does what it does with all models.
        loss: Of action values: what their maximum loses by it, mean; of a policy: its divergence
            KL(whole, set) in nats, mean.
        weights: Each model's mean weight; None where the fusion gives none.
    """

    present: Mask
    agreement: float
    loss: float
    weights: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A run, with every set of its models.

    Attributes:
        run: Its folder.
        game: ALE game id.
        fusion: How it fuses.
        seed: Of the run.
        models: What its models are called.
        checkpoint: 12 hex digits of the network.
        states: How many were looked at.
        held_out: Whether the run has not learned from them.
        loss: What `Measured.loss` is: `regret` or `KL`.
        sets: All sets of models, the empty one first.
        shapley: Each model's exact Shapley value of the agreement.
        passes: Frames that went through a model for all this: 0.
    """

    run: str
    game: str
    fusion: str
    seed: int
    models: tuple[str, ...]
    checkpoint: str
    states: int
    held_out: bool
    loss: str
    sets: tuple[Measured, ...]
    shapley: tuple[float, ...]
    passes: int


def check(folder: Path) -> None:
    """Refuse a run that this cannot be asked of, before anything is opened.

    Raises:
        MissingError: There is no run.
        UsageError: It has too many models, or cannot lose one.
    """
    config = read_config(folder)
    check_can_lose(config, f"wsa study scale {folder}")
    if len(config.models) > MOST_MODELS:
        raise UsageError(
            "bad-option",
            f"{folder} has {len(config.models)} models, which make {2 ** len(config.models):,} "
            f"sets; at most {MOST_MODELS} can be looked at. Use wsa eval --without for single sets.",
        )


def models_of(folder: Path) -> int:
    """How many models a run fuses."""
    return len(read_config(folder).models)


def measure(
    folder: Path,
    most: int = STATES,
    device: str = "cpu",
    on_set: Callable[[int, int], None] = lambda done, total: None,
) -> Scaled:
    """Look at a run's network with every set of its models.

    Args:
        folder: The run's folder.
        most: States to look at.
        device: Where the network runs.
        on_set: Called with (sets looked at, all of them).

    Raises:
        MissingError: No run, no checkpoint, or no states.
        DamagedError: The checkpoint or the data is damaged.
        UsageError: As `check`.
    """
    check(folder)
    before = Encoder.total_passes
    states = StoredStates(folder, most, device)
    config = states.config
    models = len(config.models)
    kind = "KL" if isinstance(config.hyperparameters, BCConfig | PPOConfig) else "regret"
    every: list[Mask] = [(False,) * models, *subsets(models)]
    whole = states.decide(every[-1]).values
    sets = []
    for done, mask in enumerate(every, 1):
        seen = states.decide(mask)
        weights = None if seen.weights is None else tuple(seen.weights.mean(axis=0).tolist())
        agreement = float((seen.values.argmax(axis=1) == whole.argmax(axis=1)).mean())
        loss = divergence(whole, seen.values) if kind == "KL" else regret(whole, seen.values)
        sets.append(Measured(mask, agreement, loss, weights))
        on_set(done, len(every))
    passes = Encoder.total_passes - before
    assert passes == 0, "stored states need no pass"
    return Scaled(
        str(folder), config.game, config.network.fusion.name, config.seed,
        tuple(labels(config.models)), states.digest, len(states), states.held_out, kind,
        tuple(sets), tuple(shapley({s.present: s.agreement for s in sets}).tolist()), passes,
    )  # fmt: skip


def regret(whole: NDArray[np.float32], part: NDArray[np.float32]) -> float:
    """What the choices of `part` lose by the values of `whole`, (n, actions) each; mean, 0 or more."""
    chosen = np.take_along_axis(whole, part.argmax(axis=1)[:, None], axis=1)[:, 0]
    return float((whole.max(axis=1) - chosen).mean())


def divergence(whole: NDArray[np.float32], part: NDArray[np.float32]) -> float:
    """KL(whole, part) in nats of two policies' logits (n, actions); mean, 0 or more."""
    p, q = (torch.from_numpy(logits).double().log_softmax(dim=1) for logits in (whole, part))
    return float((p.exp() * (p - q)).sum(dim=1).mean())
