"""What is kept of a model: its last features, pooled or on a grid.

Every architecture has its own layout of features. A `Trunk` is a network that returns them in one:
(B, places, C), one place where the output is pooled, N x N places for a grid. It is the part of a
model that an engine runs (`wsa.encode.engines`); nothing else of a model costs anything.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wsa.encode.spec import Output


class Trunk(nn.Module):
    """A frozen network up to its output.

    Args:
        module: The network, as `wsa.encode.models.build` returns it.
        output: What is kept of its last feature map.
    """

    def __init__(self, module: nn.Module, output: Output) -> None:
        super().__init__()
        self.module: Any = module
        self._output = output

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, places, C) float32."""
        features: Tensor = self.module.forward_features(pixels)
        if not self._output.grid:
            pooled: Tensor = self.module.forward_head(features, pre_logits=True)
            return pooled.float().unsqueeze(1)
        spatial = self._map(features).float()
        side = (self._output.grid, self._output.grid)
        return nn.functional.adaptive_avg_pool2d(spatial, side).flatten(2).transpose(1, 2)

    def _map(self, features: Tensor) -> Tensor:
        """A model's features as a map (B, C, h, w), whatever their own layout."""
        if features.ndim == 3:  # Tokens, with class and register tokens first.
            patches = features[:, getattr(self.module, "num_prefix_tokens", 0) :]
            height, width = self.module.patch_embed.grid_size
            return patches.transpose(1, 2).reshape(len(features), -1, height, width)
        if str(getattr(self.module, "output_fmt", "NCHW")).endswith("NHWC"):
            return features.permute(0, 3, 1, 2)
        return features
