"""`wsa study scale --after cached`: decisions of a trained network with every set of its models.

On stored states only the network runs: no forward pass of a model, and no game. The study measures
how often the network would choose the same action, and how much it loses by its own values if not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder
from wsa.learn.runs.presence import Mask, check_can_lose
from wsa.learn.study.scaling.stored_states import STATES, StoredStates
from wsa.learn.study.scaling.subsets import shapley, subsets
from wsa.learn.study.trained_runs import TrainedRun
from wsa.learn.training import checkpoint
from wsa.store.common.errors import UsageError

MOST_MODELS = 10  # Makes about a thousand sets.


@dataclasses.dataclass(frozen=True)
class SetResult:
    """Result of one set of a run's models, compared with all of them.

    Attributes:
        present: Whether each of the run's models is in the set.
        agreement: Share of states with the same action as with all models.
        loss: For action values, mean regret: the loss in the whole network's value. For a policy,
            mean divergence KL(whole, set) in nats.
        weights: Mean weight of each model; None if the fusion has none.
    """

    present: Mask
    agreement: float
    loss: float
    weights: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True)
class CachedResult:
    """A run, with every set of its models, the empty one first.

    `loss` is the kind of `SetResult.loss`: `regret` or `KL`. `shapley` has the exact Shapley value
    of the agreement for each model.
    """

    run: str
    game: str
    fusion: str
    seed: int
    parameters: int
    models: tuple[str, ...]
    checkpoint: str
    states: int
    held_out: bool
    loss: str
    sets: tuple[SetResult, ...]
    shapley: tuple[float, ...]
    passes: int

    @property
    def name(self) -> str:
        """Name of the run in headings."""
        return f"{self.game}, {self.fusion}, seed {self.seed}"


def check(run: TrainedRun) -> None:
    """Refuse a run that cannot be studied, before anything is opened.

    Raises:
        UsageError: If it has too many models, or its fusion needs all of them.
        MissingError: If it has no checkpoint yet.
    """
    check_can_lose(run.config, str(run.folder))
    models = len(run.config.models)
    if models > MOST_MODELS:
        raise UsageError(
            f"{run.folder} has {models} models, which make {2**models:,} "
            f"sets. At most {MOST_MODELS} models are supported. Use wsa eval --without for single sets."
        )
    checkpoint.latest(run.folder / "checkpoints")


def measure(
    run: TrainedRun,
    most: int = STATES,
    device: str = "cpu",
    on_set: Callable[[int, int], None] = lambda done, total: None,
) -> CachedResult:
    """Evaluate the network of a run that passes `check` with every set of its models.

    `on_set` is called with (sets done, sets in total).

    Raises:
        MissingError: If there is no checkpoint, or no state.
        DamagedError: If the checkpoint or the data is damaged.
    """
    before = Encoder.total_passes
    states = StoredStates(run, most, device)
    config = run.config
    models = len(config.models)
    logits = config.hyperparameters.OUTPUT == "logits"
    kind, loss_of = ("KL", divergence) if logits else ("regret", regret)
    masks: list[Mask] = [(False,) * models, *subsets(models)]
    all_values = states.decide(masks[-1]).values
    sets = []
    for done, mask in enumerate(masks, 1):
        decisions = states.decide(mask)
        weights = None
        if decisions.weights is not None:
            weights = tuple(decisions.weights.mean(axis=0).tolist())
        agreement = float((decisions.values.argmax(axis=1) == all_values.argmax(axis=1)).mean())
        loss = loss_of(all_values, decisions.values)
        sets.append(SetResult(mask, agreement, loss, weights))
        on_set(done, len(masks))
    passes = Encoder.total_passes - before
    assert passes == 0, "stored states need no pass"
    return CachedResult(
        str(run.folder), config.game, config.network.fusion.name, config.seed, states.parameters,
        run.models, run.network, len(states), states.held_out, kind,
        tuple(sets), tuple(shapley({s.present: s.agreement for s in sets}).tolist()), passes,
    )  # fmt: skip


def regret(whole: NDArray[np.float32], part: NDArray[np.float32]) -> float:
    """Mean loss in `whole` values of the actions chosen by `part`, each (n, actions); 0 or more."""
    chosen = np.take_along_axis(whole, part.argmax(axis=1)[:, None], axis=1)[:, 0]
    return float((whole.max(axis=1) - chosen).mean())


def divergence(whole: NDArray[np.float32], part: NDArray[np.float32]) -> float:
    """Mean KL(whole, part) in nats of two policies' logits, each (n, actions); 0 or more."""
    p, q = (torch.from_numpy(logits).double().log_softmax(dim=1) for logits in (whole, part))
    return float((p.exp() * (p - q)).sum(dim=1).mean())
