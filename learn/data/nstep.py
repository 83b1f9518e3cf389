"""Compute n-step returns over the rows of a flat map, and hold out episodes."""

from __future__ import annotations

import dataclasses
from math import inf

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from wsa.store.objects.flat_map import FlatMap


@dataclasses.dataclass(frozen=True)
class Steps:
    """Result of walking up to n steps from each of B rows.

    Attributes:
        returns: Sum of gamma^j r_j over the steps made, (B,) float32.
        discounts: Factor on the value of the last state, (B,) float32: gamma^(steps made), or 0 if
            the game ended.
        last: Row of the last state reached, (B,) int64.
        whole: Whether the walk made n steps or reached the game's end, (B,) bool.
    """

    returns: NDArray[np.float32]
    discounts: NDArray[np.float32]
    last: NDArray[np.int64]
    whole: NDArray[np.bool_]


def walk(
    flat: FlatMap,
    rows: NDArray[np.int64],
    n: float,
    gamma: float,
    clip: bool,
    *,
    life_loss_ends: bool = False,
) -> Steps:
    """Walk up to n steps from each row, and sum the discounted rewards.

    A walk ends early when the episode terminates or is truncated, or where a segment ends inside
    the episode. The row after a step always holds its true next observation, so a value can be
    bootstrapped there unless the game itself ended.

    Args:
        rows: Rows that hold a step, (B,).
        n: Maximum number of steps; may be infinite.
        gamma: Discount per step.
        clip: Whether to replace rewards by their sign.
        life_loss_ends: Whether losing a life counts as the end of the game.
    """
    position = rows.copy()
    returns, discounts = np.zeros(len(rows)), np.ones(len(rows))
    active = np.arange(len(rows))  # Indices of the walks still going.
    ended = np.zeros(len(rows), np.bool_)
    n_made = 0
    while n_made < n and len(active):
        current = flat.rows[position[active]]
        has_step = current["action"] >= 0
        active, current = active[has_step], current[has_step]
        rewards = np.sign(current["reward"]) if clip else current["reward"]
        returns[active] += discounts[active] * rewards
        discounts[active] *= gamma
        position[active] += 1
        over = current["terminated"]
        if life_loss_ends:
            lost = flat.rows["lives"][position[active]] < current["lives"]
            over = over | (lost & ~current["truncated"])  # Where an episode stops, no life is left.
        ended[active[over]] = True
        active = active[~(over | current["truncated"])]
        n_made += 1
    whole = ended.copy()
    whole[active] = True
    discounts[ended] = 0
    return Steps(returns.astype(np.float32), discounts.astype(np.float32), position, whole)


def horizon(gamma: float) -> float:
    """Return the number of steps after which the discount is below 1/100; infinite for gamma 1."""
    return inf if gamma >= 1 else int(np.ceil(np.log(0.01) / np.log(max(gamma, 1e-9)))) or 1


def hold_out(flat: FlatMap, fraction: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the steps into a training and a validation set by whole episodes.

    Episodes are chosen by the hash of their name (collection run, environment, number), so another
    seed or another learner changes nothing, and more data changes little. An episode that spans
    several segments is held out as a whole.

    Args:
        fraction: Fraction of the episodes to hold out. Unless it is 0, at least one of two or more
            episodes is held out, and one is left to train on.

    Returns:
        Rows to train on, (S,), and rows to validate on, (V,), both in the snapshot's order.
    """
    index_of: dict[str, int] = {}
    episode_of = np.full(len(flat.rows), -1)  # Index of each row's episode.
    for part in flat.parts:
        rows = slice(part.row, part.row + part.rows)
        run = "-".join(part.segment.split("-")[:2])
        numbers, inverse = np.unique(flat.rows["episode"][rows], return_inverse=True)
        segment_episodes = [
            index_of.setdefault(f"{run}/{number}", len(index_of)) for number in numbers
        ]
        episode_of[rows] = np.array(segment_episodes)[inverse]
    count = 0
    if fraction and len(index_of) > 1:
        count = min(max(round(fraction * len(index_of)), 1), len(index_of) - 1)
    held_names = sorted(index_of, key=lambda name: blake3(name.encode()).digest())[:count]
    held_out = np.isin(episode_of[flat.steps], [index_of[name] for name in held_names])
    return flat.steps[~held_out], flat.steps[held_out]
