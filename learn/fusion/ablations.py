"""Ablations of WSA and other controls, which the paper lacks: each changes one part of WSA.

All use WSA's adapters. The control with random frozen backbones is a model, not a fusion:
`wsa encode --models vit:random`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.fusion.attention import Attention, beside, scorer
from wsa.learn.fusion.base import (
    Adapted,
    Embeddings,
    Inputs,
    Mask,
    Scores,
    State,
    States,
    initialize,
    present_of,
)
from wsa.store.common.errors import UsageError


class Uniform(Adapted):
    """WSA with equal weights: R = sum_i E_i / m. Shows what learned weights add."""

    conditioned = False

    def forward(self, embeddings: Embeddings, mask: Mask = None) -> tuple[State, None]:
        """See `Fusion.forward`."""
        return self.adapt(embeddings, present_of(mask, self.models)).mean(dim=1), None


class Mean(Adapted):
    """The authors' ensemble: R = (c + sum_i E_i) / (m + 1). The context counts as one more model.

    If the context is the mean of the E_i, this equals `Uniform`.
    """

    def forward(self, embeddings: Embeddings, mask: Mask = None) -> tuple[State, None]:
        """See `Fusion.forward`."""
        adapted = self.adapt(embeddings, present_of(mask, self.models))
        context = self.condition(adapted, embeddings)
        return torch.cat([adapted, context.unsqueeze(1)], dim=1).mean(dim=1), None


class Single(Uniform):
    """One model alone: R = E_1. The control is the best result over one training run per model.

    Raises:
        UsageError: If there is more than one model.
    """

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        if len(inputs.models) != 1:
            raise UsageError(
                f"--fusion single takes one model, but there are {len(inputs.models)}. Name one "
                "with --models; to find the best, train once with each."
            )
        super().__init__(inputs, config)


class Unshared(Attention):
    """WSA with one scorer per model, as in the authors' first version: s_i = f_i([c ; E_i])."""

    per_model = ("spatial", "adapters", "scorers")
    options: tuple[str, ...] = (*Attention.options, "scorer_hidden")

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        super().__init__(inputs, config)
        self.scorers = nn.ModuleList(scorer(config) for _ in inputs.models)
        if config.init == "small":
            initialize(self.scorers, 1.0)

    def scores(self, context: State, adapted: States, present: Sequence[int]) -> Scores:
        """Return s_i = f_i([c ; E_i]) of each present model."""
        pairs = beside(context, adapted)
        return torch.cat([self.scorers[i](pairs[:, at]) for at, i in enumerate(present)], dim=1)


class MoE(Attention):
    """A soft mixture of experts: the gate sees the context, but not the E_i that it weights.

    h = ReLU(V c + a), s_i = g_i . h + b_i, w = softmax(s / T), R = sum_i w_i E_i. Every expert runs.

    The authors' later version also has Gumbel noise, dropped experts, and a running mean of the
    weights. They are left out, because with them a policy's weights during a rollout differ from
    those in its update. `--load-balance-coef` and `--weight-entropy-coef` are the auxiliary losses.
    """

    per_model = ("spatial", "adapters", "gates")

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        super().__init__(inputs, config)
        self.router = nn.Sequential(nn.Linear(config.size, config.size), nn.ReLU())
        self.gates = nn.ModuleList(nn.Linear(config.size, 1) for _ in inputs.models)

    def scores(self, context: State, adapted: States, present: Sequence[int]) -> Scores:
        """Return s_i = g_i . h + b_i of each present model."""
        hidden = self.router(context)
        return torch.cat([self.gates[i](hidden) for i in present], dim=1)
