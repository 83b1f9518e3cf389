"""How a trained network's games are played."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from wsa.store.common.ranges import COUNT, SEED, SHARE, check_ranges

EPISODES = 100  # The number of games to report.
EPSILON = 0.001  # The usual probability of a random action.
EVAL_SEED = 10_000  # Environment i is seeded with this + i, apart from training seeds.
NUM_ENVS = 4


class EvaluationSettings(msgspec.Struct, frozen=True):
    """Settings of the evaluation games of any network.

    Attributes:
        episodes: Number of games; a random policy plays as many.
        epsilon: Probability of a random action.
        seed: Environment i is seeded with seed + i.
        num_envs: Number of parallel environments, which share the games.
    """

    episodes: Annotated[int, COUNT] = EPISODES
    epsilon: Annotated[float, SHARE] = EPSILON
    seed: Annotated[int, SEED] = EVAL_SEED
    num_envs: Annotated[int, COUNT] = NUM_ENVS


class EvaluationRequest(EvaluationSettings, frozen=True, kw_only=True):
    """Everything that the games of a checkpoint depend on, apart from versions of libraries.

    Attributes:
        which: The newest checkpoint, or the best on held-out episodes.
        without: Models to leave out; they are not run.
        only: Models to keep; excludes `without`.
        variant: Variant of the game, a SPEC; see `wsa.learn.envs.variants`.
        device: Device for the models.
        engine: Inference engine; `auto` uses the one that filled the store.

    Raises:
        UsageError: If a number is out of range.
    """

    which: Literal["final", "best"] = "final"
    without: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    variant: str = ""
    device: str = "cpu"
    engine: str = "auto"

    def __post_init__(self) -> None:
        check_ranges(self)
