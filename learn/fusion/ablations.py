"""Controls, which the paper lacks: what WSA's parts are worth is what is lost without them.

All share WSA's adapters. Random frozen backbones are no fusion: `wsa encode --models vit:random`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.fusion.attention import Attention, beside, scorer
from wsa.learn.fusion.base import Adapted, Inputs, initialise, present_of
from wsa.store.common.errors import UsageError


class Uniform(Adapted):
    """WSA with the weights fixed: R = sum_i E_i / m. What do weights add?"""

    conditioned = False

    def forward(
        self,
        embeddings: Sequence[Float[Tensor, "batch ..."]],
        mask: Sequence[bool] | None = None,
    ) -> tuple[Float[Tensor, "batch size"], None]:
        """As `Fusion.forward`."""
        return self.adapt(embeddings, present_of(mask, self.models)).mean(dim=1), None


class Mean(Adapted):
    """The authors' ensemble: R = (c + sum_i E_i) / (m + 1), the context one model among others.

    Where the context is the mean of the E_i this is `Uniform`.
    """

    def forward(
        self,
        embeddings: Sequence[Float[Tensor, "batch ..."]],
        mask: Sequence[bool] | None = None,
    ) -> tuple[Float[Tensor, "batch size"], None]:
        """As `Fusion.forward`."""
        adapted = self.adapt(embeddings, present_of(mask, self.models))
        context = self.condition(adapted, embeddings)
        return torch.cat([adapted, context.unsqueeze(1)], dim=1).mean(dim=1), None


class Single(Uniform):
    """One model alone: R = E_1. Trained once for each model, the best of them is the control.

    Raises:
        UsageError: There are several.
    """

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        if len(inputs.models) != 1:
            raise UsageError(
                "bad-option",
                f"--fusion single takes one model, and there are {len(inputs.models)}. Name it "
                "with --models, and train once for each to find the best.",
            )
        super().__init__(inputs, config)


class Unshared(Attention):
    """WSA with a scorer for each model, the authors' first version: s_i = f_i([c ; E_i])."""

    per_model = ("spatial", "adapters", "scorers")

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        super().__init__(inputs, config)
        self.scorers = nn.ModuleList(scorer(config) for _ in inputs.models)
        if config.init == "small":
            initialise(self.scorers, 1.0)

    def scores(
        self,
        context: Float[Tensor, "batch size"],
        adapted: Float[Tensor, "batch present size"],
        present: Sequence[int],
    ) -> Float[Tensor, "batch present"]:
        """s_i = f_i([c ; E_i])."""
        pairs = beside(context, adapted)
        return torch.cat([self.scorers[i](pairs[:, at]) for at, i in enumerate(present)], dim=1)


class MoE(Attention):
    """A mixture of experts: the gate sees the context, and not what it weighs.

    h = ReLU(V c + a), s_i = g_i . h + b_i, w = softmax(s), R = sum_i w_i E_i: soft, every expert
    runs. The authors' later version adds Gumbel noise, dropped experts and a running mean of the
    weights, by which a policy's weights in its rollout are not those of its update; these are left
    out. `--load-balance-coef` and `--weight-entropy-coef` are its auxiliary losses.
    """

    per_model = ("spatial", "adapters", "gates")

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        super().__init__(inputs, config)
        self.router = nn.Sequential(nn.Linear(config.size, config.size), nn.ReLU())
        self.gates = nn.ModuleList(nn.Linear(config.size, 1) for _ in inputs.models)

    def scores(
        self,
        context: Float[Tensor, "batch size"],
        adapted: Float[Tensor, "batch present size"],
        present: Sequence[int],
    ) -> Float[Tensor, "batch present"]:
        """s_i = g_i . h + b_i."""
        hidden = self.router(context)
        return torch.cat([self.gates[i](hidden) for i in present], dim=1)
