"""Sets of a run's models, and what each model adds to them: the exact Shapley value.

Shapley, "A value for n-person games" (1953): a model's value is what it adds to a set of others,
averaged over all orders in which they may join. The values sum to what the whole has over nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from math import factorial

import numpy as np
from numpy.typing import NDArray

Mask = tuple[bool, ...]


def subsets(models: int) -> list[Mask]:
    """All sets of some models but the empty one, small ones first."""
    every = itertools.product((True, False), repeat=models)
    return sorted((mask for mask in every if any(mask)), key=sum)


def shapley(values: Mapping[Mask, float]) -> NDArray[np.float64]:
    """Each model's exact Shapley value, (models,).

    phi_i = sum over S without i of |S|! (m - |S| - 1)! / m! (v(S + i) - v(S)).

    Args:
        values: v of every set of the m models, the empty one too.
    """
    models = len(next(iter(values)))
    found = np.zeros(models)
    for mask, value in values.items():
        size = sum(mask)
        for i in np.flatnonzero(~np.array(mask)).tolist():
            joined = values[(*mask[:i], True, *mask[i + 1 :])]
            weight = factorial(size) * factorial(models - size - 1) / factorial(models)
            found[i] += weight * (joined - value)
    return found
