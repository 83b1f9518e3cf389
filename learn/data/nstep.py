"""n-step returns over the rows of a flat map, and which episodes are held out."""

from __future__ import annotations

import dataclasses
from math import inf

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from wsa.store.objects.flat_map import FlatMap


@dataclasses.dataclass(frozen=True)
class Steps:
    """What followed n steps after each of some rows.

    Attributes:
        returns: (B,) float32, sum of gamma^j r_j over the steps made.
        discounts: (B,) float32, gamma^steps made, and 0 where the game ended: what the value of
            the last state counts.
        last: (B,) int64, row of the last state reached.
        whole: (B,) bool, whether nothing but the game's end kept it from n steps.
    """

    returns: NDArray[np.float32]
    discounts: NDArray[np.float32]
    last: NDArray[np.int64]
    whole: NDArray[np.bool_]


def walk(flat: FlatMap, rows: NDArray[np.int64], n: float, gamma: float, clip: bool) -> Steps:
    """Go up to n steps on from each row, and add up what was earned.

    A walk ends early at the episode's end, terminated or truncated, and where a segment was cut
    inside it. The row after a step is its true next observation in every case, so the value of the
    last state can be had there; it counts unless the game itself ended.

    Args:
        flat: The data.
        rows: (B,) rows that hold a step.
        n: Steps at most; may be infinite.
        gamma: Discount per step.
        clip: Whether to add up signs of rewards.
    """
    at = rows.copy()
    returns, discounts = np.zeros(len(rows)), np.ones(len(rows))
    going = np.arange(len(rows))  # Places of the walks that go on.
    ended = np.zeros(len(rows), np.bool_)
    made = 0
    while made < n and len(going):
        here = flat.rows[at[going]]
        stepping = here["action"] >= 0
        going, here = going[stepping], here[stepping]
        earned = np.sign(here["reward"]) if clip else here["reward"]
        returns[going] += discounts[going] * earned
        discounts[going] *= gamma
        at[going] += 1
        ended[going[here["terminated"]]] = True
        going = going[~(here["terminated"] | here["truncated"])]
        made += 1
    whole = ended.copy()
    whole[going] = True
    discounts[ended] = 0
    return Steps(returns.astype(np.float32), discounts.astype(np.float32), at, whole)


def horizon(gamma: float) -> float:
    """Steps after which a reward counts less than a hundredth; infinite for gamma 1."""
    return inf if gamma >= 1 else int(np.ceil(np.log(0.01) / np.log(max(gamma, 1e-9)))) or 1


def hold_out(flat: FlatMap, fraction: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part the steps by whole episodes into those to train on and those to validate with.

    An episode is held out by the hash of its name (collection run, environment, number), so that
    another seed, another learner or more data moves few. One that goes on in another segment is
    held out with all of its parts.

    Args:
        flat: The data.
        fraction: Of the episodes; if it is not 0 and there are two episodes, one is held out.

    Returns:
        (S,) rows to train on and (V,) rows to validate with, in the snapshot's order.
    """
    places: dict[str, int] = {}
    of = np.full(len(flat.rows), -1)  # The episode of each row, as its place in `places`.
    for part in flat.parts:
        rows = slice(part.row, part.row + part.rows)
        run = "-".join(part.segment.split("-")[:2])
        numbers, inverse = np.unique(flat.rows["episode"][rows], return_inverse=True)
        ours = [places.setdefault(f"{run}/{number}", len(places)) for number in numbers]
        of[rows] = np.array(ours)[inverse]
    count = max(round(fraction * len(places)), 1) if fraction and len(places) > 1 else 0
    chosen = sorted(places, key=lambda name: blake3(name.encode()).digest())[:count]
    held = np.isin(of[flat.steps], [places[name] for name in chosen])
    return flat.steps[~held], flat.steps[held]
