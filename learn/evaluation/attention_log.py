"""Log the fusion's weights at every step of an evaluation to `eval_weights.npz`.

    models     (m,) keys of the models
    step       (n,) step of the game, from 0
    env        (n,) number of the environment
    episode    (n,) number of the environment's game, from 0
    action     (n,) action taken
    reward     (n,) raw reward
    weights    (n, m) float32, the fusion's weight of each model

Steps of one game are in order; those of several environments are interleaved. Steps are kept in
memory until all games are over, about 100 MB for 100 long games.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsa.learn.evaluation.episodes import Moment
from wsa.store.common import atomic_files

FILE = "eval_weights.npz"


class WeightLog:
    """Collects the fusion's weights at every step.

    As a context manager, it writes the archive on exit, replacing an earlier one, unless an error
    or an interruption ended the games. It raises StorageError if the disk is full.

    Args:
        models: Keys of the fused models.
        weights: Returns the weights of the current step, (n, models).
    """

    def __init__(
        self, folder: Path, models: Sequence[str], weights: Callable[[], NDArray[Any] | None]
    ) -> None:
        self._folder = folder
        self._models = list(models)
        self._weights = weights
        self._row = np.dtype(
            [
                ("step", np.int32),
                ("env", np.int16),
                ("episode", np.int32),
                ("action", np.int16),
                ("reward", np.float32),
                ("weights", np.float32, (len(self._models),)),
            ]
        )
        self._rows = bytearray()

    def see(self, moment: Moment) -> None:
        """Record one step."""
        rows = np.empty(len(moment.envs), self._row)
        rows["step"], rows["env"], rows["episode"] = moment.steps, moment.envs, moment.episodes
        rows["action"], rows["reward"] = moment.actions, moment.rewards
        rows["weights"] = self._weights()
        self._rows += rows.tobytes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        rows = np.frombuffer(self._rows, self._row)
        columns: dict[str, Any] = {name: rows[name] for name in self._row.names or ()}
        file = io.BytesIO()
        np.savez_compressed(file, models=np.array(self._models, np.str_), **columns)
        atomic_files.replace(self._folder / FILE, file.getvalue())
