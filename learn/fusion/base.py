"""Base class of fusions, and the adapters that bring every model's embedding to one length.

One model's embedding of a state has shape (B, k, D), or (B, k, H, W, C) if the model's output is a
grid or a feature map. k is the number of consecutive frames, oldest first; it is 1 for a model that
sees several frames itself. Frames are folded into channels, which gives u_i: (B, k D) or
(B, k C, H, W).

Piccoli et al. (arXiv 2507.07197) reduce spatial embeddings to 16 x 16 with two convolutions and a
ReLU, then map every embedding to d numbers with a linear layer and a ReLU. They give the
convolutions for three shapes. `SpatialAdapter` has a rule that yields these three and works for
every other shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsa.learn.configs.fusions import FusionConfig

SIDE = 16  # Height and width of a spatial adapter's output.
MOST_CHANNELS, FEWEST_CHANNELS = 32, 16

Shape = tuple[int, ...]
Embeddings: TypeAlias = Sequence[Float[Tensor, "batch ..."]]
Mask: TypeAlias = Sequence[bool] | None
"""Whether each fused model is present; None if all are."""
State: TypeAlias = Float[Tensor, "batch size"]
States: TypeAlias = Float[Tensor, "batch present size"]
"""E_i of each present model."""
Scores: TypeAlias = Float[Tensor, "batch present"]
Weights: TypeAlias = Float[Tensor, "batch models"]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Shapes of a network's inputs: one embedding of the state per model.

    Attributes:
        shapes: (k, D) or (k, H, W, C) of each embedding, in the order of the flat map.
        context: Index of the embedding whose newest frame is the context, as in the paper; None
            for the mean of the fused models' E_i.
        fused: Number of embeddings to fuse, counted from the first; None for all. The remaining
            one serves only as the context, like the paper's autoencoder.
        decoders: For each embedding that the network decodes into a map, the digest of its model's
            weights; "" for the others. Empty if it decodes none.
    """

    shapes: tuple[Shape, ...]
    context: int | None = None
    fused: int | None = None
    decoders: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[Shape, ...]:
        """Shapes of the fused embeddings."""
        return self.shapes[: self.fused]

    @property
    def depth(self) -> int:
        """Number of frames in a state."""
        return max(shape[0] for shape in self.shapes)

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of values that each embedding has in one row of the flat map."""
        return tuple(prod(shape[1:]) for shape in self.shapes)


OF_ADAPTERS = ("size", "layer_norm", "dropout")
"""Fields of `FusionConfig` that `linear_adapter` reads."""


class Fusion(nn.Module):
    """Base class: combine several embeddings into one state vector.

    Attributes:
        out_features: Length of the state vector.
        weighs: Whether the fusion learns a weight for each model. By default, weights sum to 1, so
            a model that is alone has weight 1.
        conditioned: Whether the fusion uses a context.
        per_model: Names of the lists of modules or parameters that have one entry per model. All
            other modules work with any number of models. Without such a list, models cannot be
            added or removed.
        scaled_by: What sets the width, for `--match-parameters`: `size`, `channels`, or `layers`
            of `FusionConfig`; `hidden` (the head's layers) if the models fix the state vector's
            length; "" if nothing.
        options: Fields of `FusionConfig` that change the fusion.
    """

    weighs = False
    conditioned = False
    per_model: tuple[str, ...] = ()
    scaled_by = ""
    options: tuple[str, ...] = FusionConfig.__struct_fields__
    out_features: int

    def forward(self, embeddings: Embeddings, mask: Mask = None) -> tuple[State, Weights | None]:
        """Fuse embeddings into a state vector.

        Args:
            embeddings: One tensor per input, (B, k, D) or (B, k, H, W, C); zeros for absent models.
            mask: Whether each fused model is present; None if all are. Absent models are neither
                adapted nor scored: the others are fused as if they were the only ones.

        Returns:
            The state vector (B, out_features), and the weights (B, models), which are 0 for absent
            models. The weights are None if the fusion has none.
        """
        raise NotImplementedError

    def dead_rows(self, weights: Weights) -> Float[Tensor, ""] | None:
        """Return the fraction of states in which a ReLU zeroes every score and its gradient.

        Args:
            weights: Weights returned by `forward` with all models present.

        Returns:
            A fraction from 0 to 1; None if the fusion cannot have such states.
        """
        return None


class SpatialAdapter(nn.Sequential):
    """The paper's As_i: 1x1 convolution to fewer channels, convolution to `side` x `side`, ReLU.

    Maps (B, k, H, W, C) to (B, channels, side, side). The second convolution has stride
    s = floor(H / side) and the smallest kernel of at least s whose output has height `side`:
    max(s, H - s side + 1); likewise for W. `channels` is k C / 4, clipped to 16..32. Every position
    is treated alike, and the authors' three adapters follow: 128x21x21 to 32 channels with a 6x6
    kernel, 4x21x21 to 16 with 6x6, 20x84x84 to 16 with 5x5 and stride 5. The convolutions have
    biases, no padding, and no nonlinearity between them.

    Args:
        shape: (k, H, W, C).
        side: Height and width of the output; at most 16, H, and W.
    """

    def __init__(self, shape: Shape, side: int) -> None:
        frames, height, width, channels = shape
        out = min(max(frames * channels // 4, FEWEST_CHANNELS), MOST_CHANNELS)
        strides = (height // side, width // side)
        kernels = (
            max(strides[0], height - strides[0] * side + 1),
            max(strides[1], width - strides[1] * side + 1),
        )
        super().__init__(
            nn.Conv2d(frames * channels, out, 1), nn.Conv2d(out, out, kernels, strides), nn.ReLU()
        )
        self.out_shape = (out, side, side)

    def forward(
        self, input: Float[Tensor, "batch k height width channels"]
    ) -> Float[Tensor, "batch out side side"]:
        """Fold frames into channels, then convolve."""
        maps = input.permute(0, 1, 4, 2, 3).flatten(1, 2)
        for part in self:
            maps = part(maps)
        return maps


def side_of(shape: Shape) -> int:
    """Return the output side of an embedding's spatial adapter: 16, or the map's own if smaller."""
    return min(SIDE, *shape[1:3])


def spatial_adapters(shapes: Sequence[Shape], side: int | None = None) -> nn.ModuleList:
    """Build As_i for each spatial embedding, and an identity for each vector.

    Args:
        shapes: Shapes of the embeddings.
        side: Output side of all adapters; None to derive each one from its shape.
    """
    return nn.ModuleList(
        SpatialAdapter(shape, side or side_of(shape)) if len(shape) == 4 else nn.Identity()
        for shape in shapes
    )


def widths_after(shapes: Sequence[Shape], adapters: nn.ModuleList) -> list[int]:
    """Return the number of values in each u_i after the spatial adapters."""
    return [
        prod(adapter.out_shape) if isinstance(adapter, SpatialAdapter) else prod(shape)
        for shape, adapter in zip(shapes, adapters, strict=True)
    ]


def linear_adapter(width: int, config: FusionConfig) -> nn.Sequential:
    """Build the paper's Al_i, which maps u (B, width) to ReLU(LN(W u + b)) (B, d)."""
    parts: list[nn.Module] = [nn.Linear(width, config.size)]
    if config.layer_norm:
        parts.append(nn.LayerNorm(config.size))
    parts.append(nn.ReLU())
    if config.dropout:
        parts.append(nn.Dropout(config.dropout))
    return nn.Sequential(*parts)


def initialize(module: nn.Module, gain: float) -> None:
    """Give all linear layers and convolutions orthogonal weights with `gain`, and zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(part.weight, gain)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def present_of(mask: Mask, models: int) -> list[int]:
    """Return the indices of the present models.

    Raises:
        ValueError: If the mask has another number of models, or no model is present.
    """
    if mask is None:
        return list(range(models))
    present = [i for i, is_present in zip(range(models), mask, strict=True) if is_present]
    if not present:
        raise ValueError("a state needs at least one model")
    return present


class Adapted(Fusion):
    """Base class of fusions whose adapters bring every embedding to one length d.

    E_i = ReLU(LN(W_i flatten(As_i(u_i)) + b_i)), E_i in R^d, with one pair (As_i, W_i) per model.
    """

    conditioned = True
    per_model: tuple[str, ...] = ("spatial", "adapters")
    scaled_by = "size"
    options: tuple[str, ...] = ("init", *OF_ADAPTERS)

    def __init__(self, inputs: Inputs, config: FusionConfig) -> None:
        super().__init__()
        self.out_features = config.size
        self.models = len(inputs.models)
        self.spatial = spatial_adapters(inputs.models)
        widths = widths_after(inputs.models, self.spatial)
        self.adapters = nn.ModuleList(linear_adapter(width, config) for width in widths)
        self._context = inputs.context if self.conditioned else None
        self.context = (
            linear_adapter(prod(inputs.shapes[self._context][1:]), config)
            if self._context is not None
            else None
        )

    def adapt(self, embeddings: Embeddings, present: Sequence[int]) -> States:
        """Return E_i of each present model.

        Raises:
            ValueError: If there are fewer embeddings than models.
        """
        # A loop, because one batched product over stacked weights needs models of equal width.
        return torch.stack(
            [self.adapters[i](self.spatial[i](embeddings[i]).flatten(1)) for i in present], dim=1
        )

    def condition(self, adapted: States, embeddings: Embeddings) -> State:
        """Return the context c: the adapted newest frame of one input, or the mean of the E_i."""
        if self.context is None or self._context is None:
            return adapted.mean(dim=1)
        context: Tensor = self.context(embeddings[self._context][:, -1].flatten(1))
        return context
