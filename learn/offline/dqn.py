"""Double DQN (van Hasselt et al., 2016, arXiv 1509.06461), with an optional conservative term.

n-step returns are those of Sutton, 1988, without an off-policy correction.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from wsa.learn.configs.algorithms import DQNConfig
from wsa.learn.data.transitions import Batch
from wsa.learn.fusion.losses import weight_loss, weight_scalars
from wsa.learn.networks.heads import QNetwork


class DQN:
    """Double DQN as a `wsa.learn.offline.trainer.Learner`."""

    judge: str = "validation/td_error"
    cql_alpha = 0.0
    """Weight of the conservative term (`wsa.learn.offline.cql`)."""

    def __init__(self, config: DQNConfig, network: QNetwork) -> None:
        self._config = config
        self.online = network
        self.target = copy.deepcopy(network).eval()
        self.modules: dict[str, nn.Module] = {"online": self.online, "target": self.target}
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            network.parameters(), lr=config.learning_rate, fused=True
        )

    def update(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """See `Learner.update`."""
        loss, scalars = self._loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._config.max_grad_norm:
            nn.utils.clip_grad_norm_(self.online.parameters(), self._config.max_grad_norm)
        self.optimizer.step()
        if step % self._config.target_network_frequency == 0:
            self.target.load_state_dict(self.online.state_dict())
        return scalars

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return loss, TD error, and the mean value of the best action; see `Learner.validate`."""
        loss, scalars = self._loss(batch)
        return {
            "validation/loss": loss,
            "validation/td_error": scalars["losses/td_error"],
            "validation/max_q": scalars["losses/max_q"],
        }

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return update_loss(self._config, self.online, self.target, batch, self.cql_alpha)


def update_loss(
    config: DQNConfig, online: QNetwork, target: QNetwork, batch: Batch, cql_alpha: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of one batch, and scalars to log.

        y = r_1 + ... + gamma^{n-1} r_n + discount * Q_target(s', argmax_a Q(s', a))
            (argmax_a Q_target(s', a) without `double_q`)
        loss = Huber(Q(s, a) - y) + cql_alpha * (logsumexp Q(s, .) - Q(s, a))

    Returns:
        The loss, and the scalars `losses/td_loss` (Huber), `losses/td_error` (mean absolute error),
        `losses/cql`, `losses/q_values` (of the actions taken), `losses/max_q`, and those of
        `weight_scalars`.
    """
    device = online.device
    states, following = batch.states.to(device), batch.following.to(device)
    actions = batch.actions.to(device)
    with torch.no_grad():
        next_values = target(following)[0]
        next_actions = (online(following)[0] if config.double_q else next_values).argmax(dim=1)
        next_value = next_values.gather(1, next_actions[:, None]).squeeze(1)
        targets = batch.rewards.to(device) + batch.discounts.to(device) * next_value
    values, weights = online(states)
    q_taken = values.gather(1, actions[:, None]).squeeze(1)
    td_loss = nn.functional.smooth_l1_loss(q_taken, targets)
    conservative = (values.logsumexp(dim=1) - q_taken).mean()
    loss = td_loss + cql_alpha * conservative + weight_loss(config, weights)
    with torch.no_grad():
        scalars = {
            "losses/td_loss": td_loss,
            "losses/td_error": (q_taken - targets).abs().mean(),
            "losses/cql": conservative,
            "losses/q_values": q_taken.mean(),
            "losses/max_q": values.amax(dim=1).mean(),
            **weight_scalars(weights, online),
        }
    return loss, scalars
