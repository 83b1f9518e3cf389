"""The authors' two training setups as presets: defaults that explicit options replace.

docs/explain/wsa.md says what is known about them, and what a preset leaves out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from wsa.learn.configs.algorithms import AlgorithmConfig, OnlineDQNConfig, PPOConfig
from wsa.store.common.errors import UsageError


class Defaults(NamedTuple):
    """Defaults that replace wsa's own.

    Attributes:
        learner: Hyperparameters of the algorithm.
        network: Options of the network. A network on pixels takes only `frame_stack`.
        fusion: Switches of the fusion, which override those of `--fusion-preset`.
    """

    learner: dict[str, Any]
    network: dict[str, Any] = {}  # noqa: RUF012  Nothing writes to it.
    fusion: dict[str, Any] = {}  # noqa: RUF012


RL_PRESETS: dict[str, dict[type[AlgorithmConfig], Defaults]] = {
    "default": {},
    # Stable-Baselines3 2.2.1 with the values of rl-zoo.
    "thesis": {
        PPOConfig: Defaults(
            {
                "terminal_on_life_loss": True,
                "anneal_clip": True,
                "clip_vloss": False,
                "vf_coef": 1.0,  # 0.5 times the squared error, of which the loss here is half.
            },
            {"head_activation": "tanh"},
        ),
        OnlineDQNConfig: Defaults(
            {
                "terminal_on_life_loss": True,
                "double_q": False,
                "max_grad_norm": 10.0,
                "num_envs": 8,
                "buffer_size": 100_000,
                "learning_starts": 100_000,
                "train_frequency": 32,  # Every fourth step of all eight environments.
            },
            {"hidden": (64, 64)},
            {"init": "torch"},  # The library initializes the weights again only for PPO.
        ),
    },
    # PufferLib, in the published fork; its rates and sizes are tuned for each game.
    "paper": {
        PPOConfig: Defaults(
            {"recurrent": True, "anneal_lr": False, "clip_rewards": False}, {"frame_stack": 1}
        ),
    },
}


def rl_defaults(preset: str, algorithm: type[AlgorithmConfig]) -> Defaults:
    """Return the defaults of an algorithm under a preset.

    Raises:
        UsageError: If the authors did not train with this algorithm.
    """
    known = RL_PRESETS[preset]
    for config in algorithm.__mro__:  # A user's own class may derive from one of these.
        if config in known:
            return known[config]
    if not known:
        return Defaults({})
    names = " and ".join(f"--algo {config.NAME}" for config in known)
    raise UsageError(
        f"--rl-preset {preset} is for --online with {names}: the authors used nothing else. Leave it "
        "out, or train that way."
    )
