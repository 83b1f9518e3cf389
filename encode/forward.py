"""The one function from frames to embeddings, used for the store and for live play alike.

An `Encoder` is a frozen model on a device with its preprocessing, output and precision. It counts
every frame that goes through the network (`passes`), which is how wsa knows and proves what it
saved. A frame's embedding does not depend on which frames are beside it: on a CPU batches are of
any size up to `batch`; on a GPU, where the batch's shape can change the last bits, every batch is
padded to exactly `batch`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsa.encode.basis import Basis
from wsa.encode.preprocess import preprocess
from wsa.encode.spec import Output, Precision, Preprocessing
from wsa.store.errors import UsageError

CPU_BATCH = 8  # Measured best for eager torch on a CPU core; larger batches are slower.
GPU_BATCH = 256

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Encoder:
    """A frozen model, ready to embed frames.

    Args:
        module: The network, as `wsa.encode.models.build` returns it.
        preprocessing: From screens to its input.
        output: What is kept of its last feature map.
        basis: The reduction, where `output.pca` asks for one.
        precision: Arithmetic of the forward pass.
        device: Where to run.
    """

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Preprocessing,
        output: Output,
        basis: Basis | None = None,
        precision: Precision = "fp32",
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        if precision == "tf32" and self.device.type != "cuda":
            raise UsageError(
                "bad-option", "--precision tf32 needs an NVIDIA GPU; on a CPU use fp32 or bf16."
            )
        self.module: Any = module.to(self.device).to(memory_format=torch.channels_last)
        self.preprocessing = preprocessing
        self.output = output
        self.basis = basis.to(self.device) if basis else None
        self.precision = precision
        self.batch = CPU_BATCH if self.device.type == "cpu" else GPU_BATCH
        self.passes = 0

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed frames.

        Args:
            frames: (n, H, W, 3) uint8 RGB.

        Returns:
            (n, *shape) float32.
        """
        return torch.cat([self._finish(f) for f in self._features(frames)]).numpy()

    def features(self, frames: NDArray[np.uint8]) -> Tensor:
        """What the basis is fitted on: (n, places, C) float32, before any reduction."""
        return torch.cat([features.cpu() for features in self._features(frames)])

    def _features(self, frames: NDArray[np.uint8]) -> Iterator[Tensor]:
        for start in range(0, len(frames), self.batch):
            part = torch.from_numpy(np.ascontiguousarray(frames[start : start + self.batch]))
            count = len(part)
            if self.device.type != "cpu" and count < self.batch:
                part = torch.cat([part, part[-1:].expand(self.batch - count, -1, -1, -1)])
            with torch.inference_mode(), self._arithmetic():
                grid = self._forward(preprocess(part.to(self.device), self.preprocessing))
            self.passes += count
            yield grid[:count].float()

    def _forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, places, C)."""
        features: Tensor = self.module.forward_features(pixels)
        if not self.output.grid:
            pooled: Tensor = self.module.forward_head(features, pre_logits=True)
            return pooled.float().unsqueeze(1)
        spatial = self._map(features).float()
        side = (self.output.grid, self.output.grid)
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

    def _finish(self, features: Tensor) -> Tensor:
        """(B, places, C) to (B, *shape): reduced, or unfolded to the grid."""
        with torch.inference_mode(), self._arithmetic(reduced=False):
            if self.basis is not None:
                return self.basis(features).cpu()
            if self.output.grid:
                side = self.output.grid
                return features.reshape(len(features), side, side, -1).cpu()
            return features.squeeze(1).cpu()

    @contextlib.contextmanager
    def _arithmetic(self, reduced: bool = True) -> Iterator[None]:
        """Exactly the precision asked for; cuDNN has TF32 on by default, so it is set either way."""
        tf32 = reduced and self.precision == "tf32"
        dtype = _AUTOCAST.get(self.precision) if reduced else None
        cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = cuda.allow_tf32, cudnn.allow_tf32
        cuda.allow_tf32, cudnn.allow_tf32 = tf32, tf32
        try:
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                yield
        finally:
            cuda.allow_tf32, cudnn.allow_tf32 = before
