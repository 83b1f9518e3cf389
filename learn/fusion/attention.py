"""Weight Sharing Attention (WSA) and dot-product attention: weights that depend on the state.

Piccoli et al., "Combining Pre-Trained Models for Enhanced Feature Representation in Reinforcement
Learning" (arXiv 2507.07197). For models i = 1..m with state embeddings u_i and a context u_0,

    E_i = ReLU(LN(W_i u_i + b_i))           (B, d)  adapters, one per model
    c   = ReLU(LN(W_0 u_0 + b_0))           (B, d)  context; without u_0, the mean of the E_i
    s_i = f([c ; E_i])                      (B,)    one MLP shared by all models, hence the name
    w   = softmax(s / T)                    (B, m)  sums to 1; T = sqrt(d)
    R   = sum_i w_i E_i                     (B, d)  the state vector

The authors' code differs from their text, and its versions differ from each other. The defaults
here fix the problems found there (docs/explain/wsa.md), and `FusionConfig` has a switch for each:

- Scores have no ReLU, so a model can be turned off and no row is stuck at uniform weights.
- Scores are divided by sqrt(d), as in dot-product attention: they are sums over d hidden units, and
  training makes them so large that the weights choose one model, and jump from state to state.
- Adapters have a LayerNorm, so no adapter dies on embeddings of another scale.
- f has a hidden layer, as in their text. In their code f is one linear map: c then adds the same
  number to every score, which the softmax cancels, so the context has no effect and no gradient
  (Brody et al., 2022, arXiv 2105.14491, show this for attention over graphs).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.fusion.base import (
    Adapted,
    Embeddings,
    Inputs,
    Mask,
    Scores,
    State,
    States,
    Weights,
    initialize,
    present_of,
)


class Attention(Adapted):
    """A weighted sum of the E_i. Subclasses define `scores`, from which the weights follow."""

    weighs = True
    options: tuple[str, ...] = (*Adapted.options, "score_activation", "normalizer", "temperature")

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        super().__init__(inputs, config)
        self._temperature = config.temperature or self.default_temperature(config.size)
        self._relu = config.score_activation == "relu"
        self._normalizer = config.normalizer

    @staticmethod
    def default_temperature(size: int) -> float:
        """Return the temperature for adapted embeddings of `size` numbers, if none is given."""
        return sqrt(size)

    def scores(self, context: State, adapted: States, present: Sequence[int]) -> Scores:
        """Return the score s_i of each present model."""
        raise NotImplementedError

    def forward(self, embeddings: Embeddings, mask: Mask = None) -> tuple[State, Weights | None]:
        """See `Fusion.forward`."""
        present = present_of(mask, self.models)
        adapted = self.adapt(embeddings, present)
        if len(present) == 1 and self._normalizer == "softmax":
            # The weight is 1 whatever the score, and the scorer's gradient is 0.
            weights, state = adapted.new_ones(len(adapted), 1), adapted[:, 0]
        else:
            scores = self.scores(self.condition(adapted, embeddings), adapted, present)
            weights = self.normalize(scores)
            state = torch.einsum("bm,bmd->bd", weights, adapted)
        if len(present) == self.models:
            return state, weights
        padded = weights.new_zeros(len(weights), self.models)
        return state, padded.index_copy(1, torch.tensor(present, device=weights.device), weights)

    def dead_rows(self, weights: Weights) -> Float[Tensor, ""] | None:
        """Return the fraction of states in which a ReLU sets every score to 0.

        In such a state the scores have no gradient. With relu-sum the state vector is 0, so the
        adapters have no gradient either. The weights tell: they are equal if all scores are 0.
        """
        if self._normalizer == "relu-sum":
            dead = weights.amax(dim=1) == 0
        elif self._relu and self._normalizer == "sigmoid":
            dead = weights.amax(dim=1) == 0.5
        elif self._relu and self.models > 1:
            dead = weights.amax(dim=1) == weights.amin(dim=1)
        else:
            return None
        return dead.float().mean()

    def normalize(self, scores: Scores) -> Scores:
        """Turn scores into weights with the configured normalizer."""
        scores = scores / self._temperature
        if self._relu:
            scores = scores.relu()
        if self._normalizer == "softmax":
            return scores.softmax(dim=1)
        if self._normalizer == "sigmoid":
            return scores.sigmoid()
        shares = scores.relu()
        # If all are 0, so is the state vector. The published code has this flaw; relu-sum keeps it.
        return shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-8)


class WSA(Attention):
    """Weight Sharing Attention: the equations at the top of this file."""

    options: tuple[str, ...] = (*Attention.options, "scorer_hidden")

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        super().__init__(inputs, config)
        self.scorer = scorer(config)
        if config.init == "small":
            initialize(self.scorer, 1.0)

    def scores(self, context: State, adapted: States, present: Sequence[int]) -> Scores:
        """Return s_i = f([c ; E_i]) of each present model."""
        scores: Tensor = self.scorer(beside(context, adapted)).squeeze(2)
        return scores


class DPA(Attention):
    """Dot-product attention, a baseline of the paper.

    w = softmax(c . E_i / sqrt(d)), R = sum_i w_i E_i. There is one head and no projection: the
    context is the query, and the E_i are both keys and values.
    """

    # Adapted embeddings are not negative, nor are their products, so a ReLU changes nothing.
    options: tuple[str, ...] = (*Adapted.options, "normalizer", "temperature")

    @staticmethod
    def default_temperature(size: int) -> float:
        """Return 1: the products are already divided by sqrt(d)."""
        return 1.0

    def scores(self, context: State, adapted: States, present: Sequence[int]) -> Scores:
        """Return s_i = c . E_i / sqrt(d) of each present model."""
        return torch.einsum("bd,bmd->bm", context, adapted) / sqrt(adapted.shape[2])


def scorer(config: FusionConfig) -> nn.Sequential:
    """Build f, which maps [c ; E] (..., 2d) to a score (..., 1)."""
    size = config.size
    if not config.scorer_hidden:
        return nn.Sequential(nn.Linear(2 * size, 1))
    return nn.Sequential(nn.Linear(2 * size, size), nn.ReLU(), nn.Linear(size, 1))


def beside(context: State, adapted: States) -> Float[Tensor, "batch present double"]:
    """Concatenate the context with each E_i: [c ; E_i]."""
    return torch.cat([context.unsqueeze(1).expand_as(adapted), adapted], dim=2)
