"""Decode a model's stored code inside a network: 512 numbers of `vos` into its 20 masks."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsa.encode.registration import decoders


class Decoder(nn.Module):
    """The frozen decoder of a model, found by the digest of the model's weights.

    Its weights are buffers that no checkpoint contains: no optimizer sees them, no gradient reaches
    them, and a network that is loaded finds them again by the digest.

    Args:
        weights: Hex blake3-256 of the model's tensors.

    Raises:
        ConflictError: If no decoder belongs to these weights.

    Attributes:
        shape: Shape of the decoded map, (H, W, C).
    """

    shape: ClassVar[tuple[int, int, int]] = decoders.SHAPE

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.network = copy.deepcopy(decoders.find_decoder(weights))
        for part in list(self.network.modules()):
            for name, parameter in list(part.named_parameters(recurse=False)):
                delattr(part, name)
                part.register_buffer(name, parameter.detach(), persistent=False)

    @torch.no_grad()
    def forward(self, codes: Float[Tensor, "batch k size"]) -> Float[Tensor, "batch k h w c"]:
        """Decode codes (B, k, D) into maps (B, k, H, W, C)."""
        maps: Tensor = self.network(codes.flatten(0, 1))
        return maps.permute(0, 2, 3, 1).reshape(*codes.shape[:2], *self.shape)
