"""Make sure that a run's network can be made, with the width that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec
import torch

from wsa.learn.configs.network import NetworkConfig
from wsa.learn.networks.matching import match_parameters
from wsa.learn.runs.config import OfflineRun, OnlineRun
from wsa.learn.runs.network import make_network, parameters_of
from wsa.learn.runs.setup.warm_start import warm_start

Run = TypeVar("Run", OfflineRun, OnlineRun)


def fit_network(
    config: Run, windows: Sequence[int], shapes: Sequence[tuple[int, ...]], match: int
) -> Run:
    """Choose the network's width, and check the fusion and the checkpoint against the models.

    Args:
        config: The run.
        windows: Number of frames that each of its models sees.
        shapes: Shape of an embedding of each of its models.
        match: Number of parameters to match with the network's width; 0 to keep the width.

    Returns:
        The run with the width whose number of parameters is closest to `match`.

    Raises:
        UsageError: If the fusion cannot take the models, the checkpoint does not fit, no width
            comes close to `match`, or the network has no width to choose.
    """
    if match:

        def count(network: NetworkConfig) -> int:
            tried = msgspec.structs.replace(config, network=network)
            return parameters_of(tried, windows, shapes).total

        recurrent = getattr(config.hyperparameters, "recurrent", False)
        matched = match_parameters(config.network, match, count, linear_heads=recurrent)
        config = msgspec.structs.replace(config, network=matched)
    with torch.device("meta"):  # Shapes suffice for the check.
        network = make_network(config, windows, shapes)
        if config.init:
            warm_start(config, network)
    return config
