"""Batches of transitions, and uniform sampling of them from the flat map."""

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

SAMPLE = 20_000  # Most rows, evenly spaced, from which moments are estimated.


class StateRows:
    """Gathers rows of embeddings into one buffer.

    Attributes:
        width: Number of values in a row.
    """

    def __init__(self, flat: FlatMap) -> None:
        self._flat = flat
        self.width = flat.width + flat.window_width
        # Reused for every batch, so numpy gathers without allocating.
        self._buffer = np.empty((0, 0, self.width), flat.embeddings.dtype)

    def gather(
        self, frames: NDArray[np.int64], ends: Mapping[int, NDArray[np.int64]]
    ) -> NDArray[Any]:
        """Gather B runs of m rows.

        Args:
            frames: Frame of each row, (B, m), as returned by `FlatMap.stack`.
            ends: For each position in a run at which a state ends, the states' rows in the flat
                map, (B,).

        Returns:
            Embeddings, (B, m, width), valid until the next call.
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
    """A batch of n-step transitions.

    Attributes:
        states: Embeddings of k consecutive frames, (B, k, width), oldest first. At the start of an
            episode, its first frame is repeated. Models with a window fill only the last row.
        following: Embeddings of the state after the last step, (B, k, width).
        actions: (B,) int64.
        rewards: Discounted sum of the n rewards, (B,) float32.
        discounts: Factor on the bootstrap value, (B,) float32: gamma^n, with a smaller exponent if
            fewer steps were made, and 0 if the game ended. Truncation does not count as an end.
    """

    states: Tensor
    following: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor

    @classmethod
    def join(cls, parts: Sequence[Batch]) -> Batch:
        """Concatenate batches."""
        fields = [field.name for field in dataclasses.fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))


class OfflineBatches:
    """Samples transitions uniformly, with replacement, from a flat map.

    They begin at the rows `steps`, or at all that hold a step. `depth` is the number of frames in a
    state, k; `clip` replaces rewards by their sign; `life_loss_ends` treats a lost life as the end.
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
        life_loss_ends: bool = False,
    ) -> None:
        self._flat = flat
        self._depth = depth
        self._steps = flat.steps if steps is None else steps
        self._n_step, self._gamma, self._clip = n_step, gamma, clip
        self._life_loss_ends = life_loss_ends
        self._generator = np.random.default_rng(seed)
        self._batch_size = batch_size
        self._state_rows = StateRows(flat)

    def draw(self, size: int = 0) -> Batch:
        """Sample the next `size` transitions, or a batch if it is 0. Its states are valid until the
        next call.

        Raises:
            UsageError: If `depth` exceeds the number of frames that segments repeat.
        """
        size = size or self._batch_size
        return self.of(self._steps[self._generator.integers(len(self._steps), size=size)])

    def of(self, rows: NDArray[np.int64]) -> Batch:
        """Return the transitions that begin at `rows`, (B,), which hold a step.

        Their states are valid until the next call.
        """
        flat, depth = self._flat, self._depth
        steps = walk(
            flat, rows, self._n_step, self._gamma, self._clip, life_loss_ends=self._life_loss_ends
        )
        state = flat.stack(rows, depth)
        if self._n_step == 1:  # Gather the k - 1 shared frames once.
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
        """Return the generator's state as JSON values."""
        return self._generator.bit_generator.state  # type: ignore[return-value]

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self._generator.bit_generator.state = state


def moments(flat: FlatMap) -> tuple[Tensor, Tensor]:
    """Estimate each feature's mean and standard deviation over the steps, (width,) float32 each.

    All frames of one game look alike, so only a small part of an embedding tells them apart.
    Learners therefore subtract the mean and divide by the standard deviation. To avoid amplifying
    features that hardly vary, a standard deviation is at least 1/100 of its model's average.
    """
    # Go through the steps, because the flat map's files may hold segments outside this snapshot.
    at = np.unique(np.linspace(0, len(flat.steps) - 1, SAMPLE).astype(np.int64))
    rows = flat.steps[at]
    frames = flat.rows["frame"][rows]
    by_model = []
    for window, columns in zip(flat.windows, flat.columns, strict=True):
        table, at = (flat.embeddings, frames) if window == 1 else (flat.windowed, rows)
        by_model.append(moments_of(table[at, columns]))
    mean, deviation = (torch.cat(parts) for parts in zip(*by_model, strict=True))
    return mean, deviation


def moments_of(sample: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Return the moments of one model's embeddings (n, width); see `moments`."""
    # float64: a float32 sum over rows loses the small differences between frames.
    sample64 = sample.astype(np.float64)
    raw_deviation = sample64.std(axis=0)
    deviation = np.maximum(raw_deviation, 0.01 * raw_deviation.mean() + 1e-6)
    return torch.from_numpy(sample64.mean(axis=0)).float(), torch.from_numpy(deviation).float()
