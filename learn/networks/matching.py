"""Choose a fusion's width by how many parameters its network is to have.

Fusions differ in parameters by a factor of forty, and more of them alone may win a comparison.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.fusion.build import fusion_class
from wsa.store.common.errors import UsageError

WIDEST = 1 << 16
_FLAGS = {"size": "--fusion-size", "channels": "--fusion-channels", "hidden": "--hidden"}


def match_parameters(
    network: NetworkConfig,
    wanted: int,
    count: Callable[[NetworkConfig], int],
    *,
    linear_heads: bool = False,
) -> NetworkConfig:
    """The same network in the width that comes nearest to a number of parameters.

    Args:
        network: Its own width is where that is looked for; of several hidden layers the proportions stay.
        wanted: Trainable parameters, its head's among them.
        count: How many a network has; more with each step of its width.
        linear_heads: Whether the algorithm's heads are one linear map each, whatever `hidden` says.

    Raises:
        UsageError: The fusion has no width to choose, or it was chosen already, or no width comes
            near.
    """
    name, by = network.fusion.name, fusion_class(network.fusion.name).scaled_by
    if not by or (by == "hidden" and (linear_heads or not network.hidden)):
        raise UsageError(
            "bad-option",
            f"--match-parameters: --fusion {name} has no width of its own to choose"
            + (", and linear heads have none either." if by else ".")
            + " Leave it out, or choose another fusion.",
        )
    if by != "hidden" and getattr(network.fusion, by) != getattr(FusionConfig(), by):
        raise UsageError(
            "bad-option", f"--match-parameters chooses {_FLAGS[by]}: leave one of the two out."
        )

    def parameters(width: int) -> int:
        return count(widened(network, by, width))

    low, high = 1, 2
    while high < WIDEST and parameters(high) < wanted:
        low, high = high, 2 * high
    for limit, within in ((low, parameters(low) <= wanted), (high, parameters(high) >= wanted)):
        if not within:
            raise UsageError(
                "bad-option",
                f"--match-parameters {wanted:,}: with {_FLAGS[by]} {limit} --fusion {name} has "
                f"{parameters(limit):,} here, which is the nearest that it can have.",
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) <= wanted else (low, middle)
    return widened(network, by, min(low, high, key=lambda w: abs(parameters(w) - wanted)))


def widened(network: NetworkConfig, by: str, width: int) -> NetworkConfig:
    """A network in another width.

    Args:
        network: What it is otherwise.
        by: What sets the width: a field of `FusionConfig`, or `hidden`.
        width: Its new value; of several hidden layers that of the first.
    """
    if by != "hidden":
        fusion = msgspec.structs.replace(network.fusion, **{by: width})
        return msgspec.structs.replace(network, fusion=fusion)
    first = network.hidden[0]
    units = tuple(max(1, round(width * each / first)) for each in network.hidden)
    return msgspec.structs.replace(network, hidden=units)


def width_of(network: NetworkConfig) -> str:
    """The option that sets a fusion's width, as it is written."""
    by = fusion_class(network.fusion.name).scaled_by
    if by == "hidden":
        return f"{_FLAGS[by]} {','.join(map(str, network.hidden))}"
    return f"{_FLAGS[by]} {getattr(network.fusion, by)}"
