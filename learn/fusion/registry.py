"""Every fusion by name, behind one signature, and the authors' two variants as presets."""

from __future__ import annotations

import difflib
from math import sqrt
from typing import Any

from wsa.learn.fusion.ablations import Mean, MoE, Single, Uniform, Unshared
from wsa.learn.fusion.attention import DPA, WSA
from wsa.learn.fusion.base import Adapted, Fusion, FusionConfig, Inputs, initialise
from wsa.learn.fusion.baselines import CNN, FIX, LIN, MIX, RES
from wsa.store.common.errors import UsageError

NAMES: dict[str, type[Fusion]] = {
    "wsa": WSA,
    "lin": LIN,
    "fix": FIX,
    "cnn": CNN,
    "mix": MIX,
    "res": RES,
    "dpa": DPA,
    "mean": Mean,
    "uniform": Uniform,
    "single": Single,
    "unshared": Unshared,
    "moe": MoE,
}

# The faults of the authors' code, by name; docs/explain/wsa.md says what each does.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # The thesis: SB3, four stacked frames.
    "thesis": {
        "score_activation": "relu",
        "normaliser": "softmax",
        "layer_norm": False,
        "scorer_hidden": False,
        "init": "orthogonal",
    },
    # The published fork, almost surely the paper's.
    "paper": {
        "score_activation": "relu",
        "normaliser": "relu-sum",
        "layer_norm": True,
        "scorer_hidden": False,
        "init": "small",
    },
}


def make_config(name: str = "wsa", preset: str = "default", **switches: Any) -> FusionConfig:
    """A fusion's configuration: the preset's, with what is given in its place.

    Raises:
        UsageError: Nobody knows the fusion or the preset, or a switch is out of range.
    """
    for value, known, flag in (
        (name, list(NAMES), "--fusion"),
        (preset, list(PRESETS), "--fusion-preset"),
    ):
        if value not in known:
            near = difflib.get_close_matches(value, known, 1)
            raise UsageError(
                "bad-option",
                f"{flag} {value}: there is no such one. "
                + (f"Did you mean {near[0]}? " if near else "")
                + f"Choose from {', '.join(known)}.",
            )
    return FusionConfig(name, **{**PRESETS[preset], **switches})


def make_fusion(config: FusionConfig, inputs: Inputs) -> Fusion:
    """Build a fusion, its weights drawn from torch's generator.

    Raises:
        UsageError: It cannot take these shapes, or has no use for the context that is given.
    """
    made = NAMES[config.name](inputs, config)
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
