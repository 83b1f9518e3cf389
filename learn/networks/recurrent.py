"""Recurrent actor-critic: an LSTM between the fused state vector and the heads.

As in the fork that the authors published, the LSTM is as wide as the state vector, has orthogonal
weights and zero biases, and each head is one linear layer. Unlike in the fork, the LSTM state is
also carried from step to step during evaluation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsa.learn.fusion.base import Mask, initialize
from wsa.learn.networks.heads import Network


class RecurrentActorCritic(Network):
    """Actor and critic heads on an LSTM, which runs over the steps of each environment."""

    recurrent = True

    def __init__(self, torso: nn.Module, actions: int) -> None:
        super().__init__(torso)
        size = self.size = int(self.torso.out_features)
        self.lstm = nn.LSTM(size, size)
        for name, parameter in self.lstm.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
            else:
                nn.init.orthogonal_(parameter)
        self.actor, self.critic = nn.Linear(size, actions), nn.Linear(size, 1)
        for head, gain in ((self.actor, 0.01), (self.critic, 1.0)):
            initialize(head, gain)

    def initial_state(self, envs: int) -> tuple[Tensor, Tensor]:
        """Return the initial LSTM state of n environments: zeros, (1, n, size) twice."""
        return torch.zeros(1, envs, self.size), torch.zeros(1, envs, self.size)

    def forward(
        self,
        stacks: Tensor,
        first: Tensor,
        memory: tuple[Tensor, Tensor],
        mask: Mask = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, Tensor]]:
        """Run T steps of n environments.

        Args:
            stacks: Embeddings (T * n, k, width), ordered by step, then environment.
            first: 1 where an episode begins, which resets the LSTM state, (T * n,).
            memory: LSTM state before the first step, (1, n, size) twice.
            mask: Which models are present.

        Returns:
            Logits (T * n, actions), values (T * n,), fusion weights (T * n, models) or None, and
            the LSTM state after the last step.
        """
        state, weights = self.torso(stacks, mask)
        envs = memory[0].shape[1]
        not_first = 1 - first.view(-1, 1, envs, 1).to(state.dtype)
        outputs = []
        for inputs, keep in zip(state.view(-1, 1, envs, self.size), not_first, strict=True):
            output, memory = self.lstm(inputs, (keep * memory[0], keep * memory[1]))
            outputs.append(output)
        hidden = torch.cat(outputs).view(-1, self.size)
        return self.actor(hidden), self.critic(hidden).squeeze(1), weights, memory
