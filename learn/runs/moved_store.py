"""Where a run's store is now: runs and stores are moved, copied, and opened on other machines.

A run records its store's URL. Its segments and models are known by names that are made of what they
hold, so any store that has all of them will do, wherever it is.
"""

from __future__ import annotations

import os
from typing import TypeVar

import msgspec

from wsa.learn.runs.config import RunConfig
from wsa.store.common import terminal
from wsa.store.common.errors import MissingError
from wsa.store.objects.root import open_store

Run = TypeVar("Run", bound=RunConfig)


def find_store(config: Run, store: str = "", otherwise: str = "") -> Run:
    """The run with the URL of the store as it is now.

    Args:
        config: The run as it was begun.
        store: Where the user says that the store is; empty if they do not.
        otherwise: Where to look if the recorded store is not there; `WSA_STORE` if not given.

    Raises:
        MissingError: There is no store at the given place, or at the recorded one and the other.
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
        terminal.say(f"The run's store {config.store} is not there; using {moved.store}.")
        return moved
    return config
