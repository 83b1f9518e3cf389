"""The data of a run: its store, its segments there, and embeddings of the frames that it plays."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from wsa.encode.live import live_encoder
from wsa.encode.live.live_encoder import EmbeddingSource, LiveEncoder
from wsa.learn.networks.nature import GrayPixels
from wsa.learn.runs.config import FILE, OfflineRun, OnlineRun, RunConfig, read_config
from wsa.store.common import names, terminal
from wsa.store.common.errors import MissingError
from wsa.store.objects.flat_map import FlatMap, in_files, materialize
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot

_log = logging.getLogger(__name__)

Run = TypeVar("Run", bound=RunConfig)


def find_store(config: Run, store: str = "", otherwise: str = "") -> Run:
    """Return the run with the current URL of its store.

    Runs and stores are moved, copied, and opened on other machines. Segments and models are named by
    their content, so any store that has all of them works.

    Args:
        config: The run as it was started.
        store: Path or URL that the user gave; empty if none.
        otherwise: Fallback if the recorded store is missing; `WSA_STORE` if empty.

    Raises:
        MissingError: If there is no store at the given place, or neither at the recorded place nor
            at the fallback.
    """
    if store:
        return msgspec.structs.replace(config, store=open_store(store).url)
    try:
        open_store(config.store)
    except MissingError as error:
        otherwise = otherwise or os.environ.get("WSA_STORE", "")
        if not otherwise:
            raise MissingError(
                error.kind,
                f"{error} If the run's store has moved, say where it is with --store or WSA_STORE.",
            ) from None
        moved = msgspec.structs.replace(config, store=open_store(otherwise).url)
        _log.info("The run's store %s is not there; using %s.", config.store, moved.store)
        return moved
    return config


def open_data(config: RunConfig) -> tuple[Snapshot, FlatMap | None]:
    """Open a run's store, limited to the run's segments of its game, and materialize them if any.

    Raises:
        MissingError: If the store has lost some of the segments.
        DamagedError: If stored bytes are not what was committed.
    """
    whole = take_snapshot(open_store(config.store))
    if not config.segments:
        return whole, None
    snapshot = only(whole, config.game, config.segments)
    return snapshot, materialize(snapshot, config.game, config.inputs)


def only(whole: Snapshot, game: str, segments: Sequence[str]) -> Snapshot:
    """Limit a snapshot to a run's segments of its game; other games stay as they are.

    Raises:
        MissingError: If the store has lost some of them.
    """
    present = {m.segment: names.segment_path(m.game, m.segment) for m in whole.segments(game)}
    lost = len(set(segments) - present.keys())
    if lost:
        raise MissingError(
            "no-frames",
            f"The store {whole.backend.url} lacks {lost} of the {len(segments)} segments of "
            f"{game} that this run was started with. Bring them back (the same 'wsa collect' "
            "and 'wsa encode' make the same ones; 'wsa list' shows what is there), or start "
            "another run.",
        )
    others = {present[segment] for segment in present.keys() - set(segments)}
    return Snapshot(
        whole.backend, {path: c for path, c in whole.commits.items() if path not in others}
    )


def encoded_part(whole: Snapshot, game: str, models: Collection[str]) -> Snapshot:
    """Limit a snapshot to the segments of a game that all these models have encoded.

    Raises:
        MissingError: If there is none.
    """
    encoded = [meta.segment for meta in whole.segments_encoded_by(game, models)]
    total = len(whole.segments(game))
    if not encoded:
        raise MissingError(
            "not-encoded",
            f"--encoded-only: none of the {total:,} segments of {game} in {whole.backend.url} has "
            f"been encoded by all of {', '.join(sorted(models))}. 'wsa status' shows what is left.",
        )
    if left_out := total - len(encoded):
        _log.info(
            f"Left out {left_out:,} of {total:,} segments of {game}, which not all of the models "
            "have encoded yet."
        )
    return only(whole, game, encoded)


def as_started(whole: Snapshot, folder: Path, game: str, protocol: str) -> Snapshot:
    """Limit a snapshot to the data of the offline run in `folder`, so that its command continues it.

    Nothing is limited if no run is there, or one of other data.

    Args:
        whole: The store, which may have received segments since the run started.
        game: ALE game id that the command names.
        protocol: Name of the protocol that the command names, if any.

    Raises:
        MissingError: If the store has lost some of the run's segments.
        DamagedError: If the run's configuration cannot be read.
    """
    if not (folder / FILE).exists():
        return whole
    run = read_config(folder)
    same_data = run.game == game and protocol in ("", run.protocol.name)
    if not isinstance(run, OfflineRun) or not same_data:
        return whole
    limited = only(whole, game, run.segments)
    played = [meta for meta in whole.segments(game) if meta.protocol == run.protocol]
    if newer := len(played) - len(run.segments):
        _log.info(
            f"The run continues with the {terminal.plural(len(run.segments), 'segment')} that it was started with, "
            f"and leaves out {newer:,} newer of {game}. To learn from all, start another run."
        )
    return limited


class _EmptyMap:
    """Replaces the flat map if the store holds nothing of the game."""

    def __init__(self, config: OnlineRun) -> None:
        self.models, self.shapes = config.inputs, config.shapes
        self.windows, self.places = config.model_windows, config.columns
        self.columns = in_files(self.windows, self.shapes)
        widths = list(zip(self.windows, map(math.prod, self.shapes), strict=True))
        self.width = sum(width for window, width in widths if window == 1)
        self.window_width = sum(width for window, width in widths if window > 1)
        self.embeddings = np.empty((0, self.width), np.float16)
        self.windowed = np.empty((0, self.window_width), np.float16)
        self.digests = np.empty((0, 16), np.uint8)

    def window_digests(self, window: int) -> NDArray[np.uint8]:
        """See `FlatMap.window_digests`."""
        return self.digests


def make_embedder(
    config: OfflineRun | OnlineRun,
    flat: FlatMap | None,
    encoders: Sequence[Any],
    *,
    remember: int = live_encoder.REMEMBERED,
    elsewhere: Mapping[int, EmbeddingSource] | None = None,
    threads: int | None = None,
) -> Any:
    """Make the embedder that turns played frames into rows: grayscale pixels, or models.

    Args:
        flat: The store's data of the game.
        encoders: One for each of `config.inputs`; None for a model that is left out.
        remember: Number of live frames, and of live windows, to keep.
        elsewhere, threads: See `LiveEncoder`.
    """
    stored: Any = flat
    if isinstance(config, OnlineRun):
        if config.end_to_end:
            return GrayPixels()
        stored = _EmptyMap(config) if flat is None else flat
    return LiveEncoder(stored, encoders, remember, elsewhere, threads)
