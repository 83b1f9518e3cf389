"""Options of a network, the same for every algorithm."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from tyro.conf import arg

from wsa.learn.configs.fusions import PIXELS, FusionConfig
from wsa.store.common.errors import UsageError
from wsa.store.common.ranges import NOT_NEGATIVE, Range, check_ranges
from wsa.store.configs import Integers
from wsa.store.format.stacks import MAX_STACK_FRAMES

# On Pong with `palette`, two seeds: 3 to 4 points more after 100,000 to 200,000 steps of PPO.
_CLIP = 5.0


class FrameStack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of every network."""

    frame_stack: int = 4
    """Number of frames in a state."""

    def __post_init__(self) -> None:
        if not 1 <= self.frame_stack <= MAX_STACK_FRAMES:
            raise UsageError(
                f"--frame-stack must be from 1 to {MAX_STACK_FRAMES}, not {self.frame_stack}: "
                "consecutive segments share no more frames."
            )


class NetworkConfig(FrameStack, frozen=True):
    """The network's input, its fusion, and the heads above it."""

    fusion: Annotated[FusionConfig, arg(name="")] = FusionConfig()
    """How embeddings become one state vector."""
    normalize: Literal["none", "layer", "standard"] = "standard"
    """Normalize embeddings: standard, by mean and standard deviation over the data; layer, each by itself; or none."""
    clip_embeddings: Annotated[float, NOT_NEGATIVE] = _CLIP
    """With --normalize standard: clip to this many standard deviations around the mean; 0 for no clipping."""
    hidden: Annotated[Integers, Range(1)] = (256,)
    """Units in each hidden layer of a head; the paper's code has one layer of 256."""
    head_activation: Literal["relu", "tanh"] = "relu"
    """Activation of these layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self)
        if self.normalize != "standard" and self.clip_embeddings not in (0, _CLIP):
            raise UsageError(
                f"--clip-embeddings {self.clip_embeddings:g} has no effect with --normalize "
                f"{self.normalize}. Leave it out."
            )


def unclipped(normalize: str) -> float:
    """Return `clip_embeddings` of a network that is older than this option."""
    return 0.0 if normalize == "standard" else _CLIP


class PixelNetworkConfig(FrameStack, frozen=True):
    """The input of an end-to-end network on grayscale pixels."""


def pixel_network(frame_stack: int) -> NetworkConfig:
    """Return an end-to-end network as a run records it: no fusion, no normalizing, linear heads."""
    return NetworkConfig(FusionConfig(PIXELS), frame_stack=frame_stack, normalize="none", hidden=())
