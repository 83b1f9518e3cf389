"""Start a run from another's network, with the same models, fewer, or more.

Tensors with the same name and model in both are copied. A new model's adapters are fresh; those of
a dropped model are discarded. Everything that serves all models is copied unchanged, including
WSA's scorer: with its new models masked, the new network equals the old one to the last bit. The
optimizer starts fresh, because Adam's averages belong to losses that the changed network does not
have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from wsa.learn.configs.fusions import FUSIONS
from wsa.learn.fusion.build import fusion_class, why_all_models
from wsa.learn.networks.heads import Torso
from wsa.learn.runs.config import RunConfig, read_config
from wsa.learn.training import checkpoint
from wsa.store.common import names
from wsa.store.common.errors import UsageError


def change_models(
    models: Sequence[str], add: Sequence[str], drop: set[str], fusion: str
) -> list[str]:
    """Model keys after dropping some and appending others.

    Raises:
        UsageError: If a model to add is already there, none is left, or the fusion needs all its
            models.
    """
    if (add or drop) and not fusion_class(fusion).per_model:
        able = ", ".join(name for name in FUSIONS if fusion_class(name).per_model)
        raise UsageError(
            f"--add and --drop: {why_all_models(fusion)}, so a trained head cannot continue with "
            f"other models. Use one of {able}."
        )
    remaining = [key for key in models if key not in drop]
    for key in add:
        if key in remaining:
            raise UsageError(f"--add {key}: the run already has this model. Leave it out.")
        remaining.append(key)
    if not remaining:
        raise UsageError("--drop leaves no model. Keep at least one, or --add another.")
    return remaining


def warm_start(config: RunConfig, network: Any) -> list[int]:
    """Initialize a network from `config.init`: all of it, or the parts that both have.

    Returns:
        Indices of the inputs that the other run does not have.

    Raises:
        UsageError: If the two networks do not fit.
        DamagedError: If the checkpoint is damaged.
    """
    path = Path(config.init)
    folder = path.parent.parent
    before = read_config(folder)
    if bool(config.inputs) != bool(before.inputs):
        raise UsageError(
            f"--init {folder}: one of the two networks sees pixels, the other embeddings. Start "
            "from another run, or from scratch."
        )
    _check_sizes(config, before, folder)
    transfer(network, network.torso, config.inputs, path, before.inputs)
    return [i for i, key in enumerate(config.inputs) if key not in before.inputs]


def _check_sizes(config: RunConfig, before: RunConfig, folder: Path) -> None:
    """Refuse options with which the networks' tensors would not have the same shapes.

    Raises:
        UsageError: If there is one; it names the option.
    """
    for key in before.inputs:
        if key in config.inputs and config.decoders.get(key) != before.decoders.get(key):
            alias = names.key_alias(key)
            raise UsageError(
                f"--decode {alias}: the network of --init {folder} takes the code of {alias} as it is, so "
                "its weights do not fit decoded masks. Leave out --decode, or start a new run without "
                "--init."
            )
    here, there = (run.protocol for run in (config, before))
    if len(here.actions) != len(there.actions):
        raise UsageError(
            f"--protocol {here.name}: {config.game} has {len(here.actions)} actions under it, and the "
            f"network of --init {folder} chooses among {len(there.actions)}, those of {before.game} "
            f"under {there.name}. Use a game and protocol with as many, or start a new run without "
            "--init."
        )


def transfer(
    network: nn.Module, torso: Torso, models: Sequence[str], path: Path, before: Sequence[str]
) -> list[str]:
    """Copy a checkpoint's network into another, model by model.

    Args:
        network: The new network, which contains `torso`.
        torso: The new network's torso.
        models: Keys of its inputs: the fused models, then one that gives only the context; empty if
            it sees grayscale pixels.
        path: The checkpoint; its network is called `online`.
        before: Keys of the inputs of the checkpoint's network.

    Returns:
        Names of the tensors that the checkpoint lacks; they keep their initial values.

    Raises:
        UsageError: If the two networks do not fit.
        DamagedError: If the checkpoint is damaged.
    """
    old = checkpoint.read(path)[0]
    per_model = torso.fusion.per_model if isinstance(torso, Torso) else ()
    lists = ["torso.normalizers", *(f"torso.fusion.{name}" for name in per_model)]
    fresh = []
    for name, tensor in network.state_dict().items():
        source = old.get(f"online.{_old_name(name, lists, models, before)}")
        if source is None:
            fresh.append(name)
        elif source.shape != tensor.shape:
            raise UsageError(
                f"--init {path.parent.parent}: {name} has shape {tuple(source.shape)} there and "
                f"{tuple(tensor.shape)} here. Start from a run of the same game and protocol, with "
                "the same algorithm and network."
            )
        else:
            tensor.copy_(source)
    return fresh


def _old_name(name: str, lists: list[str], models: Sequence[str], before: Sequence[str]) -> str:
    """Name of a tensor in the old network, where models are ordered differently; "" if new."""
    for prefix in lists:
        if name.startswith(prefix + "."):
            index, *rest = name[len(prefix) + 1 :].split(".")  # No rest in a list of parameters.
            key = models[int(index)]
            return ".".join([prefix, str(before.index(key)), *rest]) if key in before else ""
    return name
