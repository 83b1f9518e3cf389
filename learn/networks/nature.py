"""The end-to-end baseline: grey pixels and the network of Mnih et al., instead of frozen models.

Its "embedding" of a frame is the frame's luma, resized to 84 x 84 by areas as DQN's preprocessing
does (Mnih et al., 2015; OpenCV's INTER_AREA, as `gymnasium.wrappers.AtariPreprocessing`), made from
the very RGB frame that the models see, so tables, replay, algorithms and evaluation are the same
code for both, and nothing differs but what looks at the screen. The network and its orthogonal
initialisation are CleanRL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsa.encode.live.frame_history import FrameInputs
from wsa.store.common.errors import UsageError

SIDE = 84
CHANNELS = (32, 64, 64)
UNITS = 512


class Ready(NamedTuple):
    """Rows that need not be waited for."""

    rows: NDArray[Any]

    def result(self) -> tuple[NDArray[Any], float]:
        """The rows, and the seconds that models took: none."""
        return self.rows, 0.0


class GreyPixels:
    """Frames to rows of grey pixels; speaks like `wsa.encode.live.live_encoder.LiveEncoder`, and runs no model.

    Attributes:
        width: Pixels in a row.
        dtype: Their type.
        places: The whole row.
        frames: Frames asked for.
        found, remembered, passes: 0.
        hit_rate: 0.
        engines: None.
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
    def lookups(self) -> dict[int, GreyPixels]:
        """It looks at one frame."""
        return {1: self}

    def rows(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Where the store has grey pixels of frames, (n,): -1, nowhere."""
        return np.full(len(digests), -1)

    def begin(self, digests: Sequence[bytes], inputs: FrameInputs) -> Ready:
        """As when called, of frames that `inputs` gives."""
        return Ready(self(inputs(range(len(digests)))))

    def embed_later(self, frames: NDArray[np.uint8], *which: Any) -> Future[NDArray[Any]]:
        """As when called, with nothing to wait for."""
        done = Future[NDArray[Any]]()
        done.set_result(self(frames))
        return done

    def __call__(self, frames: NDArray[np.uint8], *which: Any) -> NDArray[Any]:
        """Turn (n, H, W, 3) uint8 RGB grey and small: (n, width) uint8."""
        self.frames += len(frames)
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        small = [cv2.resize(g, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for g in grey]
        return np.stack(small).reshape(len(frames), self.width)


class NatureTorso(nn.Module):
    """Stacks of grey pixels to a state vector; takes the place of `wsa.learn.networks.heads.Torso`.

    Args:
        depth: k, frames in a stack.
        scale: Channels and units are this many times CleanRL's (32, 64, 64 and 512).

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
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(layer.weight, 2**0.5)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, stacks: Tensor, mask: Sequence[bool] | None = None) -> tuple[Tensor, None]:
        """(B, k, 84 * 84) uint8 to (B, out_features); there are no models to weigh."""
        pixels = stacks.view(len(stacks), -1, SIDE, SIDE).float() / 255
        return self.layers(pixels), None


def scale_for(parameters: int, depth: int, head: int) -> float:
    """The scale at which torso and head come closest to a number of parameters from below.

    Args:
        parameters: How many; 0 for CleanRL's network as it is.
        depth: k, frames in a stack.
        head: Outputs of the linear heads together.

    Raises:
        UsageError: No network is that small.
    """
    if not parameters:
        return 1.0

    def count(scale: float) -> int:
        with torch.device("meta"):
            torso = NatureTorso(depth, scale)
        return sum(p.numel() for p in torso.parameters()) + head * (torso.out_features + 1)

    low, high = 0.01, 1.0
    if count(low) > parameters:
        raise UsageError(
            "bad-option", f"--parameters must be at least {count(low):,}, not {parameters:,}."
        )
    while count(high) <= parameters:
        low, high = high, 2 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) <= parameters else (low, middle)
    return low
