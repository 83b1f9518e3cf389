"""What another run may begin from: as much of a run's `config.json` as offline and online share."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from wsa.learn.networks.heads import NetworkConfig
from wsa.store.common.errors import DamagedError, MissingError
from wsa.store.format.records import Protocol

MEAN_CONTEXT = "mean"


class Origin(msgspec.Struct, frozen=True):
    """A run to begin from, offline or online.

    Attributes:
        models: Model keys; none where the network sees grey pixels.
        context: Key of the model that gives WSA's context, one of them or another; or `mean`.
        network: What was trained.
        protocol: How the game was played.
    """

    models: tuple[str, ...]
    context: str
    network: NetworkConfig
    protocol: Protocol

    @property
    def inputs(self) -> tuple[str, ...]:
        """Keys of the models that the network reads: those fused, then one for the context alone."""
        alone = self.context != MEAN_CONTEXT and self.context not in self.models
        return (*self.models, self.context) if alone else self.models


def read_origin(folder: Path) -> Origin:
    """What the run in `folder` is, as far as another may begin from it.

    Raises:
        MissingError: There is no run.
        DamagedError: Its configuration cannot be read.
    """
    return decode(folder, Origin)


T = TypeVar("T")


def decode(folder: Path, kind: type[T]) -> T:
    """A run's `config.json` as what it is read for.

    Raises:
        MissingError: There is no run.
        DamagedError: It cannot be read so.
    """
    try:
        return msgspec.json.decode(config_bytes(folder), type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedError(
            "bad-record",
            f"{folder / 'config.json'} cannot be read ({error}): a newer wsa began this run, or the "
            "file was changed. Update wsa, or begin another run; no file was changed.",
        ) from None


def config_bytes(folder: Path) -> bytes:
    """A run's `config.json`.

    Raises:
        MissingError: There is no run.
    """
    try:
        return (folder / "config.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(
            "no-run",
            f"{folder} is not the folder of a run: it has no config.json. "
            "Give a folder that 'wsa learn' made.",
        ) from None
