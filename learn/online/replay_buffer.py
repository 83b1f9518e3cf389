"""Replay buffer: one small record per step, with row numbers of the run's embedding table.

    <run>/replay.bin    (T, n) records of 20 bytes, T steps of n environments

A million steps take 20 MB. `wsa.learn.online.embedding_table` holds each frame's embedding once,
however many states contain the frame. Records are only appended, and sampling sees the newest
`buffer_size`. A checkpoint has the number of records; a run resumed from it overwrites later ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray

from wsa.learn.data.transitions import Batch
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import Step
from wsa.store.common import atomic_files
from wsa.store.common.errors import DamagedError

RECORD = np.dtype(
    [
        ("row", "<i4"),  # table row of the frame
        ("following", "<i4"),  # table row of the true next frame
        ("begin", "<i4"),  # step at which the episode began
        ("action", "<i2"),
        ("reward", "<f4"),  # raw
        ("terminated", "?"),  # no bootstrap value from the next state
        ("ended", "?"),  # the next step belongs to another episode
    ]
)


class Replay:
    """Replay buffer of several environments, whose records refer to an embedding table.

    Each environment plays at most `steps`. Batches are drawn from the newest `capacity` steps of
    all of them together, and `depth` is the number of frames in a state, k.
    """

    def __init__(
        self,
        folder: Path,
        table: Table,
        num_envs: int,
        steps: int,
        depth: int,
        capacity: int,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        clip: bool = False,
    ) -> None:
        self._table = table
        self._depth = depth
        self._n_step, self._gamma, self._clip = n_step, gamma, clip
        self._window = max(1, capacity // num_envs)
        path = folder / "replay.bin"
        atomic_files.reserve(path, steps * num_envs * RECORD.itemsize)
        self._records = np.memmap(path, RECORD, "r+", shape=(steps, num_envs))
        self._begin = np.zeros(num_envs, np.int32)
        self._check = blake3()
        self.played = 0

    def add(
        self,
        before: NDArray[np.int64],
        first: NDArray[np.bool_],
        actions: NDArray[np.int64],
        step: Step,
        life_loss_ends: bool,
    ) -> None:
        """Append one step of every environment.

        Args:
            before: Table rows of the states acted in, (n, k).
            first: Whether these states began an episode, (n,).
            actions: (n,).
            step: Rewards, ends, and next states.
            life_loss_ends: Whether losing a life counts as termination.
        """
        self._begin[first] = self.played
        record = self._records[self.played]
        record["row"], record["following"] = before[:, -1], step.final[:, -1]
        record["begin"], record["action"] = self._begin, actions
        record["reward"] = step.rewards
        record["terminated"] = step.terminated | (step.life_lost & life_loss_ends)
        record["ended"] = step.ended
        self._check.update(record.tobytes())
        self.played += 1

    def draw(self, size: int, generator: np.random.Generator) -> Batch:
        """Sample uniformly, with replacement, from the newest steps."""
        oldest = max(0, self.played - self._window)
        t = generator.integers(oldest, self.played, size=size)
        return self.of(t, generator.integers(self._records.shape[1], size=size))

    def of(self, t: NDArray[np.int64], env: NDArray[np.int64]) -> Batch:
        """Return the n-step transitions that begin at the given steps.

        Args:
            t: Step numbers, (B,).
            env: Environment of each, (B,).
        """
        start = self._records[t, env]
        returns, discounts = np.zeros(len(t)), np.ones(len(t))
        last, active = t.copy(), np.arange(len(t))
        for made in range(self._n_step):
            step = self._records[t[active] + made, env[active]]
            rewards = np.sign(step["reward"]) if self._clip else step["reward"]
            returns[active] += discounts[active] * rewards
            discounts[active] *= self._gamma
            discounts[active[step["terminated"]]] = 0
            last[active] = t[active] + made
            continues = ~(step["terminated"] | step["ended"]) & (t[active] + made + 1 < self.played)
            active = active[continues]
        k = self._depth
        # The next state: the last k - 1 frames, then the true next frame.
        before = self._rows(last, env, k - 1)
        following = np.column_stack([before, self._records["following"][last, env]])
        return Batch(
            states=self._table.gather(self._rows(t, env, k)),
            following=self._table.gather(following),
            actions=torch.from_numpy(start["action"].astype(np.int64)),
            rewards=torch.from_numpy(returns.astype(np.float32)),
            discounts=torch.from_numpy(discounts.astype(np.float32)),
        )

    def _rows(self, t: NDArray[np.int64], env: NDArray[np.int64], depth: int) -> NDArray[np.int32]:
        """Return table rows of the last `depth` frames; an episode's first frame is repeated."""
        back = np.arange(depth - 1, -1, -1)
        at = np.maximum(t[:, None] - back, self._records["begin"][t, env][:, None])
        return self._records["row"][at, env[:, None]]  # type: ignore[no-any-return]

    def flush(self) -> None:
        """Write all records to disk, before a checkpoint that counts them."""
        with atomic_files.storage_errors(Path(str(self._records.filename))):
            self._records.flush()

    def state(self) -> dict[str, Any]:
        """Return the step count, episode starts, and the records' checksum as JSON values."""
        begin = self._begin.tolist()
        return {"played": self.played, "begin": begin, "check": self._check.hexdigest()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            DamagedError: If the file's records differ from those at the time of `state`.
        """
        self.played = state["played"]
        self._begin = np.array(state["begin"], np.int32)
        self._check = blake3(np.ascontiguousarray(self._records[: self.played]).view(np.uint8).data)
        if self._check.hexdigest() != state["check"]:
            raise DamagedError(
                "bad-bytes",
                f"{self._records.filename} does not hold the steps that the run's checkpoint "
                "describes. Start a new run; use --init to keep this run's weights.",
            )
