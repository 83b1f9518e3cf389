"""From a frozen model's embedding to what can be fused: folding, convolutions, one linear map.

A state's embedding by one model is (B, k, D), or (B, k, H, W, C) where the model's output is a grid
or a map: k consecutive frames, oldest first, one where the model looked at several itself. Frames
are folded into channels, u_i: (B, k D), or (B, k C, H, W).

Piccoli et al. (arXiv 2507.07197) bring spatial embeddings to 16 x 16 with two convolutions and a
ReLU, and everything to d numbers with a linear map and a ReLU. Their convolutions are written down
for three shapes; `SpatialAdapter` is the rule that gives exactly those and serves all others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsa.learn.configs.fusions import FusionConfig

SIDE = 16  # Of the maps that adapters make.
MOST_CHANNELS, FEWEST_CHANNELS = 32, 16

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a network reads of a state: an embedding by each model.

    Attributes:
        shapes: (k, D) or (k, H, W, C) of each, in the order of the flat map.
        context: Which of them conditions the weights, by its newest frame as in the paper; None for
            the mean of those that are fused.
        fused: How many of them, from the first, are fused; all if None. One that is not gives the
            context alone, as the paper's autoencoder does.
    """

    shapes: tuple[Shape, ...]
    context: int | None = None
    fused: int | None = None

    @property
    def models(self) -> tuple[Shape, ...]:
        """Shapes of those that are fused."""
        return self.shapes[: self.fused]

    @property
    def depth(self) -> int:
        """Frames in a state."""
        return max(shape[0] for shape in self.shapes)

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers that each takes in a row of the flat map."""
        return tuple(prod(shape[1:]) for shape in self.shapes)


class Fusion(nn.Module):
    """What turns several embeddings into one state vector.

    Attributes:
        out_features: Length of the state vector.
        weighs: Whether it learns a weight for each model.
        conditioned: Whether it looks at a context.
        per_model: Its lists of modules that have one entry for each model. What is in no such list
            serves any number of models; a fusion that names none cannot gain or lose one.
        scaled_by: What sets its width, for `--match-parameters`: a field of `FusionConfig`, or `hidden`,
            the head's, where the state vector is as long as its models make it; "" of one that has none.
    """

    weighs = False
    conditioned = False
    per_model: tuple[str, ...] = ()
    scaled_by = ""
    out_features: int

    def forward(
        self,
        embeddings: Sequence[Float[Tensor, "batch ..."]],
        mask: Sequence[bool] | None = None,
    ) -> tuple[Float[Tensor, "batch size"], Float[Tensor, "batch models"] | None]:
        """Fuse.

        Args:
            embeddings: One of (B, k, D) or (B, k, H, W, C) for each input.
            mask: Whether each fused model is present, all if None. One that is absent is neither
                looked at nor scored: the others are fused as if there had never been more.

        Returns:
            The state vector (B, out_features); and the weights (B, models), 0 where absent, or
            None of a fusion that gives models no weights.
        """
        raise NotImplementedError

    def dead_rows(self, weights: Float[Tensor, "batch models"]) -> Float[Tensor, ""] | None:
        """Share of states in which a ReLU cuts off every model's score, and with it the gradient.

        Args:
            weights: What `forward` gave with all models present.

        Returns:
            From 0 to 1; None of a fusion in which there can be no such state.
        """
        return None


class SpatialAdapter(nn.Sequential):
    """As_i of the paper: 1x1 convolution to fewer channels, convolution to `side`, ReLU.

    (B, k, H, W, C) becomes (B, channels, side, side). From H (W alike) to `side`: stride
    s = floor(H / side), and the smallest kernel, no smaller than s, that ends at `side`:
    max(s, H - s side + 1). Channels are a quarter of k C, from 16 to 32. That gives the authors'
    own, by which no position is unlike another: 128x21x21 to 32 by a 6x6; 4x21x21 to 16 by a 6x6;
    20x84x84 to 16 by a 5x5 of stride 5. No padding; biases; nothing between the convolutions.

    Args:
        shape: (k, H, W, C).
        side: Of the result; at most 16, and at most H and W.
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
        """Fold frames into channels, and convolve."""
        maps = input.permute(0, 1, 4, 2, 3).flatten(1, 2)
        for part in self:
            maps = part(maps)
        return maps


def side_of(shape: Shape) -> int:
    """The side an embedding's map is brought to: 16, or less where it is smaller."""
    return min(SIDE, *shape[1:3])


def spatial_adapters(shapes: Sequence[Shape], side: int | None = None) -> nn.ModuleList:
    """As_i for each spatial embedding; vectors go through nothing.

    Args:
        shapes: Of the embeddings.
        side: Of all results; each by its own shape if None.
    """
    return nn.ModuleList(
        SpatialAdapter(shape, side or side_of(shape)) if len(shape) == 4 else nn.Identity()
        for shape in shapes
    )


def widths_after(shapes: Sequence[Shape], adapters: nn.ModuleList) -> list[int]:
    """Numbers in each u_i once the spatial adapters are through."""
    return [
        prod(adapter.out_shape) if isinstance(adapter, SpatialAdapter) else prod(shape)
        for shape, adapter in zip(shapes, adapters, strict=True)
    ]


def linear_adapter(width: int, config: FusionConfig) -> nn.Sequential:
    """Al_i of the paper: u (B, width) to ReLU(LN(W u + b)), (B, d)."""
    parts: list[nn.Module] = [nn.Linear(width, config.size)]
    if config.layer_norm:
        parts.append(nn.LayerNorm(config.size))
    parts.append(nn.ReLU())
    if config.dropout:
        parts.append(nn.Dropout(config.dropout))
    return nn.Sequential(*parts)


def initialise(module: nn.Module, gain: float) -> None:
    """Orthogonal weights of a gain and no bias, in every linear map and convolution."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(part.weight, gain)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def present_of(mask: Sequence[bool] | None, models: int) -> list[int]:
    """Places of the models that are present.

    Raises:
        ValueError: The mask is of another number of models, or all are absent.
    """
    if mask is None:
        return list(range(models))
    present = [i for i, there in zip(range(models), mask, strict=True) if there]
    if not present:
        raise ValueError("a state needs at least one model")
    return present


class Adapted(Fusion):
    """A fusion of embeddings E_i that adapters have brought to one length d.

    E_i = ReLU(LN(W_i flatten(As_i(u_i)) + b_i)), E_i in R^d, one pair (As_i, W_i) for each model.

    Args:
        inputs: What is fused.
        config: Size and switches.
    """

    conditioned = True
    per_model: tuple[str, ...] = ("spatial", "adapters")
    scaled_by = "size"

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

    def adapt(
        self, embeddings: Sequence[Float[Tensor, "batch ..."]], present: Sequence[int]
    ) -> Float[Tensor, "batch present size"]:
        """E_i of the models that are present.

        Raises:
            ValueError: There are fewer embeddings than models.
        """
        # A loop: one batched product over stacked weights took 0.83 to 1.07 of its time on a CPU
        # (docs/benchmarks.md), and models of unlike widths could not share it.
        return torch.stack(
            [self.adapters[i](self.spatial[i](embeddings[i]).flatten(1)) for i in present], dim=1
        )

    def condition(
        self,
        adapted: Float[Tensor, "batch present size"],
        embeddings: Sequence[Float[Tensor, "batch ..."]],
    ) -> Float[Tensor, "batch size"]:
        """The context c: one input's, of the newest frame, or the mean of the E_i."""
        if self.context is None or self._context is None:
            return adapted.mean(dim=1)
        context: Tensor = self.context(embeddings[self._context][:, -1].flatten(1))
        return context
