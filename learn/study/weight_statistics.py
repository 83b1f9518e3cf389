"""Statistics of a fusion's weights, from `eval_weights.npz`: how much, how long, and when."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.learn.evaluation.attention_log import FILE
from wsa.learn.evaluation.scores import TAILS
from wsa.learn.fusion.build import weighing
from wsa.store.common.errors import DamagedError, MissingError, UsageError

REACH = 30  # Number of steps before and after a reward.
MOST_EVENTS = 2000
RESAMPLES = 1000

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Log:
    """The steps of an evaluation, game by game and in order.

    Attributes:
        models: Keys of the m models.
        game: Index of each step's game, shape (n,), from 0.
        step: Index of each step within its game, shape (n,), from 0.
        action: Actions, shape (n,).
        reward: Raw rewards, shape (n,).
        shares: The fusion's weights, scaled to sum to 1, shape (n, m).
        weights: The fusion's weights, unscaled, shape (n, m).
    """

    models: tuple[str, ...]
    game: NDArray[np.int64]
    step: NDArray[np.int64]
    action: NDArray[np.int64]
    reward: Floats
    shares: Floats
    weights: Floats


def read_log(folder: Path) -> Log:
    """Read the weights that a run's newest evaluation logged.

    Raises:
        MissingError: If there are none.
        DamagedError: If the file cannot be read.
        UsageError: If the evaluation left a model out.
    """
    path = folder / FILE
    if not path.exists():
        raise MissingError(
            "no-run",
            f"{folder} has no {FILE}. 'wsa eval {folder}' writes it, if the fusion gives models weights: "
            f"{', '.join(weighing())}.",
        )
    try:
        # numpy leaves a file open that it opened itself and cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            columns: dict[str, NDArray[Any]] = {name: found[name] for name in found.files}
        order = np.lexsort((columns["step"], columns["episode"], columns["env"]))
        columns = {k: v if k == "models" else v[order] for k, v in columns.items()}
        weights = columns["weights"].astype(np.float64)
        begins = columns["step"] == 0
        log = Log(
            tuple(map(str, columns["models"])),
            np.cumsum(begins) - 1,
            columns["step"].astype(np.int64),
            columns["action"].astype(np.int64),
            columns["reward"].astype(np.float64),
            weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-8),
            weights,
        )
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedError(
            "bad-array",
            f"{path} cannot be read ({error}). Make it again: wsa eval {folder} --again",
        ) from None
    if len(log.models) < 2 or not weights.any(axis=0).all():
        raise UsageError(
            f"{path} comes from an evaluation with only some of the run's models. Evaluate the run "
            f"with all of them: wsa eval {folder} --again"
        )
    return log


def effective_number(shares: Floats) -> Floats:
    """exp(entropy) of each row, the effective number of models, from 1 to m.

    Args:
        shares: Rows that sum to 1, shape (n, m).
    """
    return np.asarray(np.exp(entropy(shares)))


def entropy(shares: Floats) -> Floats:
    """Entropy of each row in nats, (n,)."""
    return np.asarray(-(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1))


def switches_per_second(log: Log, steps_per_s: float) -> float:
    """Rate at which the model with the largest weight changes, within games."""
    largest = log.shares.argmax(axis=1)
    follows = log.step[1:] > 0
    changed = (largest[1:] != largest[:-1]) & follows
    return float(changed.sum() / max(1, follows.sum()) * steps_per_s)


def by_action(log: Log, actions: int) -> tuple[NDArray[np.int64], Floats]:
    """Count of each action, shape (actions,), and mean shares at it, shape (actions, m)."""
    count = np.bincount(log.action, minlength=actions)
    sums = np.stack([np.bincount(log.action, of, actions) for of in log.shares.T], axis=1)
    return count, np.asarray(sums / np.maximum(count, 1)[:, None])


def around_rewards(log: Log, sign: int, reach: int = REACH) -> tuple[int, Floats] | None:
    """Shares before and after rewards of one sign (1 or -1), with 95% bootstrap bands over the rewards.

    Returns:
        The number of rewards, and an array (m, 3, 2 reach + 1) with the mean, lower end, and upper
        end for each model; None with fewer than two rewards. Steps outside the game are ignored.
    """
    events = np.flatnonzero(np.sign(log.reward) == sign)
    if len(events) < 2:
        return None
    total = len(events)
    events = events[np.unique(np.linspace(0, total - 1, min(total, MOST_EVENTS)).astype(int))]
    steps = events[:, None] + np.arange(-reach, reach + 1)
    inside = (steps >= 0) & (steps < len(log.step))
    steps = steps.clip(0, len(log.step) - 1)
    inside &= log.game[steps] == log.game[events][:, None]
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(len(events), np.full(len(events), 1 / len(events)), RESAMPLES)
    counts = np.maximum(drawn @ inside, 1)
    bands = []
    for share in log.shares.T:
        values = np.where(inside, share[steps], 0.0)
        mean = values.sum(axis=0) / np.maximum(inside.sum(axis=0), 1)
        low, high = np.quantile(drawn @ values / counts, TAILS, axis=0)
        bands.append(np.stack([mean, low, high]))
    return total, np.stack(bands)
