"""The trained runs that a study is about, and shared output of such studies."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from wsa.encode.configs import require_used, weights_files
from wsa.encode.inference.cores import threads_for
from wsa.encode.inference.encoder import choose_device
from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.configs.study import RunsOptions
from wsa.learn.runs.config import OfflineRun, OnlineRun, read_config
from wsa.learn.runs.data import find_store
from wsa.learn.runs.network import parameters_of, windows_and_shapes
from wsa.learn.runs.player import Player, open_player
from wsa.learn.study.output import PAGE
from wsa.learn.training import checkpoint
from wsa.store.common import names, terminal
from wsa.store.common.errors import MissingError, StorageError, UsageError
from wsa.store.common.ranges import check_ranges
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

COLUMNS = ("run", "game", "fusion", "seed", "parameters")


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A trained run."""

    folder: Path
    config: OfflineRun | OnlineRun

    @property
    def name(self) -> str:
        """Name of the run in headings."""
        return f"{self.config.game}, {self.config.network.fusion.name}, seed {self.config.seed}"

    @property
    def models(self) -> tuple[str, ...]:
        """Displayed names of its models."""
        return tuple(names.labels(self.config.models))

    @functools.cached_property
    def network(self) -> str:
        """First 12 hex digits of its newest checkpoint's hash."""
        return checkpoint.digest(checkpoint.latest(self.folder / "checkpoints"))

    @functools.cached_property
    def parameters(self) -> int | None:
        """Number of trainable parameters of its network, with all its models.

        None for a run on stored data whose store, which has the shapes, is out of reach.
        """
        if isinstance(self.config, OnlineRun):
            return parameters_of(self.config, self.config.model_windows, self.config.shapes).total
        try:
            config = find_store(self.config)
            snapshot = take_snapshot(open_store(config.store))
            return parameters_of(config, *windows_and_shapes(config, snapshot)).total
        except (MissingError, StorageError):
            return None

    @property
    def counted(self) -> str:
        """Its number of parameters in a sentence."""
        known = "unknown" if self.parameters is None else f"{self.parameters:,}"
        return f"{known} trainable parameters"

    @property
    def columns(self) -> tuple[Any, ...]:
        """Its values of `COLUMNS`, the first columns of its rows in every table."""
        c = self.config
        return str(self.folder), c.game, c.network.fusion.name, c.seed, self.parameters


def runs_of(o: RunsOptions) -> list[TrainedRun]:
    """The named runs, without duplicates.

    Raises:
        UsageError: If no run is named, an option is out of range, or no run uses some weights.
        MissingError: If a folder is not that of a run.
    """
    check_ranges(o)
    if not o.runs:
        raise UsageError(
            f"name the folders of one or more trained runs, as in 'wsa study {o.kind} RUN'."
        )
    folders = {folder.resolve(): folder for folder in map(Path, o.runs)}
    runs = [TrainedRun(folder, read_config(folder)) for folder in folders.values()]
    inputs = [key for run in runs for key in run.config.inputs]
    require_used(weights_files(o.live.weights), inputs)
    return runs


def open_run(o: RunsOptions, run: TrainedRun) -> Player:
    """Open a run's network and models, as the options say."""
    request = EvaluationRequest(device=choose_device(o.live.device), engine=o.live.engine)
    weights, threads = weights_files(o.live.weights), threads_for(o.live.threads)
    return open_player(run.folder, request, weights=weights, threads=threads)


def print_results(o: RunsOptions, text: str, values: dict[str, Any]) -> int:
    """Print a study's results and the path of its page; return exit code 0."""
    if o.json:
        return terminal.result(True, values)
    print(text)
    terminal.say(f"{Path(o.study_dir) / PAGE}")
    return 0
