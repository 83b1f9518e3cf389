"""Auxiliary losses on a fusion's weights: entropy and load balance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wsa.learn.fusion.build import fusion_class, weighing
from wsa.learn.training.loop import DEAD_ROWS
from wsa.store.common.errors import UsageError


def entropy(weights: Float[Tensor, "batch models"]) -> Float[Tensor, ""]:
    """Return the mean entropy of the rows in nats. Rows are first normalized to sum to 1.

    As a loss, `-coefficient * entropy(weights)` keeps the weights from collapsing onto one model.
    (The authors add the entropy instead, and on weights without a gradient: docs/explain/wsa.md.)
    """
    shares = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-8)
    return -(shares * shares.clamp_min(1e-12).log()).sum(dim=1).mean()


def imbalance(weights: Float[Tensor, "batch models"]) -> Float[Tensor, ""]:
    """Return the summed squared deviation of the batch's mean weights from 1/m; 0 if balanced.

    As a loss, `coefficient * imbalance(weights)` balances the models over the batch, while each
    state may still prefer one model.
    """
    shares = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-8)
    return (shares.mean(dim=0) - 1 / weights.shape[1]).square().sum()


def check_weight_losses(config: Any, fusion: str) -> None:
    """Refuse weight losses for a fusion that learns no weights.

    Raises:
        UsageError: If a coefficient is not 0 and the fusion learns no weights.
    """
    if (config.weight_entropy_coef or config.load_balance_coef) and not fusion_class(fusion).weighs:
        raise UsageError(
            "--weight-entropy-coef and --load-balance-coef are losses on a fusion's weights, but "
            f"--fusion {fusion} learns none. Choose from {', '.join(weighing())}."
        )


def weight_loss(config: Any, weights: Tensor | None) -> Tensor | float:
    """Return the sum of both losses on a fusion's weights (B, models); by default they are off."""
    loss: Tensor | float = 0.0
    if weights is not None and config.weight_entropy_coef:
        loss = loss - config.weight_entropy_coef * entropy(weights)
    if weights is not None and config.load_balance_coef:
        loss = loss + config.load_balance_coef * imbalance(weights)
    return loss


def weight_scalars(weights: Tensor | None, network: Any) -> dict[str, Tensor]:
    """Return the statistics to log of the weights (B, models) that a network's fusion returned.

    Returns:
        `weights` (the mean per model, (models,)), `wsa/weight_entropy`, and `wsa/dead_rows` if the
        fusion can have dead rows (`Fusion.dead_rows`). Empty without weights.
    """
    if weights is None:
        return {}
    with torch.no_grad():
        scalars = {"wsa/weight_entropy": entropy(weights), "weights": weights.mean(dim=0)}
        dead = network.torso.fusion.dead_rows(weights)
    return scalars if dead is None else scalars | {DEAD_ROWS: dead}


def log_line(scalars: Mapping[str, Tensor], models: Sequence[str]) -> dict[str, float]:
    """Convert scalars for logging; `weights` (models,) becomes one scalar per fused model."""
    line = {key: value.item() for key, value in scalars.items() if key != "weights"}
    if "weights" in scalars:
        weights = scalars["weights"].tolist()
        line |= {f"wsa/weight/{key}": w for key, w in zip(models, weights, strict=False)}
    return line
