"""Send a run to Weights & Biases, as CleanRL does: everything that goes to TensorBoard."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from wsa.learn.runs.config import OfflineRun, OnlineRun
from wsa.store.common import hashing
from wsa.store.common.errors import MissingError, redact


@contextlib.contextmanager
def tracked(
    folder: Path, config: OfflineRun | OnlineRun, project: str, entity: str
) -> Iterator[None]:
    """Track the run's logs until the block ends; a resumed run is resumed there too.

    With `WANDB_MODE=offline` nothing leaves the machine: `wandb sync` sends it later.

    Args:
        folder: The run's folder.
        config: The run, whose options are recorded without secrets.
        project, entity: W&B project and entity; if no entity is given, the user's own.

    Raises:
        MissingError: If wandb is not installed.
    """
    try:
        wandb: Any = importlib.import_module("wandb")
    except ImportError:
        raise MissingError(
            "no-library",
            "--track needs wandb, which is not installed. Install it: pip install wandb",
        ) from None
    options: dict[str, Any] = msgspec.json.decode(redact(msgspec.json.encode(config).decode()))
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=project,
        entity=entity or None,
        name=folder.name,
        id=hashing.identity(str(folder.resolve()))[:16],
        resume="allow",
        dir=str(folder),
        config=options,
        sync_tensorboard=True,  # Must precede the TensorBoard writer.
    )
    try:
        yield
    finally:
        run.finish()
