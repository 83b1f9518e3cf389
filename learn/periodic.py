"""Games that a network plays every so often while it is trained: the curve of a run's returns.

They are played as `wsa eval` plays: whole games, raw returns, greedily but for one action in a
thousand, in environments of their own that are seeded apart from training's and alike every time.
Nothing of the training moves by it: no random number of its is drawn and no statistic of its taken.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from wsa.encode.checkpoint import StopRequest
from wsa.encode.curves import Metrics
from wsa.learn.evaluate import EPSILON, EVAL_SEED, NUM_ENVS, play
from wsa.learn.features import LiveStacks
from wsa.learn.policies import GreedyPolicy
from wsa.store.records import Protocol

RETURN = "eval/episodic_return"


def due(frequency: int, steps: int, stride: int = 1) -> int:
    """How often something that happens every `frequency` steps happened in the last `stride`."""
    return steps // frequency - (steps - stride) // frequency if frequency else 0


class PeriodicEvaluation:
    """Plays a network in training, and writes down what it returned.

    A checkpoint of the same step is saved before, so that stopping in the midst of the games loses
    nothing of the training; they are then played when it is continued.

    Args:
        frequency: Steps between evaluations; 0 for none.
        episodes: Games of each.
        game: ALE game id.
        protocol: How to play.
        depth: Frames in a state.
        embedder: What embeds frames, as `LiveEncoder`; none is needed if there is nothing to play.

    Attributes:
        seconds: Time that all of it took in this process.
        passes: Frames, and windows, that went through a model for it, summed over the models.
    """

    def __init__(
        self,
        frequency: int = 0,
        episodes: int = 0,
        game: str = "",
        protocol: Protocol | None = None,
        depth: int = 0,
        embedder: Any = None,
    ) -> None:
        self._frequency, self._episodes = frequency, episodes
        self._game, self._protocol = game, protocol
        self._depth, self._embedder = depth, embedder
        self.seconds, self.passes = 0.0, 0

    def due(self, step: int, stride: int = 1) -> bool:
        """Whether there is one after `step`, the last of `stride` taken at once."""
        return due(self._frequency, step, stride) > 0

    def catch_up(
        self, network: Any, step: int, metrics: Metrics, stop: StopRequest, stride: int = 1
    ) -> None:
        """Play what was due when the run was stopped, as `play`, unless it was played."""
        if step and self.due(step, stride) and not metrics.has(step, RETURN):
            self.play(network, step, metrics, stop)

    def play(self, network: Any, step: int, metrics: Metrics, stop: StopRequest) -> None:
        """Play, and write a line of metrics.

        Raises:
            KeyboardInterrupt: It was asked to stop.
        """
        assert self._protocol is not None, "what has games to play knows how"

        def on_step(steps: int, episodes: int) -> None:
            if stop.asked:
                raise stop.asked

        began, passes, training = time.perf_counter(), self._embedder.passes, network.training
        count = min(NUM_ENVS, self._episodes)
        stacks = LiveStacks(self._embedder, count, self._depth)
        actions = len(self._protocol.actions)
        policy = GreedyPolicy(network, stacks, actions, EPSILON, EVAL_SEED)
        played = play(
            self._game, self._protocol, policy, self._episodes, EVAL_SEED,
            num_envs=count, on_step=on_step,
        )  # fmt: skip
        network.train(training)
        returns = np.array([episode.returned for episode in played])
        self.seconds += time.perf_counter() - began
        self.passes += self._embedder.passes - passes
        line = {
            RETURN: float(returns.mean()),
            "eval/episodic_return_std": float(returns.std()),
            "eval/episodic_length": float(np.mean([episode.steps for episode in played])),
            "eval/backbone_passes": float(self.passes),
        }
        metrics.write(step, line)
