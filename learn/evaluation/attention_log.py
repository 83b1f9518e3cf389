"""Which model the fusion listened to, at every step of an evaluation: `eval_weights.npz`.

    models     (m,) keys of the models
    step       (n,) of its game, from 0
    env        (n,) environment
    episode    (n,) of that environment, from 0
    action     (n,) what was done
    reward     (n,) what it earned, raw
    weights    (n, m) float32, the fusion's weight of each model

Steps of one game are in order; those of several environments are interleaved. Hours of play do not
fit in memory, so steps go to a file without a name, and from there, column by column, into the
archive, which stands there whole or not at all.
"""

from __future__ import annotations

import tempfile
import uuid
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from wsa.learn.evaluation.rollout import Moment
from wsa.store.common.atomic_files import storage_errors

FILE = "eval_weights.npz"
ROWS = 65_536  # Copied at once.


class WeightLog:
    """Keeps the weights of every step it is shown.

    Used in a `with`, which writes the archive at its end, in the place of one that was there, unless
    an error or an interruption ended the games.

    Args:
        folder: The run's folder.
        models: Keys of the models that are weighed.
        weights: Gives the weights (n, models) of the step at hand.

    Raises:
        StorageError: No room is left.
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
        self._count = 0
        with storage_errors(folder / FILE):
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def see(self, moment: Moment) -> None:
        """Take a step.

        Raises:
            StorageError: No room is left.
        """
        rows = np.empty(len(moment.envs), self._row)
        rows["step"], rows["env"], rows["episode"] = moment.steps, moment.envs, moment.episodes
        rows["action"], rows["reward"] = moment.actions, moment.rewards
        rows["weights"] = self._weights()
        with storage_errors(self._folder / FILE):
            self._file.write(rows.tobytes())
        self._count += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._file:
            if kind is None:
                self._write()

    def _write(self) -> None:
        path = self._folder / FILE
        temporary = path.with_name(f".{FILE}.{uuid.uuid4().hex}")
        with storage_errors(path):
            self._file.flush()
            try:
                with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                    with archive.open("models.npy", "w") as member:
                        np.lib.format.write_array(member, np.array(self._models, np.str_))
                    for name in self._row.names or ():
                        self._copy(archive, name)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def _copy(self, archive: zipfile.ZipFile, name: str) -> None:
        column, shape = self._row[name].base, self._row[name].shape
        header = {"descr": column.str, "fortran_order": False, "shape": (self._count, *shape)}
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            self._file.seek(0)
            while part := self._file.read(ROWS * self._row.itemsize):
                member.write(np.frombuffer(part, self._row)[name].tobytes())
