"""Behavioral cloning: predict the data's actions, trained with cross-entropy.

The baseline where rewards are rare or the data is good. It ignores rewards, so it imitates what the
policy that played did most often, and has no Q-values that could diverge. Evaluation plays the most
probable action. So the clone can score more than that policy if some of its actions were random, but
learns nothing better than its usual actions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsa.learn.configs.algorithms import BCConfig
from wsa.learn.data.transitions import Batch
from wsa.learn.fusion.losses import weight_loss, weight_scalars
from wsa.learn.networks.heads import QNetwork


class BC:
    """Behavioral cloning as a `wsa.learn.offline.trainer.Learner`."""

    judge: str = "validation/loss"

    def __init__(self, config: BCConfig, network: QNetwork) -> None:
        self._config = config
        self.online = network
        self.modules: dict[str, nn.Module] = {"online": network}
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            network.parameters(), lr=config.learning_rate, fused=True
        )

    def update(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """See `Learner.update`."""
        loss, accuracy, weights = self._losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + weight_loss(self._config, weights)).backward()
        self.optimizer.step()
        return {
            "losses/cross_entropy": loss.detach(),
            "losses/accuracy": accuracy,
            **weight_scalars(weights, self.online),
        }

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and accuracy; see `Learner.validate`."""
        loss, accuracy, _ = self._losses(batch)
        return {"validation/loss": loss, "validation/accuracy": accuracy}

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the cross-entropy, the accuracy, and the fusion's weights."""
        device = self.online.device
        actions = batch.actions.to(device)
        logits, weights = self.online(batch.states.to(device))
        loss = nn.functional.cross_entropy(logits, actions)
        with torch.no_grad():
            accuracy = (logits.argmax(dim=1) == actions).float().mean()
        return loss, accuracy, weights
