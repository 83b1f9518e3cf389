"""The paper's baselines for combining models: LIN, FIX, CNN, MIX, and RES.

The paper's other baseline, DPA, is in `wsa.learn.fusion.attention`; it alone learns weights.
Numbers in square brackets are the paper's, where spatial adapters turn 128x21x21, 4x21x21, and
20x84x84 into 32x16x16, 16x16x16, and 16x16x16, and the fourth embedding is a vector of 512. The
values of an absent model are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.fusion.base import (
    OF_ADAPTERS,
    Embeddings,
    Fusion,
    Inputs,
    Mask,
    Shape,
    SpatialAdapter,
    State,
    initialize,
    linear_adapter,
    present_of,
    side_of,
    spatial_adapters,
    widths_after,
)
from wsa.store.common.errors import UsageError


class Joined(Fusion):
    """Base class of fusions that concatenate the spatially adapted embeddings."""

    scaled_by = "hidden"
    options: tuple[str, ...] = ("init",)

    def __init__(self, inputs: Inputs, side: int | None = None) -> None:
        super().__init__()
        self.shapes = inputs.models
        self.spatial = spatial_adapters(inputs.models, side)
        self.widths = widths_after(inputs.models, self.spatial)

    def spread(self, embeddings: Embeddings, mask: Mask) -> list[Tensor]:
        """Return As_i(u_i), or u_i itself for a vector; zeros for an absent model."""
        present = present_of(mask, len(self.shapes))
        parts = []
        for i, adapter in enumerate(self.spatial):
            part = adapter(embeddings[i])
            parts.append(part if i in present else torch.zeros_like(part))
        return parts


class LIN(Joined):
    """R = [flatten(As_1(u_1)) ; ... ; flatten(As_m(u_m))], (B, sum of widths) [16,896]."""

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        super().__init__(inputs)
        self.out_features = sum(self.widths)

    def forward(self, embeddings: Embeddings, mask: Mask = None) -> tuple[State, None]:
        """See `Fusion.forward`."""
        parts = self.spread(embeddings, mask)
        return torch.cat([part.flatten(1) for part in parts], dim=1), None


class FIX(Joined):
    """E_i = ReLU(LN(W_i flatten(As_i(u_i)) + b_i)), R = [E_1 ; ... ; E_m], (B, m d).

    The authors' version has no LayerNorm (`FusionConfig.layer_norm`).
    """

    scaled_by = "size"
    options: tuple[str, ...] = ("init", *OF_ADAPTERS)

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        super().__init__(inputs)
        self.adapters = nn.ModuleList(linear_adapter(width, config) for width in self.widths)
        if config.init == "small":
            initialize(self.adapters, 0.01)
        self.out_features = len(self.widths) * config.size

    def forward(self, embeddings: Embeddings, mask: Mask = None) -> tuple[State, None]:
        """See `Fusion.forward`."""
        present = present_of(mask, len(self.shapes))
        parts = [
            adapter(part.flatten(1))
            for adapter, part in zip(self.adapters, self.spread(embeddings, None), strict=True)
        ]
        kept = [p if i in present else torch.zeros_like(p) for i, p in enumerate(parts)]
        return torch.cat(kept, dim=1), None


class CNN(Joined):
    """Stack all maps as channels, then apply n convolutions: R = flatten(h_n) [8,192].

    h_0 = [As_i(u_i)] along channels, with a vector of length D folded into D / side^2 channels
    [2+32+16+16 = 66]; h_j = ReLU(conv3x3(h_{j-1})) with 32 output channels
    (`FusionConfig.channels`), stride 1, and padding 1. R has length 32 side^2.

    Raises:
        UsageError: If no embedding is spatial, or a vector cannot be folded.
    """

    scaled_by = "channels"
    options: tuple[str, ...] = ("init", "layers", "channels")

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        side = common_side(inputs.models, "cnn")
        super().__init__(inputs, side)
        self._side = side
        for width, shape in zip(self.widths, inputs.models, strict=True):
            if width % side**2:
                raise UsageError(
                    f"--fusion cnn folds a vector into maps of {side} x {side}, and "
                    f"{' x '.join(map(str, shape))} = {width} numbers are not a multiple of "
                    f"{side**2}. Choose --fusion mix or wsa, or leave that model out."
                )
        channels = sum(self.widths) // side**2
        parts: list[nn.Module] = []
        for _ in range(config.layers):
            parts += [nn.Conv2d(channels, config.channels, 3, padding=1), nn.ReLU()]
            channels = config.channels
        self.convolutions = nn.Sequential(*parts)
        self.out_features = config.channels * side**2

    def forward(self, embeddings: Embeddings, mask: Mask = None) -> tuple[State, None]:
        """See `Fusion.forward`."""
        maps = [
            part.reshape(len(part), -1, self._side, self._side)
            for part in self.spread(embeddings, mask)
        ]
        return self.convolutions(torch.cat(maps, dim=1)).flatten(1), None


class MIX(Joined):
    """Convolve the spatial embeddings together, then append the vectors [8,192 + 512 = 8,704].

    R = [flatten(ReLU(conv3x3([As_i(u_i)]))) ; u_j ...], where i are the spatial embeddings
    [64 channels to 32] and j the vectors.

    Raises:
        UsageError: If no embedding is spatial.
    """

    scaled_by = "channels"
    options: tuple[str, ...] = ("init", "channels")

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        side = common_side(inputs.models, "mix")
        super().__init__(inputs, side)
        channels = sum(a.out_shape[0] for a in self.spatial if isinstance(a, SpatialAdapter))
        mixed = nn.Conv2d(channels, config.channels, 3, padding=1)
        self.convolution = nn.Sequential(mixed, nn.ReLU())
        vectors = sum(prod(shape) for shape in self.shapes if len(shape) == 2)
        self.out_features = config.channels * side**2 + vectors

    def forward(self, embeddings: Embeddings, mask: Mask = None) -> tuple[State, None]:
        """See `Fusion.forward`."""
        parts = self.spread(embeddings, mask)
        spatial = [p for p, shape in zip(parts, self.shapes, strict=True) if len(shape) == 4]
        vectors = [p for p, shape in zip(parts, self.shapes, strict=True) if len(shape) == 2]
        mixed = self.convolution(torch.cat(spatial, dim=1))
        return torch.cat([mixed.flatten(1), *(v.flatten(1) for v in vectors)], dim=1), None


class RES(Joined):
    """Reservoir: a fixed random recurrent network. R = x_k, (B, n).

    x_0 = 0; x_j = tanh(u_j W_in + x_{j-1} W_res) for j = 1..k over the state's frames, oldest
    first, where u_j is LIN's vector of one frame. W_in, W_res ~ N(0, 1), and W_res is rescaled to a
    spectral radius of 0.9. There is no leak, no input scaling, and no gradient. A model with one
    embedding for the whole state (k = 1) provides it at every j.

    The authors keep one x per batch index and never reset it. Their shuffled minibatches therefore
    overwrite the environments' states, the policy is trained on other states than it acted on, and
    their checkpoints lack the matrices. Here, R is a function of the last k frames of the episode:
    it restarts with each episode, needs no replay, and remembers k frames, not a whole episode. The
    matrices are buffers, so checkpoints have them. As in the authors' code, the spatial adapters
    stay random: only the head is trained.
    """

    options: tuple[str, ...] = ("init", "size")

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        super().__init__(inputs)
        single = Inputs(tuple((1, *shape[1:]) for shape in inputs.models))
        self.spatial = spatial_adapters(single.models)
        self.widths = widths_after(single.models, self.spatial)
        self.out_features = config.size
        self.register_buffer("reservoir_in", torch.randn(sum(self.widths), config.size))
        recurrent = torch.randn(config.size, config.size)
        radius = torch.linalg.eigvals(recurrent).abs().max()
        self.register_buffer("reservoir", recurrent * (0.9 / radius))
        self.reservoir_in: Tensor
        self.reservoir: Tensor

    @torch.no_grad()
    def forward(self, embeddings: Embeddings, mask: Mask = None) -> tuple[State, None]:
        """See `Fusion.forward`. No gradient flows through it."""
        state = embeddings[0].new_zeros(len(embeddings[0]), self.out_features)
        for t in range(max(shape[0] for shape in self.shapes)):
            frame = [
                u[:, t : t + 1] if u.shape[1] > 1 else u for u in embeddings[: len(self.shapes)]
            ]
            inputs = torch.cat([part.flatten(1) for part in self.spread(frame, mask)], dim=1)
            state = torch.tanh(inputs @ self.reservoir_in + state @ self.reservoir)
        return state, None


def common_side(shapes: Sequence[Shape], name: str) -> int:
    """Return the side that all maps are reduced to: the smallest of their output sides.

    Raises:
        UsageError: If no embedding is spatial.
    """
    sides = [side_of(shape) for shape in shapes if len(shape) == 4]
    if not sides:
        raise UsageError(
            f"--fusion {name} convolves maps, but every model gives a vector. Encode one with "
            "--output grid:7 or map, or choose --fusion lin or wsa."
        )
    return min(sides)
