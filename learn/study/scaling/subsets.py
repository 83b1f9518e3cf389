"""Sets of a run's models, and each model's contribution: the exact Shapley value.

Shapley, "A value for n-person games" (1953): the gain from adding a model to a set of others,
averaged over all orders of joining. The values sum to the difference between all models and none.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import factorial

import numpy as np
from numpy.typing import NDArray

from wsa.learn.runs.presence import Mask


def subsets(models: int) -> list[Mask]:
    """All non-empty sets of some models, small ones first."""
    every = itertools.product((True, False), repeat=models)
    return sorted((mask for mask in every if any(mask)), key=sum)


def name_of(models: Sequence[str], mask: Mask) -> str:
    """Name a set of models; "" for the empty one."""
    return "+".join(itertools.compress(models, mask))


def shapley(values: Mapping[Mask, float]) -> NDArray[np.float64]:
    """Each model's exact Shapley value, shape (models,).

    phi_i = sum over S without i of |S|! (m - |S| - 1)! / m! (v(S + i) - v(S)).

    Args:
        values: Value v of every set of the m models, including the empty one.
    """
    models = len(next(iter(values)))
    values_found = np.zeros(models)
    for mask, value in values.items():
        size = sum(mask)
        for i in np.flatnonzero(~np.array(mask)).tolist():
            joined = values[(*mask[:i], True, *mask[i + 1 :])]
            weight = factorial(size) * factorial(models - size - 1) / factorial(models)
            values_found[i] += weight * (joined - value)
    return values_found
