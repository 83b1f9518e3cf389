"""State that online algorithms share: environments, table, normalization, metrics, exact resume."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsa.learn.data.transitions import SAMPLE, moments_of
from wsa.learn.envs.atari import FRAME_SKIP
from wsa.learn.evaluation.periodic import PeriodicEvaluation
from wsa.learn.fusion.losses import log_line
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import EnvRunner, Step
from wsa.learn.online.record_segments import Recording
from wsa.learn.training import checkpoint
from wsa.learn.training.metrics import TRAINING_RETURN, Metrics
from wsa.store.objects.flat_map import FlatMap


@dataclasses.dataclass(frozen=True)
class Played:
    """Result of one call of an online trainer: its steps, rate, and passes summed over the models.

    `hit_rate` is the fraction of the whole run's lookups that needed no pass.
    """

    network: nn.Module
    steps: int
    steps_per_s: float
    passes: int
    hit_rate: float

    def summary(self) -> dict[str, float]:
        """Return the counts and rates as JSON values."""
        return {
            "steps": self.steps,
            "steps_per_s": self.steps_per_s,
            "hit_rate": round(self.hit_rate, 4),
            "backbone_passes": self.passes,
        }


class Session:
    """An online run in progress.

    `columns` has each model's slice of a row; there are no models for gray pixels. `unsettled` has
    the indices of the models whose mean and standard deviation come from this run's frames, and
    `seed` draws exploration and samples. `stored` transitions are mixed into batches, and
    `recording` is flushed before each checkpoint. Checkpoints name the `engines` that run the
    models, for `engines_of`.
    """

    def __init__(
        self,
        runner: EnvRunner,
        models: Sequence[str],
        columns: Sequence[slice],
        unsettled: Collection[int],
        *,
        seed: int = 0,
        stored: FlatMap | None = None,
        recording: Recording | None = None,
        engines: Sequence[str] = (),
        compiled: bool = False,
        evaluation: PeriodicEvaluation | None = None,
    ) -> None:
        self.runner = runner
        self.evaluation = evaluation or PeriodicEvaluation()
        self.table: Table = runner.table
        self._models, self._columns = list(models), list(columns)
        self.seed, self.stored = seed, stored
        self._recording = recording
        self._engines = list(engines)
        self._compiled = compiled
        self._unsettled = list(unsettled) if models else []
        # Table rows when the moments were last set; -1 if they never change.
        self._settled_on = 0 if self._unsettled else -1
        self._began = time.perf_counter()
        self._steps_before = self._passes_before = 0
        self._lap = (0.0, 0)

    @property
    def settled(self) -> bool:
        """Whether the normalization's moments are set."""
        return self._settled_on != 0

    @property
    def _seconds(self) -> float:
        """Seconds since `resume`, without evaluations."""
        return time.perf_counter() - self._began - self.evaluation.seconds

    def settle(self, *networks: nn.Module) -> None:
        """Set the normalization's moments from the table, whenever the table has doubled.

        The first frames of a game alone are a poor sample. The table soon stops doubling, so later
        the moments hardly change.
        """
        if self._settled_on < 0 or len(self.table) < 2 * self._settled_on:
            return
        moments = [moments_of(self.table.sample(model, SAMPLE)) for model in self._columns]
        mean, deviation = (torch.cat(parts) for parts in zip(*moments, strict=True))
        for network in networks:
            network.torso.set_moments(mean, deviation, self._unsettled)  # type: ignore[operator, union-attr]
        self._settled_on = len(self.table)

    def log_episodes(self, metrics: Metrics, step: Step) -> None:
        """Log the raw return and length of each game that ended, under CleanRL's keys."""
        for returned, length in step.episodes:
            line = {TRAINING_RETURN: returned, "charts/episodic_length": float(length)}
            metrics.write(self.runner.steps, line)

    def scalars(self) -> dict[str, float]:
        """Return the speed and the cache statistics to log."""
        table = self.table
        lap, self._lap = self._lap, (table.seconds, table.asked - table.known)
        embedded = self._lap[1] - lap[1]
        return {
            "charts/SPS": (self.runner.steps - self._steps_before) / self._seconds,
            "charts/frames": float(FRAME_SKIP * self.runner.steps),
            "cache/hit_rate": table.known / max(1, table.asked),
            "cache/backbone_passes": float(table.passes),
            **{
                "cache/distinct_frames"
                if window == 1
                else f"cache/distinct_windows_{window}": float(len(part))
                for window, part in table.parts.items()
            },
            "cache/live_encode_ms": 1000 * (self._lap[0] - lap[0]) / max(1, embedded),
        }

    def line(self, scalars: Mapping[str, Tensor]) -> dict[str, float]:
        """Convert scalars for logging, as `log_line` does, with the names of the run's models."""
        return log_line(scalars, self._models)

    def resume(
        self, folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Begin, or resume from the newest checkpoint and return its arrays and JSON values.

        Raises:
            DamagedError: If the newest checkpoint, or the table, is damaged.
            ConflictError: If the emulator now plays differently.
        """
        arrays: dict[str, NDArray[Any]] = {}
        extra: dict[str, Any] = {}
        checkpoints = folder / "checkpoints"
        if checkpoint.all_of(checkpoints):
            path = checkpoint.latest(checkpoints)
            _, extra = checkpoint.load(path, modules, optimizer, arrays)
            self.table.restore(extra["table"])
            self._settled_on = extra["settled_on"]
            # An older wsa settled all models or none, one that gives only the context included.
            self._unsettled = extra.get("unsettled", list(range(len(self._columns))))
            self.runner.restore({k.removeprefix("stage."): v for k, v in arrays.items()})
        self._steps_before, self._passes_before = self.runner.steps, self.table.passes
        self._lap = (0.0, self.table.asked - self.table.known)
        if not extra:
            self.runner.begin()
        if self._compiled:  # In place: it shares the trained weights.
            for module in modules.values():
                # torch.compile would unroll the LSTM's loop; the torso is most of the work anyway.
                part: Any = module.torso if getattr(module, "recurrent", False) else module
                part.compile(dynamic=False)
        self._began = time.perf_counter()
        return arrays, extra

    def save(
        self,
        folder: Path,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        arrays: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Save a checkpoint, after writing the recording and the table that it refers to."""
        if self._recording:
            self._recording.flush()
        self.table.flush()
        all_arrays = {f"stage.{name}": array for name, array in self.runner.state().items()}
        state = {
            "table": self.table.state(), "settled_on": self._settled_on,
            "unsettled": self._unsettled, "engines": self._engines, **(extra or {}),
        }  # fmt: skip
        all_arrays |= {name: np.asarray(array) for name, array in arrays.items()}
        checkpoint.save(
            folder / "checkpoints", self.runner.steps, modules, optimizer, state, arrays=all_arrays
        )

    def played(self, network: nn.Module) -> Played:
        """Return the result since `resume`."""
        steps = self.runner.steps - self._steps_before
        return Played(
            network,
            steps,
            steps / self._seconds,
            self.table.passes
            - self._passes_before
            + (self._recording.passes if self._recording else 0),
            self.table.known / max(1, self.table.asked),
        )


def engines_of(folder: Path) -> list[str]:
    """Return the engines that ran a run's models until its newest checkpoint; empty if unknown.

    A resumed run needs the same, because another differs in the last bits.

    Raises:
        DamagedError: If the checkpoint is damaged.
    """
    checkpoints = folder / "checkpoints"
    if not checkpoint.all_of(checkpoints):
        return []
    _, metadata = checkpoint.read(checkpoint.latest(checkpoints))
    engines: list[str] = json.loads(metadata["extra"]).get("engines", [])
    return engines
