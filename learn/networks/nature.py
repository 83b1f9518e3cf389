"""The end-to-end baseline: gray pixels and the network of Mnih et al. instead of frozen models.

Its "embedding" of a frame is the frame's luma, resized to 84 x 84 by area as in DQN's preprocessing
(Mnih et al., 2015; OpenCV's INTER_AREA, as in `gymnasium.wrappers.AtariPreprocessing`). It is
computed from the same RGB frame that the models see. Tables, replay, algorithms, and evaluation are
therefore the same code for both; only the network that sees the screen differs. The network and its
orthogonal initialization are those of CleanRL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsa.encode.live.frame_history import FrameInputs
from wsa.learn.fusion.base import initialize
from wsa.store.common.errors import UsageError

SIDE = 84
CHANNELS = (32, 64, 64)
UNITS = 512


class Ready(NamedTuple):
    """A finished result with the interface of a pending one."""

    rows: NDArray[Any]

    def result(self) -> tuple[NDArray[Any], float]:
        """Return the rows, and 0 seconds of model time."""
        return self.rows, 0.0


class GrayPixels:
    """Turn frames into rows of gray pixels.

    Has the interface of `wsa.encode.live.live_encoder.LiveEncoder`, but runs no model.

    Attributes:
        width: Pixels in a row.
        dtype: Type of a pixel.
        places: One slice, the whole row.
        frames: Number of frames converted so far.
        found, remembered, passes: Always 0.
        hit_rate: Always 0.
        engines: Always empty.
    """

    width = SIDE * SIDE
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    places = (slice(0, SIDE * SIDE),)
    found = remembered = passes = 0
    hit_rate = 0.0
    engines: Sequence[str] = ()

    def __init__(self) -> None:
        self.frames = 0

    @property
    def lookups(self) -> dict[int, GrayPixels]:
        """Lookup of each window size: only size 1, for single frames."""
        return {1: self}

    def rows(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Return -1 for each of n frames, (n,): the store holds no gray pixels."""
        return np.full(len(digests), -1)

    def begin(self, digests: Sequence[bytes], inputs: FrameInputs) -> Ready:
        """Convert the frames that `inputs` returns, with the result ready at once."""
        return Ready(self(inputs(range(len(digests)))))

    def __call__(self, frames: NDArray[np.uint8], *which: Any) -> NDArray[Any]:
        """Convert RGB frames (n, H, W, 3) uint8 to 84 x 84 gray pixels (n, width) uint8."""
        self.frames += len(frames)
        gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        small = [cv2.resize(g, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for g in gray]
        return np.stack(small).reshape(len(frames), self.width)


class NatureTorso(nn.Module):
    """Map stacks of gray pixels to a state vector. Replaces `wsa.learn.networks.heads.Torso`.

    Args:
        depth: Number of frames in a stack, k.
        scale: Factor on the channels and units of CleanRL's network (32, 64, 64, and 512).

    Attributes:
        out_features: Length of the state vector.
    """

    def __init__(self, depth: int, scale: float = 1.0) -> None:
        super().__init__()
        a, b, c = (max(1, round(scale * channels)) for channels in CHANNELS)
        self.out_features = max(1, round(scale * UNITS))
        self.layers = nn.Sequential(
            nn.Conv2d(depth, a, 8, stride=4), nn.ReLU(),
            nn.Conv2d(a, b, 4, stride=2), nn.ReLU(),
            nn.Conv2d(b, c, 3, stride=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(c * 7 * 7, self.out_features), nn.ReLU(),
        )  # fmt: skip
        initialize(self.layers, 2**0.5)

    def forward(self, stacks: Tensor, mask: Sequence[bool] | None = None) -> tuple[Tensor, None]:
        """Map (B, k, 84 * 84) uint8 to (B, out_features). There are no models, so no weights."""
        pixels = stacks.view(len(stacks), -1, SIDE, SIDE).float() / 255
        if self.training and pixels.device.type == "cpu":
            # Gradients take three quarters of the time in this layout. Acting is no faster.
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.layers(pixels), None


def scale_for(parameters: int, depth: int, head: int) -> float:
    """Return the largest scale at which torso and head stay within a number of parameters.

    An LSTM between them is not counted: runs record the number, and rebuild their network from it.

    Args:
        parameters: Maximum number of parameters; 0 for CleanRL's sizes.
        depth: Number of frames in a stack, k.
        head: Total number of outputs of the linear heads.

    Raises:
        UsageError: If even the smallest network has more parameters.
    """
    if not parameters:
        return 1.0

    def count(scale: float) -> int:
        with torch.device("meta"):
            torso = NatureTorso(depth, scale)
        return sum(p.numel() for p in torso.parameters()) + head * (torso.out_features + 1)

    low, high = 0.01, 1.0
    if count(low) > parameters:
        raise UsageError(f"--parameters must be at least {count(low):,}, not {parameters:,}.")
    while count(high) <= parameters:
        low, high = high, 2 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) <= parameters else (low, middle)
    return low
