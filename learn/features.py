"""Stacks of embeddings for a learner: drawn from the flat map, or kept while playing live."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsa.encode.live import LiveEncoder
from wsa.store.flat import FlatMap


@dataclasses.dataclass(frozen=True)
class Batch:
    """Transitions.

    Attributes:
        states: (B, k + 1, width), embeddings of k + 1 consecutive frames, oldest first: the first
            k are the state, the last k the next state. Before an episode's first frame that frame
            is repeated.
        actions: (B,) int64.
        rewards: (B,) float32, raw.
        terminated: (B,) float32, 1 where the game ended; a truncated episode is not an end.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor


class OfflineBatches:
    """Uniform draws, with replacement, of the steps in a flat map.

    The next observation of row i is always row i + 1: segments keep an episode's true last frame
    and the frame after a cut.

    Args:
        flat: The data.
        depth: k, frames in a state.
        batch_size: Transitions in a batch.
        seed: Of the draws.
    """

    def __init__(self, flat: FlatMap, depth: int, batch_size: int, seed: int) -> None:
        self._flat = flat
        self._depth = depth
        self._generator = np.random.default_rng(seed)
        self._batch_size = batch_size
        # One buffer for every batch: numpy gathers into it without allocating.
        self._gathered = np.empty((batch_size * (depth + 1), flat.width), flat.embeddings.dtype)

    def draw(self) -> Batch:
        """The next batch; its states are the caller's until the next draw.

        Raises:
            UsageError: `depth` is more than what segments repeat of each other.
        """
        steps = self._flat.steps
        rows = steps[self._generator.integers(len(steps), size=self._batch_size)]
        state = self._flat.stack(rows, self._depth)
        frames = np.column_stack([state, self._flat.rows["frame"][rows + 1]])
        self._flat.gather(frames.ravel(), self._gathered)
        here = self._flat.rows[rows]
        return Batch(
            states=torch.from_numpy(self._gathered).view(self._batch_size, self._depth + 1, -1),
            actions=torch.from_numpy(here["action"].astype(np.int64)),
            rewards=torch.from_numpy(here["reward"].copy()),
            terminated=torch.from_numpy(here["terminated"].astype(np.float32)),
        )

    def state(self) -> dict[str, Any]:
        """Where the draws stand, as JSON values."""
        return self._generator.bit_generator.state  # type: ignore[return-value]

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._generator.bit_generator.state = state


def moments(flat: FlatMap, most: int = 20_000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each embedding number over the steps, (width,) float32 each.

    All frames of one game are alike, so what tells them apart is a small part of an embedding;
    learners subtract the mean and divide by the deviation. Numbers that hardly vary are not blown
    up: a deviation counts as at least a hundredth of its model's mean one.

    Args:
        flat: The data.
        most: Steps to look at, evenly spaced.
    """
    # By way of the steps: the flat map's files may hold other segments than this snapshot's.
    at = np.unique(np.linspace(0, len(flat.steps) - 1, most).astype(np.int64))
    frames = flat.rows["frame"][flat.steps[at]]
    mean, deviation = np.empty(flat.width, np.float32), np.empty(flat.width, np.float32)
    for columns in flat.columns:
        # float64: in float32 a sum over rows loses what little differs between frames.
        sample = flat.embeddings[frames, columns].astype(np.float64)
        spread = sample.std(axis=0)
        mean[columns] = sample.mean(axis=0)
        deviation[columns] = np.maximum(spread, 0.01 * spread.mean() + 1e-6)
    return torch.from_numpy(mean), torch.from_numpy(deviation)


class LiveStacks:
    """The last k embeddings of each environment while it is played.

    Args:
        encoder: Embeds frames, looking them up first.
        num_envs: Environments.
        depth: k.
    """

    def __init__(self, encoder: LiveEncoder, num_envs: int, depth: int) -> None:
        self._encoder = encoder
        self._stacks = np.zeros((num_envs, depth, encoder.width), encoder.dtype)

    def see(
        self, frames: NDArray[np.uint8], first: NDArray[np.bool_], envs: NDArray[np.int64]
    ) -> Tensor:
        """Take the newest frames of some environments.

        Args:
            frames: (n, H, W, 3) uint8 RGB.
            first: (n,) whether each begins an episode.
            envs: (n,) which environments they are of.

        Returns:
            (n, k, width), oldest first, the first frame of an episode repeated before it.
        """
        newest = self._encoder(frames)
        stacks = self._stacks[envs]
        stacks[:, :-1] = stacks[:, 1:]
        stacks[:, -1] = newest
        stacks[first] = newest[first, None]
        self._stacks[envs] = stacks
        return torch.from_numpy(stacks)
