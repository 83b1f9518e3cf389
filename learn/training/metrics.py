"""A run's metrics as JSON lines and TensorBoard events, under CleanRL's keys."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from wsa.store.common import atomic_files

FILE = "metrics.jsonl"
TRAINING_RETURN = "charts/episodic_return"
EVALUATION_RETURN = "eval/episodic_return"


class Metrics:
    """Writes `metrics.jsonl` and TensorBoard events into a run's folder.

    Args:
        start: Step the run continues from. Lines of later steps, written before an interruption,
            are dropped.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # Slow to import.

        path = folder / FILE
        kept = b""
        if path.exists():
            lines = path.read_bytes().splitlines()
            kept = b"".join(line + b"\n" for line in lines if _step(line) <= start)
        atomic_files.replace(path, kept)
        self._lines = path.open("a")
        # Makes TensorBoard discard later steps in the run's earlier event files.
        self._board = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Write one line of scalars at `step`. JSON has no NaN or infinity: they become null."""
        finite = {key: value if math.isfinite(value) else None for key, value in scalars.items()}
        line = {"step": step, "time": round(time.time(), 3), **finite}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for key, value in scalars.items():
            self._board.add_scalar(key, value, step)

    def flush(self) -> None:
        """Write all lines to disk, before a checkpoint of this step."""
        os.fsync(self._lines.fileno())
        self._board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._board.close()


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run's metrics; none if there is no file.

    The end of the file that another process is still writing, or was killed while writing, is left
    out.
    """
    path = folder / FILE
    for text in path.read_bytes().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            return
        yield line


def has(folder: Path, step: int, key: str) -> bool:
    """Return whether a run's metrics have a scalar at a step."""
    return any(line["step"] == step and key in line for line in read(folder))


def _step(line: bytes) -> int:
    """Return the step of a line; a truncated line counts as later than all others."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62
