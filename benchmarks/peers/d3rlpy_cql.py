"""Train d3rlpy's DiscreteCQL on exported transitions, with wsa's hyperparameters.

    DIR/d3rlpy/bin/python benchmarks/peers/d3rlpy_cql.py REQUEST

REQUEST is JSON: `config` (wsa's `CQLConfig`) and `data`, an .npz file with `observations`
(N, 1, 84, 84) uint8, `actions` (N,), `rewards` (N,), `terminals` (N,), and `timeouts` (N,). States
are stacks of 4 frames, put together when they are drawn, as in wsa.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def cql(config: dict[str, Any]) -> dict[str, Any]:
    """Translate wsa's `CQLConfig` to the arguments of `d3rlpy.algos.DiscreteCQLConfig`."""
    return {
        "learning_rate": config["learning_rate"],
        "batch_size": config["batch_size"],
        "gamma": config["gamma"],
        "target_update_interval": config["target_network_frequency"],
        "alpha": config["cql_alpha"],
    }


def main(request: dict[str, Any]) -> None:
    """Make `updates` gradient steps."""
    import d3rlpy
    import numpy as np

    config = request["config"]
    with np.load(request["data"]) as arrays:
        data = d3rlpy.dataset.MDPDataset(
            **arrays, transition_picker=d3rlpy.dataset.FrameStackTransitionPicker(n_frames=4)
        )
    scaler = d3rlpy.preprocessing.PixelObservationScaler()
    learner = d3rlpy.algos.DiscreteCQLConfig(observation_scaler=scaler, **cql(config))
    learner.create(device=False).fit(
        data,
        n_steps=config["updates"],
        n_steps_per_epoch=config["updates"],
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
