"""Losses on the weights that a fusion gives its models: entropy and imbalance."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wsa.learn.fusion.build import fusion_class
from wsa.learn.training.dead_fusion import DEAD_ROWS
from wsa.store.common.errors import UsageError


def entropy(weights: Float[Tensor, "batch models"]) -> Float[Tensor, ""]:
    """Mean entropy of the rows, in nats; rows that do not sum to 1 are made to.

    As a loss, `-coefficient * entropy(weights)` keeps weights from collapsing onto one model. (The
    authors added theirs, on weights without a gradient: docs/explain/wsa.md.)
    """
    shares = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-8)
    return -(shares * shares.clamp_min(1e-12).log()).sum(dim=1).mean()


def imbalance(weights: Float[Tensor, "batch models"]) -> Float[Tensor, ""]:
    """Squared deviation of the batch's mean weights from 1/m, summed; 0 where all are used alike.

    As a loss, `coefficient * imbalance(weights)` lets each state choose, and evens out the whole.
    """
    shares = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-8)
    return (shares.mean(dim=0) - 1 / weights.shape[1]).square().sum()


def check_weight_losses(config: Any, fusion: str) -> None:
    """Refuse losses on the weights of a fusion that learns none.

    Raises:
        UsageError: One was asked for.
    """
    if (config.weight_entropy_coef or config.load_balance_coef) and not fusion_class(fusion).weighs:
        raise UsageError(
            "bad-option",
            "--weight-entropy-coef and --load-balance-coef are losses on a fusion's weights, and "
            f"--fusion {fusion} learns none. Choose wsa, dpa, unshared or moe.",
        )


def weight_loss(config: Any, weights: Tensor | None) -> Tensor | float:
    """The two losses on a fusion's weights (B, models), of which both are usually off."""
    loss: Tensor | float = 0.0
    if weights is not None and config.weight_entropy_coef:
        loss = loss - config.weight_entropy_coef * entropy(weights)
    if weights is not None and config.load_balance_coef:
        loss = loss + config.load_balance_coef * imbalance(weights)
    return loss


def weight_scalars(weights: Tensor | None, network: Any) -> dict[str, Tensor]:
    """What to log of a fusion's weights.

    Args:
        weights: (B, models), or None.
        network: Whose fusion gave them.

    Returns:
        `weights`, their mean (models,); `wsa/weight_entropy`; and `wsa/dead_rows`, where there can be
        any (`Fusion.dead_rows`).
    """
    if weights is None:
        return {}
    with torch.no_grad():
        found = {"wsa/weight_entropy": entropy(weights), "weights": weights.mean(dim=0)}
        dead = network.torso.fusion.dead_rows(weights)
    return found if dead is None else found | {DEAD_ROWS: dead}
