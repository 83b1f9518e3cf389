"""What a run is: the data, the models, the network and how it is trained; its `config.json`.

There are two kinds of run, told apart by the tag `kind`: one learns from stored segments, the other
from what it plays. All else is the same of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    OnlineDQNConfig,
    PPOConfig,
    load_algorithm,
)
from wsa.learn.configs.fusions import PIXELS
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.fusion.base import Inputs
from wsa.learn.fusion.build import fusion_class
from wsa.store.common import user_code
from wsa.store.common.errors import DamagedError, MissingError
from wsa.store.format.records import Protocol
from wsa.store.objects.flat_map import side_by_side

MEAN_CONTEXT = "mean"
FILE = "config.json"


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run is.

    Attributes:
        store: The store's URL.
        game: ALE game id.
        protocol: How the game was played, and evaluation is.
        models: Keys of the models that are fused; none where the network sees grey pixels.
        context: Key of the model that gives WSA's context, one of them or another; or `mean`.
        network: What is trained.
        seed: Of initialization, environments and draws.
        segments: Segments of the game that the run was started with, so that a continued run sees the
            same; all models have encoded them.
        evaluation: Games to play every so often.
        init: Checkpoint of another run whose network this one begins from, or "".
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

    @property
    def inputs(self) -> tuple[str, ...]:
        """Keys of the models that the network reads: those fused, then one for the context alone."""
        alone = self.context != MEAN_CONTEXT and self.context not in self.models
        return (*self.models, self.context) if alone else self.models

    def inputs_of(self, windows: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> Inputs:
        """What the network reads of a state.

        Args:
            windows: Frames that each of `inputs` looks at; one that looks at several gives one
                embedding for a state. Of one that gives the context alone the newest frame is read.
            shapes: Of each one's embedding.
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
        return Inputs(stacked, context, fused)


class OfflineRun(RunConfig, frozen=True, tag_field="kind", tag="offline"):
    """A run that learns from stored segments.

    Attributes:
        hyperparameters: As the learner takes them; which they are is the algorithm.
    """

    hyperparameters: AnyOffline

    unit: ClassVar[str] = "updates"

    @property
    def total(self) -> int:
        """Updates that it is trained for."""
        return self.hyperparameters.updates


class OnlineRun(RunConfig, frozen=True, tag_field="kind", tag="online"):
    """A run that learns from what it plays, and looks frames up in stored segments.

    Attributes:
        hyperparameters: As the learner takes them; which they are is the algorithm.
        shapes: Shape of an embedding by each of `inputs`.
        parameters: Of the end-to-end network, about; 0 for CleanRL's. Of other networks, 0.
        record: 12 hex digits that name what it plays in the store; "" if that is not kept.
        windows: Frames that each of `inputs` looks at; not written where each looks at one.
        env_groups: Groups of environments that are played in turn; 1 in runs of before there were
            any, which so are played on as they were.
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
        """Steps that it is trained for."""
        return self.hyperparameters.total_timesteps

    @property
    def looks(self) -> tuple[int, ...]:
        """Frames that each of `inputs` looks at."""
        return self.windows or (1,) * len(self.shapes)

    @property
    def end_to_end(self) -> bool:
        """Whether the network sees pixels."""
        return self.network.fusion.name == PIXELS

    @property
    def mixes_stored(self) -> bool:
        """Whether any batch holds stored data."""
        learner = self.hyperparameters
        return isinstance(learner, OnlineDQNConfig) and learner.mixes_stored

    @property
    def columns(self) -> list[slice]:
        """Where each model's numbers stand in a row."""
        return side_by_side(self.shapes)


def read_config(folder: Path) -> OfflineRun | OnlineRun:
    """What the run in `folder` is.

    Raises:
        MissingError: There is no run.
        DamagedError: Its configuration cannot be read, or a newer wsa began it.
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
        own = _own_algorithm(values, str(path))
        config = msgspec.convert(values, OfflineRun | OnlineRun)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedError(
            "bad-record",
            f"{path} cannot be read ({error}): a newer wsa began this run, or the file was changed. "
            "Update wsa, or start another run; no file was changed.",
        ) from None
    if user_code.is_name(config.network.fusion.name):  # Now, not once its models were opened.
        fusion_class(config.network.fusion.name, str(path))
    return msgspec.structs.replace(config, hyperparameters=own) if own else config


def _own_algorithm(values: dict[str, Any], path: str) -> OfflineConfig | OnlineConfig | None:
    """Hyperparameters of a user's own algorithm, for which others then stand in the values.

    Raises:
        MissingError: The user of this process did not name it, or it is not here.
        ConflictError: It is no algorithm.
    """
    learner = values.get("hyperparameters")
    if not isinstance(learner, dict):
        return None
    online = values["kind"] == "online"
    name = learner.get("algo" if online else "type")
    if not isinstance(name, str) or not user_code.is_name(name):
        return None
    own = msgspec.convert(learner, load_algorithm(name, path))
    values["hyperparameters"] = msgspec.to_builtins(PPOConfig() if online else BCConfig())
    return own


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """What wsa 0.1 wrote, as it is written today.

    Then an offline run had no `kind`, its CQL was a DQN with an alpha, and how often games are
    played was a hyperparameter.
    """
    values.setdefault("kind", "offline")
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
