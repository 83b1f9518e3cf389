"""Choose a fusion's width so that its network has a given number of parameters.

Without this, fusions differ in parameters by a factor of forty, which alone may decide a
comparison.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.fusion.build import fusion_class
from wsa.store.common.errors import ConflictError, UsageError

WIDEST = 1 << 16
_FLAGS = {
    "size": "--fusion-size",
    "channels": "--fusion-channels",
    "layers": "--fusion-layers",
    "hidden": "--hidden",
}


def match_parameters(
    network: NetworkConfig,
    wanted: int,
    count: Callable[[NetworkConfig], int],
    *,
    linear_heads: bool = False,
) -> NetworkConfig:
    """Return the network with the width whose number of parameters is nearest to a target.

    Args:
        network: The network to resize. Several hidden layers keep their proportions.
        wanted: Target number of trainable parameters, including the head's.
        count: Returns a network's number of parameters, which must grow with its width.
        linear_heads: Whether the algorithm's heads are single linear layers and ignore `hidden`.

    Raises:
        UsageError: If the fusion has no width to choose, the user already set that width, or no
            width reaches the target.
        ConflictError: If a user's fusion names something else as its width.
    """
    name, by = network.fusion.name, fusion_class(network.fusion.name).scaled_by
    if by and by not in _FLAGS:
        raise ConflictError(
            "user-code", f"{name} has scaled_by = {by!r}. Choose from {', '.join(_FLAGS)}."
        )
    if not by or (by == "hidden" and (linear_heads or not network.hidden)):
        raise UsageError(
            f"--match-parameters: --fusion {name} has no width of its own to choose"
            + (", and linear heads have none either." if by else ".")
            + " Leave it out, or choose another fusion."
        )
    if by != "hidden" and getattr(network.fusion, by) != getattr(FusionConfig(), by):
        raise UsageError(f"--match-parameters chooses {_FLAGS[by]}: leave one of the two out.")

    def parameters(width: int) -> int:
        return count(widened(network, by, width))

    low, high = 1, 2
    while high < WIDEST and parameters(high) < wanted:
        low, high = high, 2 * high
    for limit, in_range in ((low, parameters(low) <= wanted), (high, parameters(high) >= wanted)):
        if not in_range:
            raise UsageError(
                f"--match-parameters {wanted:,}: with {_FLAGS[by]} {limit} --fusion {name} has "
                f"{parameters(limit):,} here, which is the closest that it can have."
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) <= wanted else (low, middle)
    return widened(network, by, min(low, high, key=lambda w: abs(parameters(w) - wanted)))


def widened(network: NetworkConfig, by: str, width: int) -> NetworkConfig:
    """Return the network with another width.

    Args:
        network: The network to resize.
        by: What sets the width: a field of `FusionConfig`, or `hidden`.
        width: The new width; with several hidden layers, that of the first.
    """
    if by != "hidden":
        fusion = msgspec.structs.replace(network.fusion, **{by: width})
        return msgspec.structs.replace(network, fusion=fusion)
    first = network.hidden[0]
    units = tuple(max(1, round(width * each / first)) for each in network.hidden)
    return msgspec.structs.replace(network, hidden=units)


def width_of(network: NetworkConfig) -> str:
    """Return the option that sets a fusion's width, as typed on the command line."""
    by = fusion_class(network.fusion.name).scaled_by
    if by == "hidden":
        return f"{_FLAGS[by]} {','.join(map(str, network.hidden))}"
    return f"{_FLAGS[by]} {getattr(network.fusion, by)}"
