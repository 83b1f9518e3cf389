"""Extract a model's output from its last features: pooled, class token, grid, or whole map.

Every architecture has its own layout of features. A `Trunk` returns them in the shape of an
embedding before any reduction: (C,) if pooled, (N, N, C) for a grid. It is the expensive part of a
model and the part that an engine runs (`wsa.encode.inference.engines`).
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from wsa.store.common.errors import UsageError
from wsa.store.objects.model_spec import Output


class Trunk(nn.Module):
    """A frozen network with its output, before any reduction.

    Args:
        module: Network, as `wsa.encode.models.networks.build` returns it.
        output: How to extract the embedding from the last features.
    """

    def __init__(self, module: nn.Module, output: Output) -> None:
        super().__init__()
        self.module: Any = module
        self._output = output

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn pixels (B, c, h, w) into float32 (B, C), (B, N, N, C) or (B, H, W, C).

        Raises:
            UsageError: If the model does not have this output.
        """
        features = self.module.forward_features(pixels)
        if not isinstance(features, Tensor):
            raise self._refusal("returns several tensors", "another model")
        if features.ndim not in (2, 3, 4):
            shape = ", ".join(["B", *map(str, features.shape[1:])])
            raise UsageError(
                f"This model returns ({shape}) for B frames. Let it return (B, C), tokens (B, T, C), or "
                "a map (B, C, H, W)."
            )
        kept: Tensor
        if self._output.kind == "pooled":
            kept = self.module.forward_head(features, pre_logits=True)
            if kept.ndim != 2:
                raise self._refusal("does not pool its features", "map")
        elif self._output.kind == "cls":
            if features.ndim != 3 or getattr(self.module, "cls_token", None) is None:
                raise self._refusal("has no class token", "pooled")
            kept = features[:, 0]
        else:
            kept = self._spatial(features).permute(0, 2, 3, 1)
        return kept.float()

    def _spatial(self, features: Tensor) -> Tensor:
        """Return the feature map (B, C, H, W), averaged to a grid if the output asks for one."""
        spatial = self._map(features)
        side = self._output.side
        if not side:
            return spatial
        largest = min(spatial.shape[2:])
        if side > largest:
            height, width = spatial.shape[2:]
            raise self._refusal(f"has a feature map of {height} x {width}", f"grid:{largest}")
        return nn.functional.adaptive_avg_pool2d(spatial.float(), (side, side))

    def _map(self, features: Tensor) -> Tensor:
        """Convert a model's features from any layout to a map (B, C, h, w)."""
        if features.ndim == 4:
            nhwc = str(getattr(self.module, "output_fmt", "NCHW")).endswith("NHWC")
            return features.permute(0, 3, 1, 2) if nhwc else features
        if features.ndim == 2:  # A code may stand for a map (`wsa.encode.models.paper.load`).
            decode = getattr(self.module, "decode", None)
            decoded: Tensor | None = decode(features) if decode else None
            if decoded is not None:
                return decoded
        if features.ndim != 3:
            raise self._refusal("has no feature map", "pooled")
        # Prefix tokens are the class token and registers.
        patches = features[:, getattr(self.module, "num_prefix_tokens", 0) :]
        height, width = self._patch_grid(patches.shape[1])
        spatial: Tensor = patches.transpose(1, 2).unflatten(2, (height, width))
        return spatial

    def _patch_grid(self, count: int) -> tuple[int, int]:
        """Return rows and columns of `count` patches: the model's own grid, else a square."""
        stated = getattr(getattr(self.module, "patch_embed", None), "grid_size", None)
        side = math.isqrt(count)
        height, width = stated or (side, side)
        if height * width != count:
            raise self._refusal(f"has {count} tokens, which are not a map", "pooled")
        return height, width

    def _refusal(self, found: str, instead: str) -> UsageError:
        return UsageError(
            f"--output {self._output}: this model {found}. Ask for {instead} instead."
        )
