"""Interventions on a trained network's attention: play without its weights or its context.

    frozen     the weights are their mean, whatever the state
    uniform    all models have the same weight
    shuffled   the context comes from another state, so the scorer is conditioned on the wrong one

If an intervention does not lower the return, the network did not need what was taken away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from wsa.learn.fusion.attention import Attention

Kind = Literal["none", "frozen", "uniform", "shuffled"]
KINDS: tuple[Kind, ...] = ("none", "frozen", "uniform", "shuffled")
REMEMBERED = 4096  # Number of contexts to draw from.


@contextlib.contextmanager
def intervened(fusion: Attention, kind: Kind, mean: Sequence[float], seed: int) -> Iterator[None]:
    """Apply an intervention to a fusion until the block ends.

    `mean` is the mean weight of each model, whose sum `uniform` keeps; `seed` draws contexts.
    """
    replaced: dict[str, Any] = {}
    if kind == "frozen":
        replaced["normalize"] = _fixed(mean)
    elif kind == "uniform":
        replaced["normalize"] = _fixed([sum(mean) / len(mean)] * len(mean))
    elif kind == "shuffled":
        replaced["condition"] = _Shuffled(fusion.condition, seed)
    for name, value in replaced.items():
        object.__setattr__(fusion, name, value)
    try:
        yield
    finally:
        for name in replaced:
            object.__delattr__(fusion, name)


def _fixed(weights: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Return the same weights in every state."""
    same = torch.tensor(weights, dtype=torch.float32)
    return lambda scores: same.to(scores).expand_as(scores)


class _Shuffled:
    """Returns contexts of earlier states, drawn at random."""

    def __init__(self, condition: Any, seed: int) -> None:
        self._condition = condition
        self._seen: list[Tensor] = []
        self._generator = np.random.default_rng([seed, 2])

    def __call__(self, adapted: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
        context: Tensor = self._condition(adapted, embeddings)
        for row in context:
            if len(self._seen) < REMEMBERED:
                self._seen.append(row)
            else:
                self._seen[int(self._generator.integers(REMEMBERED))] = row
        which = self._generator.integers(len(self._seen), size=len(context))
        return torch.stack([self._seen[i] for i in which.tolist()])
