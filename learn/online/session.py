"""What online algorithms share: the environments and their table, normalisation, metrics, exact resume."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsa.learn.data.transitions import moments_of
from wsa.learn.evaluation.periodic import PeriodicEvaluation
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import EnvRunner, Step
from wsa.learn.online.record_segments import Recording
from wsa.learn.training import checkpoint
from wsa.learn.training.metrics import Metrics
from wsa.store.objects.flat_map import FlatMap

# Rows that the mean and deviation are taken over, as in `wsa.learn.data.transitions.moments`.
SAMPLE = 20_000


@dataclasses.dataclass(frozen=True)
class Played:
    """What an online training did just now.

    Attributes:
        network: The trained network.
        steps: Steps played now; 0 where the run was finished already.
        steps_per_s: Their rate.
        passes: Frames, and windows, that went through a model meanwhile, summed over the models.
        hit_rate: Share of all that the run looked for that needed no pass to be played.
    """

    network: nn.Module
    steps: int
    steps_per_s: float
    passes: int
    hit_rate: float

    def summary(self) -> dict[str, float]:
        """What was done, as JSON values."""
        return {
            "steps": self.steps,
            "steps_per_s": self.steps_per_s,
            "hit_rate": round(self.hit_rate, 4),
            "backbone_passes": self.passes,
        }


class Session:
    """A run being played.

    Args:
        runner: Its environments.
        models: Model keys, in the order of a row; none for grey pixels.
        columns: Where each model's numbers stand in a row.
        settled: Whether what embeddings are normalised with is settled already.
        seed: Of exploration and draws.
        stored: The stored data, where batches hold some.
        recording: What keeps the steps in the store, if anything does; made durable before each
            checkpoint.
        compiled: Whether networks go through torch.compile.
        evaluation: Games to play every so often, if any.
    """

    def __init__(
        self,
        runner: EnvRunner,
        models: Sequence[str],
        columns: Sequence[slice],
        settled: bool,
        *,
        seed: int = 0,
        stored: FlatMap | None = None,
        recording: Recording | None = None,
        compiled: bool = False,
        evaluation: PeriodicEvaluation | None = None,
    ) -> None:
        self.runner = runner
        self.evaluation = evaluation or PeriodicEvaluation()
        self.table: Table = runner.table
        self._models, self._columns = list(models), list(columns)
        self.seed, self.stored = seed, stored
        self._recording = recording
        self._compiled = compiled
        # Rows that the normalisation was settled on; -1: by something else, for good.
        self._settled_on = -1 if settled or not models else 0
        self._began = time.perf_counter()
        self._steps_before = self._passes_before = 0
        self._lap = (0.0, 0)

    @property
    def settled(self) -> bool:
        """Whether there is something to normalise with."""
        return self._settled_on != 0

    @property
    def _seconds(self) -> float:
        """Time since `resume`, less what evaluations took."""
        return time.perf_counter() - self._began - self.evaluation.seconds

    def settle(self, *networks: nn.Module) -> None:
        """Take mean and deviation over the table, once at first and whenever it has doubled.

        A table of one game's frames soon stops doubling, so what a network was trained with hardly
        moves; the first frames of a game alone would be a poor sample of it.
        """
        if self._settled_on < 0 or len(self.table) < 2 * self._settled_on:
            return
        found = [moments_of(self.table.sample(model, SAMPLE)) for model in self._columns]
        mean, deviation = (torch.cat(parts) for parts in zip(*found, strict=True))
        for network in networks:
            network.torso.set_moments(mean, deviation)  # type: ignore[operator, union-attr]
        self._settled_on = len(self.table)

    def log_episodes(self, metrics: Metrics, step: Step) -> None:
        """A line for each episode that ended, under CleanRL's keys: raw returns of whole games."""
        for returned, length in step.episodes:
            line = {"charts/episodic_return": returned, "charts/episodic_length": float(length)}
            metrics.write(self.runner.steps, line)

    def scalars(self) -> dict[str, float]:
        """Speed, and what the cache saved."""
        table = self.table
        lap, self._lap = self._lap, (table.seconds, table.asked - table.known)
        embedded = self._lap[1] - lap[1]
        return {
            "charts/SPS": (self.runner.steps - self._steps_before) / self._seconds,
            "charts/frames": float(4 * self.runner.steps),
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
        """Scalars to log, `weights` (models,) as one for each model that is fused."""
        line = {key: value.item() for key, value in scalars.items() if key != "weights"}
        if "weights" in scalars:
            weights = scalars["weights"].tolist()
            line |= {f"wsa/weight/{key}": w for key, w in zip(self._models, weights, strict=False)}
        return line

    def resume(
        self, folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Begin, or continue from the newest checkpoint; returns the arrays and values it holds.

        Raises:
            DamagedError: The newest checkpoint, or the table, is damaged.
            ConflictError: The emulator does not play here as it did.
        """
        arrays: dict[str, NDArray[Any]] = {}
        extra: dict[str, Any] = {}
        saved = folder / "checkpoints"
        if checkpoint.all_of(saved):
            path = checkpoint.latest(saved)
            _, extra = checkpoint.load(path, modules, optimizer, arrays)
            self.table.restore(extra["table"])
            self._settled_on = extra["settled_on"]
            self.runner.restore({k.removeprefix("stage."): v for k, v in arrays.items()})
        self._steps_before, self._passes_before = self.runner.steps, self.table.passes
        self._lap = (0.0, self.table.asked - self.table.known)
        if not extra:
            self.runner.begin()
        if self._compiled:  # In place: what is compiled has the very weights that are trained.
            for module in modules.values():
                # A memory's loop over steps would be unrolled; what it is fed is most of the work.
                part: Any = module.torso if hasattr(module, "blank") else module
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
        """Save a checkpoint: table first, then what names its rows."""
        if self._recording:
            self._recording.flush()
        self.table.flush()
        whole = {f"stage.{name}": array for name, array in self.runner.state().items()}
        state = {"table": self.table.state(), "settled_on": self._settled_on, **(extra or {})}
        whole |= {name: np.asarray(array) for name, array in arrays.items()}
        checkpoint.save(
            folder / "checkpoints", self.runner.steps, modules, optimizer, state, arrays=whole
        )

    def played(self, network: nn.Module) -> Played:
        """What was done since `resume`."""
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
