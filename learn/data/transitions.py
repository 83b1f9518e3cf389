"""Stacks of embeddings for a learner: drawn from the flat map, or kept while playing live."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsa.learn.data.nstep import walk
from wsa.store.objects.flat_map import FlatMap


class StateRows:
    """Gathers rows into one buffer.

    Args:
        flat: The data.

    Attributes:
        width: Numbers in a row.
    """

    def __init__(self, flat: FlatMap) -> None:
        self._flat = flat
        self.width = flat.width + flat.window_width
        # One buffer for every batch: numpy gathers into it without allocating.
        self._buffer = np.empty((0, 0, self.width), flat.embeddings.dtype)

    def gather(
        self, frames: NDArray[np.int64], ends: Mapping[int, NDArray[np.int64]]
    ) -> NDArray[Any]:
        """Gather runs of rows.

        Args:
            frames: (B, m) which frames they show, as `FlatMap.stack` gives them.
            ends: By place in the run, the (B,) rows of the flat map at which states end there.

        Returns:
            (B, m, width), the caller's until the next call.
        """
        flat, (count, length) = self._flat, frames.shape
        if self._buffer.shape[1] != length or len(self._buffer) < count:
            self._buffer = np.zeros((count, length, self.width), self._buffer.dtype)
        out = self._buffer[:count]
        if not flat.window_width:
            flat.gather(frames.ravel(), out.reshape(-1, self.width))
            return out
        single = flat.embeddings[frames]
        windows = {
            at: flat.gather_windows(rows, np.empty((count, flat.window_width), out.dtype))
            for at, rows in ends.items()
        }
        for window, place, columns in zip(flat.windows, flat.places, flat.columns, strict=True):
            if window == 1:
                out[:, :, place] = single[:, :, columns]
            else:
                for at, seen in windows.items():
                    out[:, at, place] = seen[:, columns]
        return out


@dataclasses.dataclass(frozen=True)
class Batch:
    """Transitions of n steps.

    Attributes:
        states: (B, k, width), embeddings of k consecutive frames, oldest first. Before an
            episode's first frame that frame is repeated. Of models with a window only the last
            counts (`wsa.learn.data.transitions`).
        following: (B, k, width), the same of the last state that n steps reach.
        actions: (B,) int64.
        rewards: (B,) float32, the discounted sum of what these steps earned.
        discounts: (B,) float32, what the value of the last state counts: gamma^n, less steps where
            there were fewer, 0 where the game ended; a truncated episode is not an end.
    """

    states: Tensor
    following: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor

    @classmethod
    def join(cls, parts: Sequence[Batch]) -> Batch:
        """Several batches as one."""
        fields = [field.name for field in dataclasses.fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))


class OfflineBatches:
    """Uniform draws, with replacement, of steps in a flat map.

    Args:
        flat: The data.
        depth: k, frames in a state.
        batch_size: Transitions in a batch.
        seed: Of the draws.
        steps: Rows to draw from; all steps if None.
        n_step: Steps in a transition.
        gamma: Discount per step.
        clip: Whether rewards count by their sign.
    """

    def __init__(
        self,
        flat: FlatMap,
        depth: int,
        batch_size: int,
        seed: int,
        *,
        steps: NDArray[np.int64] | None = None,
        n_step: int = 1,
        gamma: float = 0.99,
        clip: bool = False,
    ) -> None:
        self._flat = flat
        self._depth = depth
        self._steps = flat.steps if steps is None else steps
        self._n_step, self._gamma, self._clip = n_step, gamma, clip
        self._generator = np.random.default_rng(seed)
        self._batch_size = batch_size
        self._state_rows = StateRows(flat)

    def draw(self, size: int = 0) -> Batch:
        """The next batch; its states are the caller's until the next one.

        Args:
            size: Transitions, where it is not a whole batch.

        Raises:
            UsageError: `depth` is more than what segments repeat of each other.
        """
        size = size or self._batch_size
        return self.of(self._steps[self._generator.integers(len(self._steps), size=size)])

    def of(self, rows: NDArray[np.int64]) -> Batch:
        """The transitions that begin at some rows; their states are the caller's until the next.

        Args:
            rows: (B,) rows that hold a step.
        """
        flat, depth = self._flat, self._depth
        steps = walk(flat, rows, self._n_step, self._gamma, self._clip)
        state = flat.stack(rows, depth)
        if self._n_step == 1:  # The two overlap in all frames but one, which is gathered once.
            frames = np.column_stack([state, flat.rows["frame"][steps.last]])
        else:
            frames = np.column_stack([state, flat.stack(steps.last, depth)])
        ends = {depth - 1: rows, frames.shape[1] - 1: steps.last}
        stacks = torch.from_numpy(self._state_rows.gather(frames, ends))
        return Batch(
            states=stacks[:, :depth],
            following=stacks[:, -depth:],
            actions=torch.from_numpy(flat.rows["action"][rows].astype(np.int64)),
            rewards=torch.from_numpy(steps.returns),
            discounts=torch.from_numpy(steps.discounts),
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
    rows = flat.steps[at]
    frames = flat.rows["frame"][rows]
    found = []
    for window, columns in zip(flat.windows, flat.columns, strict=True):
        table, at = (flat.embeddings, frames) if window == 1 else (flat.windowed, rows)
        found.append(moments_of(table[at, columns]))
    mean, deviation = (torch.cat(parts) for parts in zip(*found, strict=True))
    return mean, deviation


def moments_of(sample: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """As `moments`, of some embeddings (n, width) by one model."""
    # float64: in float32 a sum over rows loses what little differs between frames.
    exact = sample.astype(np.float64)
    spread = exact.std(axis=0)
    deviation = np.maximum(spread, 0.01 * spread.mean() + 1e-6)
    return torch.from_numpy(exact.mean(axis=0)).float(), torch.from_numpy(deviation).float()
