"""The registry of fusions, their switches, and the authors' two variants as presets.

To add a fusion, write its class (`wsa.learn.fusion.base.Fusion`) and add a line to `FUSIONS`. A
user's own fusion needs no line (`module:Class`). A class is imported only when it is built, so this
file needs no torch.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from tyro.conf import Fixed, Suppress, arg

from wsa.store.common import user_code
from wsa.store.common.errors import UsageError
from wsa.store.common.ranges import COUNT, POSITIVE, Range, check_ranges
from wsa.store.configs import OptionalFloat

FUSIONS = {
    "wsa": "wsa.learn.fusion.attention:WSA",
    "lin": "wsa.learn.fusion.baselines:LIN",
    "fix": "wsa.learn.fusion.baselines:FIX",
    "cnn": "wsa.learn.fusion.baselines:CNN",
    "mix": "wsa.learn.fusion.baselines:MIX",
    "res": "wsa.learn.fusion.baselines:RES",
    "dpa": "wsa.learn.fusion.attention:DPA",
    "mean": "wsa.learn.fusion.ablations:Mean",
    "uniform": "wsa.learn.fusion.ablations:Uniform",
    "single": "wsa.learn.fusion.ablations:Single",
    "unshared": "wsa.learn.fusion.ablations:Unshared",
    "moe": "wsa.learn.fusion.ablations:MoE",
}

# No fusion: an end-to-end network on grayscale pixels, which only online learning can train.
PIXELS = "nature"


class FusionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Switches of the fusion. Only WSA and its controls have a scorer."""

    name: Annotated[str, Fixed, Suppress] = "wsa"
    """A key of `FUSIONS`, or `module:Class` for a user's own."""
    size: Annotated[int, COUNT, arg(name="fusion-size")] = 256
    """Size of an adapted embedding; for res, of the reservoir."""
    layers: Annotated[int, COUNT, arg(name="fusion-layers")] = 1
    """Number of convolutions in cnn."""
    channels: Annotated[int, COUNT, arg(name="fusion-channels")] = 32
    """Channels of the convolutions in cnn and mix."""
    score_activation: Literal["none", "relu"] = "none"
    """Activation of the scores; with relu, as in the authors' code, no model can be turned off."""
    normalizer: Literal["softmax", "relu-sum", "sigmoid"] = "softmax"
    """How scores become weights: softmax; relu-sum, each ReLU over their sum, as in the published code; or sigmoid."""
    layer_norm: bool = True
    """Whether adapters normalize before their ReLU."""
    temperature: Annotated[OptionalFloat, POSITIVE] = None
    """Divide scores by this number. If not given: the square root of --fusion-size; for dpa, 1."""
    scorer_hidden: bool = True
    """Whether the scorer has a hidden layer; the authors' scorer is one linear map."""
    dropout: Annotated[float, Range(0, 1, below=True)] = 0.0
    """Dropout rate for adapted embeddings while training."""
    init: Annotated[Literal["torch", "orthogonal", "small"], arg(name="weight-init")] = "torch"
    """Initialization of weights. torch: PyTorch's own. small: gain 0.01 in adapters and 1 in the scorer.
    orthogonal: gain sqrt(2) and no bias, which the authors' RL library imposed."""

    def __post_init__(self) -> None:
        flags = {name: f"fusion-{name}" for name in ("size", "layers", "channels")}
        check_ranges(self, flags)


# Flaws of the authors' code, by preset; docs/explain/wsa.md explains each.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # The thesis: SB3, four stacked frames.
    "thesis": {
        "score_activation": "relu",
        "normalizer": "softmax",
        "temperature": 1.0,
        "layer_norm": False,
        "scorer_hidden": False,
        "init": "orthogonal",
    },
    # The published fork, almost certainly the code of the paper.
    "paper": {
        "score_activation": "relu",
        "normalizer": "relu-sum",
        "temperature": 1.0,
        "layer_norm": True,
        "scorer_hidden": False,
        "init": "small",
    },
}


# Fusions that learn weights without the authors' scorer. Presets leave their softmax as it is.
_SOFTMAX = ("dpa", "unshared", "moe")
SCORING = ("score_activation", "normalizer")


def is_read(switch: str, fusions: Sequence[str]) -> bool:
    """Return whether a switch changes one of these fusions; a user's own may read any."""
    if not set(fusions) <= {*FUSIONS, PIXELS}:
        return True
    built_in = [pkgutil.resolve_name(FUSIONS[name]) for name in fusions if name in FUSIONS]
    return any(switch in fusion.options for fusion in built_in)


def preset_switches(preset: str, name: str) -> dict[str, Any]:
    """Return the switches that a preset sets for a fusion; scoring only if it has such a scorer."""
    switches = PRESETS[preset]
    if name in _SOFTMAX:
        return {k: v for k, v in switches.items() if k not in SCORING}
    return switches


def as_preset(config: FusionConfig, preset: str, name: str) -> FusionConfig:
    """Adapt the switches that a grid's fusions share to one fusion: undo preset scoring that it lacks."""
    own, default = preset_switches(preset, name), FusionConfig()
    theirs = {
        switch: getattr(default, switch)
        for switch, value in PRESETS[preset].items()
        if switch not in own and getattr(config, switch) == value
    }
    return msgspec.structs.replace(config, **theirs)


def make_fusion_config(name: str = "wsa", preset: str = "default", **switches: Any) -> FusionConfig:
    """Return a preset's configuration of a fusion, with `switches` instead of the preset's.

    Raises:
        UsageError: If the fusion or the preset is unknown, or a switch is out of range.
    """
    check_own_or("--fusion", name, list(FUSIONS), "module:Class")
    check_choice("--fusion-preset", preset, list(PRESETS))
    return FusionConfig(name, **{**preset_switches(preset, name), **switches})


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Reject a value that is not among the choices, and name the nearest one.

    Raises:
        UsageError: If it is not among them.
    """
    if value not in choices:
        near = difflib.get_close_matches(value, choices, 1)
        raise UsageError(
            f"{option} {value}: there is no such choice. "
            + (f"Did you mean {near[0]}? " if near else "")
            + f"Choose from {', '.join(choices)}."
        )


def check_own_or(option: str, value: str, choices: Sequence[str], own: str) -> None:
    """Reject a value that is neither a choice nor spelled like a user's own class.

    Raises:
        UsageError: If it is neither.
    """
    if not user_code.is_name(value):
        with_colon = ":".join(value.rsplit(".", 1))
        if user_code.is_name(with_colon):
            raise UsageError(f"{option} {value}: write {own}. Did you mean {with_colon}?")
        check_choice(option, value, [*choices, own])
