"""Build the fusion that a configuration names."""

from __future__ import annotations

import pkgutil
from math import sqrt

import torch

from wsa.learn.configs.fusions import FUSIONS, FusionConfig, check_own_or
from wsa.learn.fusion.base import Adapted, Fusion, Inputs, initialize
from wsa.store.common import user_code
from wsa.store.common.errors import ConflictError, UsageError, WsaError


def fusion_class(name: str, recorded_in: str = "") -> type[Fusion]:
    """Return the class of a fusion.

    Args:
        name: A key of `FUSIONS`, or the `module:Class` of a user's fusion, which is imported only
            if the user typed it on the command line.
        recorded_in: File that names the fusion, for messages.

    Raises:
        UsageError: If there is no such fusion.
        MissingError: If a user's fusion cannot be found, or the user did not type its name.
        ConflictError: If the object is not a `Fusion`.
    """
    if user_code.is_name(name):
        own: type[Fusion] = user_code.load_typed(name, Fusion, "--fusion", recorded_in)
        return own
    check_own_or("--fusion", name, list(FUSIONS), "module:Class")
    built_in: type[Fusion] = pkgutil.resolve_name(FUSIONS[name])
    return built_in


def weighing() -> list[str]:
    """Return the names of the fusions that learn a weight for each model."""
    return [name for name in FUSIONS if fusion_class(name).weighs]


def why_all_models(name: str) -> str:
    """Return why the models of a fusion without `per_model` cannot change, for messages."""
    if user_code.is_name(name):
        return f"{name} has no per_model"
    return f"with --fusion {name}, the length of the state vector depends on the models"


def make_fusion(config: FusionConfig, inputs: Inputs) -> Fusion:
    """Build a fusion, drawing its weights from torch's global generator.

    Raises:
        UsageError: If it cannot take these shapes, or takes no context and one is given.
    """
    cls = fusion_class(config.name)
    try:
        fusion = cls(inputs, config)
    except WsaError:
        raise
    except user_code.ERRORS as error:
        if not user_code.is_name(config.name):
            raise
        raise user_code.raised(config.name, error) from error
    if not hasattr(fusion, "out_features"):
        raise ConflictError(
            "user-code",
            f"{config.name} has no out_features. Set it to the length of the state vector.",
        )
    # On the meta device, which only counts parameters, a step that depends on data would fail.
    if user_code.is_name(config.name) and torch.get_default_device().type != "meta":
        _try(fusion, config.name, inputs)
    if inputs.context is not None and not fusion.conditioned:
        raise UsageError(f"--fusion {config.name} uses no context: leave out --context.")
    if config.init == "orthogonal":
        initialize(fusion, sqrt(2))
    elif config.init == "small" and isinstance(fusion, Adapted):
        initialize(fusion.adapters, 0.01)
        if fusion.context is not None:
            initialize(fusion.context, 0.01)
    return fusion


def _try(fusion: Fusion, name: str, inputs: Inputs) -> None:
    """Run a user's fusion once, so that its faults are found before a game is played.

    Raises:
        ConflictError: If it raises, or its state vector does not have the length that it states.
    """
    zeros = [torch.zeros(2, *shape) for shape in inputs.shapes]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            state, _ = fusion.eval()(zeros)
            shape = tuple(state.shape)
        except user_code.ERRORS as error:
            raise user_code.raised(name, error) from error
    fusion.train()
    if shape != (2, fusion.out_features):
        raise ConflictError(
            "user-code",
            f"{name} returned a state vector of shape {shape} for two states, but its out_features "
            f"is {fusion.out_features}. Correct one of them.",
        )
