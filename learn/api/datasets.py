"""A game as torch `Dataset`s: transitions for a learner, embeddings for anything else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from wsa.learn.api.data import GameData
from wsa.learn.data.transitions import OfflineBatches
from wsa.store.common.errors import UsageError


class Transitions(Dataset[dict[str, Tensor]]):
    """n-step transitions, one for each step of a game, in the order of its segments.

    An item is a dict of tensors, the ones `wsa.learn` trains on:

    - `states` and `following`: (k, width), embeddings of k consecutive frames, oldest first, with
      the models concatenated as in `columns`. At the start of an episode, the first frame is
      repeated. For a model that sees several frames, only the last of the k is filled.
    - `actions`: int64.
    - `rewards`: float32, the discounted sum of n rewards.
    - `discounts`: float32, the factor for the value of `following`; 0 if the game ended.

    A `DataLoader` reads a whole batch at once, and so does `batch`.

    Args:
        data: The game, from `Store.data`.
        frame_stack: Number of frames k in a state, from 1 to 4.
        n_step: Number of steps in a transition.
        gamma: Discount per step.
        clip_rewards: Whether to replace rewards by their sign.

    Attributes:
        columns: Slice of `width` that holds each model's embedding, by key.
    """

    def __init__(
        self,
        data: GameData,
        *,
        frame_stack: int = 4,
        n_step: int = 1,
        gamma: float = 0.99,
        clip_rewards: bool = True,
    ) -> None:
        if n_step < 1 or not 0 <= gamma <= 1:
            raise UsageError("n_step must be at least 1, and gamma from 0 to 1.")
        self._steps = data.steps
        self._batches = OfflineBatches(
            data.flat, frame_stack, 1, 0, n_step=n_step, gamma=gamma, clip=clip_rewards
        )
        data.flat.stack(self._steps[:1], frame_stack)  # Raises if k is too large.
        self.columns = dict(zip(data.models, data.flat.places, strict=True))

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            name: tensor[0] for name, tensor in self.batch([_checked(index, len(self))]).items()
        }

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Read several items at once."""
        batch = self.batch(indices)
        return [{name: tensor[i] for name, tensor in batch.items()} for i in range(len(indices))]

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> dict[str, Tensor]:
        """Read several items as one dict of tensors, each with a batch axis in front."""
        batch = self._batches.of(self._steps[np.asarray(indices, np.int64)])
        return {
            "states": batch.states.clone(),  # The next batch overwrites both buffers.
            "following": batch.following.clone(),
            "actions": batch.actions,
            "rewards": batch.rewards,
            "discounts": batch.discounts,
        }


class Embeddings(Dataset[Tensor]):
    """One model's embeddings of a game, one for each distinct frame of each segment.

    For a model that sees several frames, there is one for each row. An item is a tensor of the
    embedding's shape, float16 or float32 as stored.

    Args:
        data: The game, from `Store.data`.
        model: Key or alias; not needed if there is only one model.
    """

    def __init__(self, data: GameData, model: str = "") -> None:
        self._table = data.embeddings(model)
        flat = data.flat
        if flat.windows[data.place(model)] == 1:
            spans = [np.arange(part.frame, part.frame + part.frames) for part in flat.parts]
        else:
            spans = [np.arange(part.row, part.row + part.rows) for part in flat.parts]
        self._rows = np.concatenate(spans)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.batch([_checked(index, len(self))])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Read several items at once."""
        return list(self.batch(indices))

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Read several items as one tensor, shape (n, *shape)."""
        return torch.from_numpy(np.array(self._table[self._rows[np.asarray(indices, np.int64)]]))


def _checked(index: int, length: int) -> int:
    """Return a valid index; iteration over a dataset ends with the IndexError."""
    if not -length <= index < length:
        raise IndexError(f"index {index} of {length} items")
    return index
