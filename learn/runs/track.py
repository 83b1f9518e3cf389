"""What tracking tools show of a run beside its scalars.

TensorBoard gets the hyperparameters for its HPARAMS tab. Weights & Biases gets everything that goes
to TensorBoard, as in CleanRL.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from wsa.learn.runs.config import OfflineRun, OnlineRun, flat_settings
from wsa.learn.training.metrics import EVALUATION_RETURN, TRAINING_RETURN
from wsa.store.common import hashing
from wsa.store.common.errors import MissingError, redact

# Columns of the tab beside the hyperparameters; a run may lack some.
METRICS = (TRAINING_RETURN, EVALUATION_RETURN, "validation/td_error")

_TAGS = ("type", "algo")  # Fields that name the class of the settings.


@contextlib.contextmanager
def tracked(
    folder: Path, config: OfflineRun | OnlineRun, project: str, entity: str
) -> Iterator[None]:
    """Track the run's logs until the block ends; a resumed run is resumed there too.

    Its options are recorded without secrets. With `WANDB_MODE=offline` nothing leaves the machine:
    `wandb sync` sends it later.

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


def write_hparams(folder: Path, config: OfflineRun | OnlineRun) -> None:
    """Write the hyperparameters as a TensorBoard event of the run itself.

    `SummaryWriter.add_hparams` would begin another run in a folder below.
    """
    from torch.utils.tensorboard import SummaryWriter  # Slow to import.
    from torch.utils.tensorboard.summary import hparams

    # The third part says that the run has succeeded, which is not known yet.
    experiment, start, _ = hparams(_hparams(config), dict.fromkeys(METRICS))
    with SummaryWriter(str(folder)) as board:
        assert board.file_writer, "the file is open"
        for summary in (experiment, start):
            board.file_writer.add_summary(summary)


def _hparams(config: OfflineRun | OnlineRun) -> dict[str, str | float]:
    """What tells runs apart: the algorithm, data, models, and every setting, by name."""
    found: dict[str, Any] = {
        "game": config.game,
        "algorithm": config.hyperparameters.__struct_config__.tag,
        "models": list(config.models),
        "context": config.context,
        "seed": config.seed,
    }
    for part in (config.hyperparameters, config.network):
        found |= {name: value for name, value in flat_settings(part) if name not in _TAGS}
    return {name: _value(value) for name, value in found.items()}


def _value(value: object) -> str | float:
    """A value as the tab takes it: a number, a truth value, or text."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return value if isinstance(value, (str, int, float)) else str(value)
