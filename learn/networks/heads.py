"""Q-network and actor-critic: normalize or decode embeddings, fuse them, and apply heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from math import inf
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from wsa.learn.configs.network import NetworkConfig
from wsa.learn.fusion.base import Inputs, Mask, State, Weights, initialize
from wsa.learn.fusion.build import make_fusion
from wsa.learn.networks.decoder import Decoder


class Standard(nn.Module):
    """Standardize each feature with its mean and standard deviation over the data, and clip it.

    Without clipping, a feature that was constant in the data drowns all others once it changes: in
    Pong, the first pixels of a color in a new column were 490 standard deviations from the mean.

    Args:
        width: Number of features.
        clip: Largest absolute value; infinity for no clipping.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, clip: float) -> None:
        super().__init__()
        self._clip = clip
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward(self, part: Float[Tensor, "batch k width"]) -> Float[Tensor, "batch k width"]:
        """Return (part - mean) / deviation, clipped."""
        return ((part - self.mean) / self.deviation).clamp(-self._clip, self._clip)


class Torso(nn.Module):
    """Normalize and fuse stacks of embeddings into one state vector, the input of every head.

    An embedding with a decoder is not normalized, because the decoder takes the code as it is, and
    returns masks from 0 to 1.

    Args:
        inputs: Shapes of the models' embeddings, which are concatenated in each row, and which of
            them to decode.
        config: Normalization, fusion, and sizes.

    Attributes:
        fusion: The fusion module.
        out_features: Length of the state vector.
    """

    def __init__(self, inputs: Inputs, config: NetworkConfig) -> None:
        super().__init__()
        self.inputs = inputs
        decoders = inputs.decoders or ("",) * len(inputs.shapes)
        self.normalizers = nn.ModuleList(
            nn.Identity() if weights else _normalizer(width, config)
            for width, weights in zip(inputs.widths, decoders, strict=True)
        )
        self.decoders = nn.ModuleList(
            Decoder(weights) if weights else nn.Identity() for weights in decoders
        )
        self._decoded_shapes = tuple(
            (shape[0], *Decoder.shape) if weights else shape
            for shape, weights in zip(inputs.shapes, decoders, strict=True)
        )
        self.fusion = make_fusion(
            config.fusion, dataclasses.replace(inputs, shapes=self._decoded_shapes, decoders=())
        )
        self.out_features = self.fusion.out_features

    def set_moments(
        self,
        mean: Float[Tensor, " width"],
        deviation: Float[Tensor, " width"],
        of: Collection[int] | None = None,
    ) -> None:
        """Set the moments of `standard` normalization, which are saved with the weights.

        Args:
            mean, deviation: Of each number of a row.
            of: Indices of the models to set them for; None for all.
        """
        widths = list(self.inputs.widths)
        parts = zip(self.normalizers, mean.split(widths), deviation.split(widths), strict=True)
        for i, (normalizer, part_mean, part_deviation) in enumerate(parts):
            if isinstance(normalizer, Standard) and (of is None or i in of):
                normalizer.mean.copy_(part_mean)
                normalizer.deviation.copy_(part_deviation)

    def forward(
        self, stacks: Float[Tensor, "batch k width"], mask: Mask = None
    ) -> tuple[State, Weights | None]:
        """Compute the state vector.

        Args:
            stacks: Embeddings of the last k frames, (B, k, width), float16 or float32, oldest
                first. A model with one embedding for the whole state uses only the newest row.
            mask: Which models are present. The fusion gets zeros for an absent model, whose
                embedding is neither normalized nor decoded.

        Returns:
            The state vector (B, out_features), and the weights (B, models), or None if the fusion
            has no weights.
        """
        absent = {i for i, is_present in enumerate(mask or ()) if not is_present}
        absent.discard(self.inputs.context)  # The context is needed even if its model is not fused.
        embeddings = [
            stacks.new_zeros((), dtype=torch.float32).expand(len(stacks), *self._decoded_shapes[i])
            if i in absent
            else self._embedding(i, part)
            for i, part in enumerate(stacks.split(list(self.inputs.widths), dim=2))
        ]
        state, weights = self.fusion(embeddings, mask)
        return state, weights

    def _embedding(
        self, i: int, part: Float[Tensor, "batch k width"]
    ) -> Float[Tensor, "batch ..."]:
        """Normalize or decode one model's embeddings of the last k frames."""
        shape = self.inputs.shapes[i]
        normalized = self.normalizers[i](part[:, -shape[0] :].float())
        embedding: Tensor = self.decoders[i](normalized.reshape(len(part), *shape))
        return embedding


class Network(nn.Module):
    """A torso, on which subclasses put heads.

    Args:
        torso: Maps stacks to state vectors: a `Torso`, or `wsa.learn.networks.nature.NatureTorso`.

    Attributes:
        recurrent: Whether `forward` takes and returns a memory.
    """

    recurrent = False

    def __init__(self, torso: nn.Module) -> None:
        super().__init__()
        self.torso: Any = torso

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device


class QNetwork(Network):
    """Q-values of all actions. Behavioral cloning (`wsa.learn.offline.bc`) uses them as logits.

    Args:
        inputs: Shapes of the models' embeddings.
        actions: Number of actions.
        config: Normalization, fusion, and sizes.
        torso: Replaces the `Torso`.
    """

    def __init__(
        self,
        inputs: Inputs,
        actions: int,
        config: NetworkConfig,
        torso: nn.Module | None = None,
    ) -> None:
        super().__init__(torso or Torso(inputs, config))
        self.head = _mlp(self.torso.out_features, config, actions)

    def forward(
        self, stacks: Num[Tensor, "batch k width"], mask: Mask = None
    ) -> tuple[Float[Tensor, "batch actions"], Weights | None]:
        """Return Q-values (B, actions), and the weights; see `Torso.forward`."""
        state, weights = self.torso(stacks, mask)
        return self.head(state), weights


class ActorCritic(Network):
    """Actor and critic heads on one shared torso.

    The heads have orthogonal weights and zero biases, as is usual for PPO: gain sqrt(2) in hidden
    layers, 0.01 for the logits, and 1 for the value.
    """

    def __init__(
        self,
        inputs: Inputs,
        actions: int,
        config: NetworkConfig,
        torso: nn.Module | None = None,
    ) -> None:
        super().__init__(torso or Torso(inputs, config))
        self.actor = _mlp(self.torso.out_features, config, actions)
        self.critic = _mlp(self.torso.out_features, config, 1)
        for head, gain in ((self.actor, 0.01), (self.critic, 1.0)):
            initialize(head[:-1], 2**0.5)
            initialize(head[-1], gain)

    def forward(
        self, stacks: Num[Tensor, "batch k width"], mask: Mask = None
    ) -> tuple[Float[Tensor, "batch actions"], Float[Tensor, " batch"], Weights | None]:
        """Return logits (B, actions), values (B,), and the weights; see `Torso.forward`."""
        state, weights = self.torso(stacks, mask)
        return self.actor(state), self.critic(state).squeeze(1), weights


def _normalizer(width: int, config: NetworkConfig) -> nn.Module:
    """Build what normalizes one model's embeddings; `layer` has no learned parameters."""
    if config.normalize == "standard":
        return Standard(width, config.clip_embeddings or inf)
    if config.normalize == "layer":
        return nn.LayerNorm(width, elementwise_affine=False)
    return nn.Identity()


def _mlp(width: int, config: NetworkConfig, out: int) -> nn.Sequential:
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[config.head_activation]
    parts: list[nn.Module] = []
    for units in config.hidden:
        parts += [nn.Linear(width, units), activation()]
        width = units
    return nn.Sequential(*parts, nn.Linear(width, out))
