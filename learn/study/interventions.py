"""Does the attention matter? A trained network played with its weights, or its context, taken away.

    frozen     the weights are what they were on average, whatever the state
    uniform    all models weigh alike
    shuffled   the context is another state's: the scorer is conditioned on what is not there

What is taken away that does not lower the return was of no use to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from wsa.learn.fusion.attention import Attention

Kind = Literal["none", "frozen", "uniform", "shuffled"]
KINDS: tuple[Kind, ...] = ("none", "frozen", "uniform", "shuffled")
REMEMBERED = 4096  # Contexts that another may be drawn from.


@contextlib.contextmanager
def intervened(fusion: Attention, kind: Kind, mean: Sequence[float], seed: int) -> Iterator[None]:
    """While it lasts, a fusion does as `kind` says.

    Args:
        fusion: It.
        kind: What is taken away.
        mean: The mean weight of each model; for `uniform` their sum is kept.
        seed: Of which contexts are drawn.
    """
    replaced: dict[str, Any] = {}
    if kind == "frozen":
        replaced["normalise"] = _Fixed(mean)
    elif kind == "uniform":
        replaced["normalise"] = _Fixed([sum(mean) / len(mean)] * len(mean))
    elif kind == "shuffled":
        replaced["condition"] = _Shuffled(fusion.condition, seed)
    for name, value in replaced.items():
        object.__setattr__(fusion, name, value)
    try:
        yield
    finally:
        for name in replaced:
            object.__delattr__(fusion, name)


class _Fixed:
    """Weights that are the same in every state."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = torch.tensor(weights, dtype=torch.float32)

    def __call__(self, scores: Tensor) -> Tensor:
        return self._weights.to(scores).expand_as(scores)


class _Shuffled:
    """Contexts of states that were seen before, drawn at random."""

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
