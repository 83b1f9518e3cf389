"""Begin a run from another's network, with the same models, fewer, or more of them.

Whatever has the same name and model in both is copied; a new model's adapters are fresh, and those
of a dropped one stay behind. Nothing that serves all models changes, WSA's scorer least of all: the
new network with its new models masked is the old one, to the last bit. The optimizer starts fresh,
since Adam's averages are of losses that the changed network does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from wsa.learn.configs.fusions import FUSIONS
from wsa.learn.fusion.build import fusion_class
from wsa.learn.networks.heads import Torso
from wsa.learn.runs.config import RunConfig, read_config
from wsa.learn.training import checkpoint
from wsa.store.common import names
from wsa.store.common.errors import UsageError


def change_models(
    models: Sequence[str], add: Sequence[str], drop: Sequence[str], fusion: str
) -> list[str]:
    """Model keys after some are dropped and others added behind them.

    Args:
        models: Keys of the run that is begun from.
        add: Keys to add.
        drop: Aliases or keys to drop.
        fusion: Of that run.

    Raises:
        UsageError: A model to drop is not there, one to add is, none is left, or the fusion is for
            one set of models alone.
    """
    if (add or drop) and not fusion_class(fusion).per_model:
        able = ", ".join(name for name in FUSIONS if fusion_class(name).per_model)
        raise UsageError(
            "bad-option",
            f"--add and --drop: the state vector of --fusion {fusion} has a length that "
            "depends on its models, so a head trained on some cannot continue with others. Use one of "
            f"{able}.",
        )
    kept = list(models)
    for name in drop:
        fitting = [key for key in kept if name in (key, names.key_alias(key))]
        if len(fitting) != 1:
            raise UsageError(
                "bad-option",
                f"--drop {name}: the run's models are {', '.join(models)}. Name one of them, by "
                "its key where an alias fits several.",
            )
        kept.remove(fitting[0])
    for key in add:
        if key in kept:
            raise UsageError("bad-option", f"--add {key}: the run has it already. Leave it out.")
        kept.append(key)
    if not kept:
        raise UsageError("bad-option", "--drop leaves no model. Keep one, or --add another.")
    return kept


def warm_start(config: RunConfig, network: Any) -> None:
    """Let a network begin as `config.init` says: wholly, or with what it has in common.

    Raises:
        UsageError: The two networks do not fit.
        DamagedError: The checkpoint is damaged.
    """
    path = Path(config.init)
    folder = path.parent.parent
    before = read_config(folder).inputs
    if bool(config.inputs) != bool(before):
        raise UsageError(
            "bad-option",
            f"--init {folder}: one of the two networks sees pixels, the other embeddings. Start "
            "from another run, or from scratch.",
        )
    transfer(network, network.torso, config.inputs, path, before)


def transfer(
    network: nn.Module, torso: Torso, models: Sequence[str], path: Path, before: Sequence[str]
) -> list[str]:
    """Copy a checkpoint's network into another, model by model.

    Args:
        network: The new network, `torso` in it.
        torso: Its torso.
        models: Keys of its inputs: those fused, then one that gives the context alone; none where it
            sees grey pixels.
        path: The checkpoint; its network is `online`.
        before: Keys of its network's inputs.

    Returns:
        Names of what was not in the checkpoint and is as it was made.

    Raises:
        UsageError: The two networks do not fit.
        DamagedError: The checkpoint is damaged.
    """
    old = checkpoint.read(path)[0]
    per_model = torso.fusion.per_model if isinstance(torso, Torso) else ()
    lists = ["torso.normalisers", *(f"torso.fusion.{name}" for name in per_model)]
    fresh = []
    for name, tensor in network.state_dict().items():
        source = old.get(f"online.{_before(name, lists, models, before)}")
        if source is None:
            fresh.append(name)
        elif source.shape != tensor.shape:
            raise UsageError(
                "bad-option",
                f"--init {path.parent.parent}: {name} has shape {tuple(source.shape)} there and "
                f"{tuple(tensor.shape)} here. Begin from a run of the same game and protocol, with "
                "the same network.",
            )
        else:
            tensor.copy_(source)
    return fresh


def _before(name: str, lists: list[str], models: Sequence[str], before: Sequence[str]) -> str:
    """What a tensor is called where models stand in another order; "" of a model that is new."""
    for prefix in lists:
        if name.startswith(prefix + "."):
            at, _, rest = name[len(prefix) + 1 :].partition(".")
            key = models[int(at)]
            return f"{prefix}.{before.index(key)}.{rest}" if key in before else ""
    return name
