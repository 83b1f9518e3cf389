"""From stacks of embeddings to actions: normalise, fuse, and a head on the state vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from wsa.learn.configs.network import NetworkConfig
from wsa.learn.fusion.base import Inputs
from wsa.learn.fusion.build import make_fusion


class Standard(nn.Module):
    """Numbers less their mean over the data, divided by their deviation.

    Args:
        width: How many.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward(self, part: Float[Tensor, "batch k width"]) -> Float[Tensor, "batch k width"]:
        """Normalise."""
        return (part - self.mean) / self.deviation


class Layer(nn.LayerNorm):
    """A frame's numbers to mean 0 and deviation 1; nothing is learned.

    Args:
        width: How many.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, elementwise_affine=False)


class Raw(nn.Identity):
    """Numbers as they are."""


class Torso(nn.Module):
    """Stacks of embeddings to one state vector; what all heads share.

    Args:
        inputs: The models' embeddings, which stand side by side in a row.
        config: What the network is.

    Attributes:
        fusion: The fusion.
        out_features: Length of the state vector.
    """

    def __init__(self, inputs: Inputs, config: NetworkConfig) -> None:
        super().__init__()
        self.inputs = inputs
        kind = {"standard": Standard, "layer": Layer, "none": Raw}[config.normalize]
        self.normalisers = nn.ModuleList(kind(width) for width in inputs.widths)
        self.fusion = make_fusion(config.fusion, inputs)
        self.out_features = self.fusion.out_features

    def set_moments(
        self, mean: Float[Tensor, " width"], deviation: Float[Tensor, " width"]
    ) -> None:
        """Fix what `standard` normalises with; saved with the weights."""
        widths = list(self.inputs.widths)
        parts = zip(self.normalisers, mean.split(widths), deviation.split(widths), strict=True)
        for normaliser, centre, spread in parts:
            if isinstance(normaliser, Standard):
                normaliser.mean.copy_(centre)
                normaliser.deviation.copy_(spread)

    def forward(
        self, stacks: Float[Tensor, "batch k width"], mask: Sequence[bool] | None = None
    ) -> tuple[Float[Tensor, "batch size"], Float[Tensor, "batch models"] | None]:
        """Fuse.

        Args:
            stacks: (B, k, width) float16 or float32, oldest frame first. Of a model that gives one
                embedding for the whole state, the last is it.
            mask: Whether each model is present, all if None.

        Returns:
            The state vector (B, out_features); and the weights (B, models), or None of a fusion
            that gives models no weights.
        """
        parts = stacks.split(list(self.inputs.widths), dim=2)
        embeddings = [
            normaliser(part[:, -shape[0] :].float()).reshape(len(part), *shape)
            for normaliser, part, shape in zip(
                self.normalisers, parts, self.inputs.shapes, strict=True
            )
        ]
        state, weights = self.fusion(embeddings, mask)
        return state, weights


class QNetwork(nn.Module):
    """Action values; trained by cross-entropy (`wsa.learn.offline.bc`) their order is a policy's.

    Args:
        inputs: The models' embeddings.
        actions: Number of actions.
        config: What the network is.
        torso: Takes the place of a `Torso`, as `wsa.learn.networks.nature.NatureTorso` does.
    """

    def __init__(
        self, inputs: Inputs, actions: int, config: NetworkConfig, torso: Any = None
    ) -> None:
        super().__init__()
        self.torso: Any = Torso(inputs, config) if torso is None else torso
        self.head = _mlp(self.torso.out_features, config, actions)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    def forward(
        self, stacks: Num[Tensor, "batch k width"], mask: Sequence[bool] | None = None
    ) -> tuple[Float[Tensor, "batch actions"], Float[Tensor, "batch models"] | None]:
        """Value actions; arguments and weights as `Torso.forward`."""
        state, weights = self.torso(stacks, mask)
        return self.head(state), weights


class ActorCritic(nn.Module):
    """Action logits and a state's value, a head each on one torso.

    Orthogonal heads: gain sqrt(2) in hidden layers, 0.01 for the logits, 1 for the value, as is
    usual with PPO.

    Args:
        inputs: The models' embeddings.
        actions: Number of actions.
        config: What the network is.
        torso: Takes the place of a `Torso`, as `wsa.learn.networks.nature.NatureTorso` does.
    """

    def __init__(
        self, inputs: Inputs, actions: int, config: NetworkConfig, torso: Any = None
    ) -> None:
        super().__init__()
        self.torso: Any = Torso(inputs, config) if torso is None else torso
        self.actor = _mlp(self.torso.out_features, config, actions)
        self.critic = _mlp(self.torso.out_features, config, 1)
        for head, last in ((self.actor, 0.01), (self.critic, 1.0)):
            maps = [part for part in head if isinstance(part, nn.Linear)]
            for part in maps:
                nn.init.orthogonal_(part.weight, last if part is maps[-1] else 2**0.5)
                nn.init.zeros_(part.bias)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    def forward(
        self, stacks: Num[Tensor, "batch k width"], mask: Sequence[bool] | None = None
    ) -> tuple[
        Float[Tensor, "batch actions"],
        Float[Tensor, " batch"],
        Float[Tensor, "batch models"] | None,
    ]:
        """Logits (B, actions), values (B,), and weights as `Torso.forward`."""
        state, weights = self.torso(stacks, mask)
        return self.actor(state), self.critic(state).squeeze(1), weights


def _mlp(width: int, config: NetworkConfig, out: int) -> nn.Sequential:
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[config.head_activation]
    parts: list[nn.Module] = []
    for units in config.hidden:
        parts += [nn.Linear(width, units), activation()]
        width = units
    return nn.Sequential(*parts, nn.Linear(width, out))
