"""Find a run's store: runs and stores are moved, copied, and opened on other machines.

A run records its store's URL. Segments and models are named by their content, so any store that
has all of them works.
"""

from __future__ import annotations

import logging
import os
from typing import TypeVar

import msgspec

from wsa.learn.runs.config import RunConfig
from wsa.store.common.errors import MissingError
from wsa.store.objects.root import open_store

_log = logging.getLogger(__name__)

Run = TypeVar("Run", bound=RunConfig)


def find_store(config: Run, store: str = "", otherwise: str = "") -> Run:
    """Return the run with the current URL of its store.

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
