"""Build the fusion that a configuration names."""

from __future__ import annotations

import importlib
from math import sqrt

from wsa.learn.configs.fusions import FUSIONS, FusionConfig
from wsa.learn.fusion.base import Adapted, Fusion, Inputs, initialise
from wsa.store.common.errors import UsageError


def fusion_class(name: str) -> type[Fusion]:
    """The class of a fusion, a key of `FUSIONS`."""
    module, _, attribute = FUSIONS[name].partition(":")
    found: type[Fusion] = getattr(importlib.import_module(module), attribute)
    return found


def make_fusion(config: FusionConfig, inputs: Inputs) -> Fusion:
    """Build a fusion, its weights drawn from torch's generator.

    Raises:
        UsageError: It cannot take these shapes, or has no use for the context that is given.
    """
    made = fusion_class(config.name)(inputs, config)
    if inputs.context is not None and not made.conditioned:
        raise UsageError(
            "bad-option",
            f"--fusion {config.name} is conditioned on nothing: leave out --context.",
        )
    if config.init == "orthogonal":
        initialise(made, sqrt(2))
    elif config.init == "small" and isinstance(made, Adapted):
        initialise(made.adapters, 0.01)
        if made.context is not None:
            initialise(made.context, 0.01)
    return made
