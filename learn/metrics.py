"""Scalars of a run: JSON lines always, TensorBoard beside them, under CleanRL's keys."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter


class Metrics:
    """Writes `metrics.jsonl` and TensorBoard events into a run's folder.

    Args:
        folder: The run's folder.
        start: Step the run continues from; lines of later steps, from before an interruption, are
            dropped.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        path = folder / "metrics.jsonl"
        kept = []
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _step(line) <= start]
        path.write_text("".join(kept))
        self._lines = path.open("a")
        self._board = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One line of scalars at `step`."""
        line = {"step": step, "time": round(time.time(), 3), **scalars}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for key, value in scalars.items():
            self._board.add_scalar(key, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._board.close()


def _step(line: str) -> int:
    """Step of a line; one that was cut off counts as later than all."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 1 << 62
