"""The configuration of a run, stored as its `config.json`: data, models, network, and training.

The tag `kind` distinguishes two kinds of run: an offline run learns from stored segments, an online
run from the games it plays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from wsa.learn.configs.algorithms import (
    AnyOffline,
    AnyOnline,
    BCConfig,
    EvaluationConfig,
    OfflineConfig,
    OnlineConfig,
    PPOConfig,
    load_algorithm,
)
from wsa.learn.configs.fusions import PIXELS
from wsa.learn.configs.network import NetworkConfig, unclipped
from wsa.learn.fusion.base import Inputs
from wsa.learn.fusion.build import fusion_class
from wsa.store.common import user_code
from wsa.store.common.errors import DamagedError, MissingError
from wsa.store.format.records import Protocol
from wsa.store.objects.flat_map import side_by_side

MEAN_CONTEXT = "mean"
FILE = "config.json"


# What an older wsa called values of an evaluation, and an option.
_OLD_RESULTS = {
    "updates": "trained",  # Even where it counted the steps of an online run.
    "human_normalised": "human_normalized",
    "random_human_normalised": "random_human_normalized",
}
_OLD_OPTIONS = {"normaliser": "normalizer"}


def rename_results(summary: dict[str, Any]) -> dict[str, Any]:
    """Name the values of a recorded evaluation as today."""
    return {_OLD_RESULTS.get(name, name): value for name, value in summary.items()}


def rename_options(options: dict[str, Any]) -> dict[str, Any]:
    """Name recorded options as today."""
    return {_OLD_OPTIONS.get(name, name): value for name, value in options.items()}


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The part of a run's configuration that offline and online runs share.

    Attributes:
        store: The store's URL.
        game: ALE game id.
        protocol: How the game was played in the data, and is played in evaluation.
        models: Keys of the fused models; empty if the network sees grayscale pixels.
        context: Key of the model that gives WSA's context, one of `models` or another; or `mean`.
        network: Architecture of the network.
        seed: Seed of the initialization, environments, and minibatches.
        segments: Segments of the game at the start of the run, so that a resumed run sees the same
            data. All models have encoded them.
        evaluation: Settings of the periodic evaluation games.
        init: Checkpoint of another run whose network this run starts from, or "".
        decoders: For each model whose code the network decodes, by key: the digest of the model's
            weights, by which the decoder is found.
    """

    store: str
    game: str
    protocol: Protocol
    models: tuple[str, ...]
    context: str
    network: NetworkConfig
    seed: int
    segments: tuple[str, ...]
    evaluation: EvaluationConfig = EvaluationConfig()
    init: str = ""
    decoders: dict[str, str] = {}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Keys of the input models: the fused ones, then one that gives only the context."""
        alone = self.context != MEAN_CONTEXT and self.context not in self.models
        return (*self.models, self.context) if alone else self.models

    def inputs_of(self, windows: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> Inputs:
        """Describe the network's inputs for one state.

        Args:
            windows: Number of frames that each of `inputs` sees. A model that sees several gives
                one embedding for a state. A model that gives only the context is read for the
                newest frame.
            shapes: Shape of an embedding of each of `inputs`.
        """
        fused = len(self.models)
        stacked = tuple(
            (
                self.network.frame_stack if window == 1 and i < fused else 1,
                *(shape if len(shape) == 3 else (math.prod(shape),)),
            )
            for i, (window, shape) in enumerate(zip(windows, shapes, strict=True))
        )
        context = None if self.context == MEAN_CONTEXT else self.inputs.index(self.context)
        decoders = tuple(self.decoders.get(key, "") for key in self.inputs)
        return Inputs(stacked, context, fused, decoders if any(decoders) else ())


class OfflineRun(RunConfig, frozen=True, tag_field="kind", tag="offline"):
    """A run that learns from stored segments."""

    hyperparameters: AnyOffline

    unit: ClassVar[str] = "updates"

    @property
    def total(self) -> int:
        """Number of updates to train for."""
        return self.hyperparameters.updates

    @property
    def last_step(self) -> int:
        """Update at which training ends."""
        return self.total


class OnlineRun(RunConfig, frozen=True, tag_field="kind", tag="online"):
    """A run that learns from the games it plays, and looks frames up in stored segments.

    Attributes:
        hyperparameters: Hyperparameters; their type selects the algorithm.
        shapes: Shape of an embedding of each of `inputs`.
        parameters: Approximate number of parameters of the end-to-end network; 0 for CleanRL's
            widths. 0 for other networks.
        record: 12 hex digits that name the run's segments in the store; "" if it stores none.
        env_groups: Number of groups of environments that are played in turn. Runs from before this
            field existed have 1, so that resuming does not change how they play.
        windows: Number of frames that each of `inputs` sees; not written if all are 1.
    """

    hyperparameters: AnyOnline
    shapes: tuple[tuple[int, ...], ...]
    parameters: int
    record: str = ""
    env_groups: int = 1
    windows: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET

    unit: ClassVar[str] = "steps"

    @property
    def total(self) -> int:
        """Number of steps asked for."""
        return self.hyperparameters.total_timesteps

    @property
    def last_step(self) -> int:
        """Step at which training ends: the last whole iteration within `total`."""
        return self.hyperparameters.last_step

    @property
    def model_windows(self) -> tuple[int, ...]:
        """Number of frames that each of `inputs` sees."""
        return self.windows or (1,) * len(self.shapes)

    @property
    def end_to_end(self) -> bool:
        """Whether the network sees pixels."""
        return self.network.fusion.name == PIXELS

    @property
    def mixes_stored(self) -> bool:
        """Whether minibatches contain stored data."""
        return self.hyperparameters.mixes_stored

    @property
    def columns(self) -> list[slice]:
        """Slice of a row that holds each model's embedding."""
        return side_by_side(self.shapes)


def read_config(folder: Path) -> OfflineRun | OnlineRun:
    """Read the configuration of the run in `folder`.

    Raises:
        MissingError: If there is no run.
        DamagedError: If its configuration cannot be read, or a newer wsa started it.
    """
    path = folder / FILE
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(
            "no-run",
            f"{folder} is not the folder of a run: it has no config.json. "
            "Give a folder that 'wsa learn' made.",
        ) from None
    try:
        values = _upgraded(msgspec.json.decode(data, type=dict[str, Any]))
        custom = _own_algorithm(values, str(path))
        config = msgspec.convert(values, OfflineRun | OnlineRun)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedError(
            "bad-record",
            f"{path} cannot be read ({error}): a newer wsa began this run, or the file was changed. "
            "Update wsa, or start another run; no file was changed.",
        ) from None
    if user_code.is_name(config.network.fusion.name):  # Check here, before its models are opened.
        fusion_class(config.network.fusion.name, str(path))
    return msgspec.structs.replace(config, hyperparameters=custom) if custom else config


def _own_algorithm(values: dict[str, Any], path: str) -> OfflineConfig | OnlineConfig | None:
    """Load the hyperparameters of a user's own algorithm; a placeholder replaces them in `values`.

    Raises:
        MissingError: If the user of this process did not name it, or it cannot be imported.
        ConflictError: If it is not an algorithm.
    """
    learner = values.get("hyperparameters")
    if not isinstance(learner, dict):
        return None
    online = values["kind"] == "online"
    name = learner.get("algo" if online else "type")
    if not isinstance(name, str) or not user_code.is_name(name):
        return None
    hyperparameters = msgspec.convert(learner, load_algorithm(name, path))
    values["hyperparameters"] = msgspec.to_builtins(PPOConfig() if online else BCConfig())
    return hyperparameters


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Convert a configuration that wsa 0.1 wrote to today's form.

    In wsa 0.1 an offline run had no `kind`, its CQL was a DQN with an alpha, the frequency of
    evaluation was a hyperparameter, and standardized embeddings were not clipped. Its fusion's
    `normalizer` had a British name.
    """
    values.setdefault("kind", "offline")
    if isinstance(network := values.get("network"), dict):
        network.setdefault("clip_embeddings", unclipped(network.get("normalize", "standard")))
        if isinstance(fusion := network.get("fusion"), dict):
            network["fusion"] = rename_options(fusion)
    learner = values.get("hyperparameters")
    if isinstance(learner, dict):
        played = {name for name in EvaluationConfig.__struct_fields__ if name in learner}
        if played:
            values.setdefault("evaluation", {name: learner.pop(name) for name in played})
        if values["kind"] == "offline" and learner.get("type") == "dqn":
            if learner.get("cql_alpha", 0):
                learner["type"] = "cql"
            else:
                learner.pop("cql_alpha", None)
    return values


def flat_settings(part: msgspec.Struct) -> Iterator[tuple[str, Any]]:
    """Names and values of a part of a configuration; those of a part within it have both names."""
    for name, value in msgspec.to_builtins(part).items():
        if isinstance(value, dict):
            yield from ((f"{name} {inner}", v) for inner, v in value.items())
        else:
            yield name, value
