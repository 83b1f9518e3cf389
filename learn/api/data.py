"""A game's steps and embeddings as numpy, dask, and xarray arrays: views of a memory map."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.learn.api.libraries import require
from wsa.store.common import names
from wsa.store.common.errors import UsageError
from wsa.store.format import arrays
from wsa.store.objects.flat_map import FlatMap

CHUNK_BYTES = 32 << 20  # Size of a chunk of a dask array.


@dataclasses.dataclass(frozen=True)
class GameData:
    """A game's steps and embeddings, mapped into memory. Get one with `Store.data`.

    The files behind `rows` and `embeddings` may hold more than the store shows: index `rows` with
    `steps`.

        data = wsa.open(url).data("Pong", ["vit"])
        rows = data.rows[data.steps]                      # (S,) records: action, reward, ...
        states = data.embeddings("vit")[rows["frame"]]    # (S, *shape)

    Attributes:
        game: ALE game.
        flat: The memory map, for everything that this class does not offer.
    """

    game: str
    flat: FlatMap

    def __len__(self) -> int:
        return len(self.flat.steps)

    @property
    def models(self) -> tuple[str, ...]:
        """Keys of the models."""
        return self.flat.models

    @property
    def rows(self) -> NDArray[Any]:
        """One record for each observation, as a memory map.

        `frame` is the observation's index in `embeddings`. `action`, `reward`, `terminated`, and
        `truncated` describe the step taken from it; `action` is -1 if no step was taken.
        `is_first`, `lives`, and `episode` describe the observation itself.
        """
        return self.flat.rows

    @property
    def steps(self) -> NDArray[np.int64]:
        """Indices of the rows that hold a step, shape (S,), in the store's order of segments."""
        return self.flat.steps

    def embeddings(self, model: str = "") -> NDArray[Any]:
        """One model's embeddings: a view of a memory map, without a copy.

        Args:
            model: Key or alias; not needed if there is only one model.

        Returns:
            Array (N, *shape), float16 or float32; row i belongs to the frame that `rows["frame"]`
            calls i. For a model that sees several frames: (R, *shape), row i for row i of `rows`.
        """
        index = self.place(model)
        flat = self.flat
        table = flat.embeddings if flat.windows[index] == 1 else flat.windowed
        return table[:, flat.columns[index]].reshape(len(table), *flat.shapes[index])

    def dask(self, model: str = "") -> Any:
        """One model's embeddings as a dask array whose chunks are views.

        Args:
            model: Key or alias; not needed if there is only one model.

        Raises:
            MissingError: If dask.array cannot be imported.
        """
        array = require("dask.array", "dask[array]", "GameData.dask")
        table = self.embeddings(model)
        row = math.prod(table.shape[1:]) * table.itemsize
        chunks = (max(1, CHUNK_BYTES // max(1, row)), *table.shape[1:])
        return array.from_array(table, chunks=chunks, name=False)

    def xarray(self) -> Any:
        """`rows`, `steps`, and all models' embeddings as an xarray `Dataset` of views.

        Embeddings are named by their model's key and have the axis `frame`, or `row` for models
        that see several frames. The columns of `rows` have the axis `row`; the column `frame` is
        called `frame_index`. `steps` has the axis `step`.

        Raises:
            MissingError: If xarray is not installed.
        """
        xarray = require("xarray", "xarray", "GameData.xarray")
        variables: dict[str, Any] = {"steps": ("step", self.steps)}
        for name in ("frame", *(field for field in arrays.ROW_FIELDS if field != "frame")):
            variables["frame_index" if name == "frame" else name] = ("row", self.rows[name])
        for key, window, shape in zip(
            self.models, self.flat.windows, self.flat.shapes, strict=True
        ):
            unit = "frame" if window == 1 else "row"
            axes = [unit, *(f"{key}_{axis}" for axis in range(1, len(shape) + 1))]
            variables[key] = (axes, self.embeddings(key))
        return xarray.Dataset(variables, attrs={"game": self.game})

    def place(self, model: str = "") -> int:
        """The index in `models` of a key or an alias.

        Args:
            model: Key or alias; not needed if there is only one model.

        Raises:
            UsageError: If no model fits, or several do.
        """
        fitting = names.keys_named(self.models, model) if model else self.models
        if len(fitting) == 1:
            return self.models.index(fitting[0])
        raise UsageError(
            f"{model or 'No model'} is not one of {', '.join(self.models)}. Give one of these keys."
        )
