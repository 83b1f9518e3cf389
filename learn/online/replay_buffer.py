"""An online learner's past: one small record a step, pointing into the run's table.

    <run>/replay.bin    (T, n) records of 20 bytes, T steps of n environments

A million steps are 20 MB here; the embeddings they point to stand in `wsa.learn.online.embedding_table` once a
frame, however many states they are in. Records are only ever appended: draws see the newest
`buffer_size` of them, a checkpoint says how many there were, and a run that continues from it
overwrites what came later.
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
        ("row", "<i4"),  # the frame, in the table
        ("following", "<i4"),  # the frame that truly followed, in the table
        ("begin", "<i4"),  # step at which this episode began
        ("action", "<i2"),
        ("reward", "<f4"),  # raw
        ("terminated", "?"),  # nothing is worth anything afterwards
        ("ended", "?"),  # the next step is of another episode
    ]
)


class Replay:
    """Steps of several environments.

    Args:
        folder: The run's folder.
        table: What records point into.
        num_envs: Environments.
        steps: Steps that each will play at most.
        depth: k, frames in a state.
        capacity: Of the newest steps, how many draws see, in all environments together.
        n_step: Steps in a transition.
        gamma: Discount per step.
        clip: Whether rewards count by their sign.
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
        """Keep a step of every environment.

        Args:
            before: (n, k) the states it was taken in.
            first: (n,) whether they began an episode.
            actions: (n,) what was done.
            step: What followed.
            life_loss_ends: Whether nothing is worth anything after a lost life.
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
        """Uniform draws, with replacement, of the newest steps."""
        oldest = max(0, self.played - self._window)
        t = generator.integers(oldest, self.played, size=size)
        return self.of(t, generator.integers(self._records.shape[1], size=size))

    def of(self, t: NDArray[np.int64], env: NDArray[np.int64]) -> Batch:
        """The transitions that begin at some steps.

        Args:
            t: (B,) steps of an environment.
            env: (B,) which.
        """
        here = self._records[t, env]
        returns, discounts = np.zeros(len(t)), np.ones(len(t))
        last, going = t.copy(), np.arange(len(t))
        for made in range(self._n_step):
            at = self._records[t[going] + made, env[going]]
            earned = np.sign(at["reward"]) if self._clip else at["reward"]
            returns[going] += discounts[going] * earned
            discounts[going] *= self._gamma
            discounts[going[at["terminated"]]] = 0
            last[going] = t[going] + made
            on = ~(at["terminated"] | at["ended"]) & (t[going] + made + 1 < self.played)
            going = going[on]
        k = self._depth
        # The state that followed: what came before it, and the frame that truly followed.
        before = self._rows(last, env, k - 1)
        following = np.column_stack([before, self._records["following"][last, env]])
        return Batch(
            states=self._table.gather(self._rows(t, env, k)),
            following=self._table.gather(following),
            actions=torch.from_numpy(here["action"].astype(np.int64)),
            rewards=torch.from_numpy(returns.astype(np.float32)),
            discounts=torch.from_numpy(discounts.astype(np.float32)),
        )

    def _rows(self, t: NDArray[np.int64], env: NDArray[np.int64], depth: int) -> NDArray[np.int32]:
        """Rows of the last `depth` frames up to each step, an episode's first repeated before it."""
        back = np.arange(depth - 1, -1, -1)
        at = np.maximum(t[:, None] - back, self._records["begin"][t, env][:, None])
        return self._records["row"][at, env[:, None]]  # type: ignore[no-any-return]

    def flush(self) -> None:
        """Make all records durable, as the checkpoint that counts them will be."""
        with atomic_files.storage_errors(Path(str(self._records.filename))):
            self._records.flush()

    def state(self) -> dict[str, Any]:
        """Where it stands, and a checksum of its records, as JSON values."""
        begin = self._begin.tolist()
        return {"played": self.played, "begin": begin, "check": self._check.hexdigest()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            DamagedError: The file does not hold what it held then.
        """
        self.played = state["played"]
        self._begin = np.array(state["begin"], np.int32)
        self._check = blake3(np.ascontiguousarray(self._records[: self.played]).view(np.uint8).data)
        if self._check.hexdigest() != state["check"]:
            raise DamagedError(
                "bad-bytes",
                f"{self._records.filename} does not hold the steps that the run's checkpoint tells "
                "of. Begin another run; with --init it takes over this one's weights.",
            )
