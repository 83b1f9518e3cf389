"""`wsa.open(url)`: inspect a store, read its arrays, and embed frames with its models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsa.learn.api.data import GameData
from wsa.store.common import names
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.configs import default_store
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.flat_map import materialize
from wsa.store.objects.model_spec import describe, read_spec
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot

if TYPE_CHECKING:
    from wsa.encode.inference.encoder import Encoder
    from wsa.learn.api.datasets import Embeddings, Transitions


def open(url: str | os.PathLike[str] | None = None) -> Store:
    """Open a store.

    Args:
        url: The store's folder or URL, such as `s3://lab/wsa`. By default `WSA_STORE`, or a folder
            in your data directory.

    Raises:
        MissingError: If there is no store.
        ConflictError: If the store has another format.
        StorageError: If the disk or the bucket refuses access.
    """
    return Store(take_snapshot(open_store(default_store() if url is None else os.fspath(url))))


class Store:
    """A store as it was when you opened it. Get one with `wsa.open`.

    Data that others add later does not appear. Open the store again to see it.

    Attributes:
        snapshot: The commits that the store shows, for everything that this class does not offer.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def __repr__(self) -> str:
        return f"<wsa.Store {self.url}: {len(self.games)} games, {len(self.models)} models>"

    @property
    def url(self) -> str:
        """The store's folder or URL."""
        return self.snapshot.backend.url

    @property
    def games(self) -> list[str]:
        """Games with at least one segment, sorted."""
        return self.snapshot.games

    @property
    def models(self) -> list[str]:
        """Keys of all models, sorted."""
        return list(self.snapshot.models)

    def segments(self, game: str | None = None) -> list[SegmentMeta]:
        """Segments of one game or of all games, with protocol, policy, seed, and counts."""
        return self.snapshot.segments(game)

    def describe(self, model: str) -> dict[str, Any]:
        """A model's architecture, weights, license, output, and shape.

        Args:
            model: The model's key, or an alias that only one model of the store has.
        """
        return describe(self.snapshot, self._key(model))

    def frames(self, segment: SegmentMeta) -> NDArray[np.uint8]:
        """The distinct frames of a segment as RGB, shape (F, H, W, 3), uint8."""
        return self.snapshot.read_frames(segment)

    def data(self, game: str, models: str | Sequence[str] = ()) -> GameData:
        """A game's steps and embeddings in a memory map.

        The first call copies them from the store to this machine's cache (`WSA_CACHE`). Later calls
        copy only what is new.

        Args:
            game: ALE game.
            models: Aliases or keys. By default, every model that has encoded the whole game.

        Raises:
            MissingError: If there are no frames, or a model has not encoded all of them.
            UsageError: If an alias fits several models.
        """
        from wsa.encode.registration.select import choose_models  # Imported here: it imports torch.

        requested = [models] if isinstance(models, str) else models
        keys = choose_models(self.snapshot, game, requested)
        return GameData(game, materialize(self.snapshot, game, keys))

    def embeddings(self, game: str, model: str) -> NDArray[Any]:
        """One model's embeddings of a game, as a memory map; see `GameData.embeddings`."""
        data = self.data(game, model)
        return data.embeddings(data.models[0])

    def transitions(self, game: str, models: str | Sequence[str] = (), **how: Any) -> Transitions:
        """A torch `Dataset` of a game's transitions; `how` is passed to `wsa.Transitions`."""
        from wsa.learn.api.datasets import Transitions

        return Transitions(self.data(game, models), **how)

    def embedding_dataset(self, game: str, model: str) -> Embeddings:
        """A torch `Dataset` of one model's embeddings of a game."""
        from wsa.learn.api.datasets import Embeddings

        return Embeddings(self.data(game, model))

    def encoder(
        self, model: str, *, game: str = "", device: str = "auto", engine: str = "auto"
    ) -> Encoder:
        """Load a model of the store, to embed frames exactly as the stored ones were embedded.

        Args:
            model: The model's key, or an alias that only one model of the store has.
            game: The ALE game, for `palette` and `objects`, which have a model for each.
            device: `auto`, `cpu`, or `cuda`.
            engine: The inference engine; `auto` uses the one that filled the store.

        Returns:
            A callable from (n, H, W, 3) uint8 RGB to (n, *shape) float32.

        Raises:
            MissingError: If this machine does not have the model's weights.
            ConflictError: If the model's embeddings differ from those in the store.
        """
        from wsa.encode.inference.encoder import choose_device
        from wsa.encode.registration.register import open_model

        key = self._key(model, game)
        return open_model(self.snapshot, key, device=choose_device(device), engine=engine)

    def _key(self, model: str, game: str = "") -> str:
        fitting = names.keys_named(self.models, model)
        games = {key: read_spec(self.snapshot, key).game for key in fitting}
        if game:
            fitting = [key for key in fitting if games[key] in ("", game)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            hint = ", or its game" if any(games.values()) and not game else ""
            raise UsageError(
                f"{model} may be any of {', '.join(fitting)}; give the whole key{hint}."
            )
        raise MissingError(
            "not-encoded",
            f"The store {self.url} has no model {model}. It has {', '.join(self.models) or 'none'}.",
        )
