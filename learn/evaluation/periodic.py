"""Games that a network plays every so often while it is trained: the curve of a run's returns.

They are played as `wsa eval` plays: whole games, raw returns, greedily but for one action in a
thousand, in environments of their own that are seeded apart from training's and alike every time,
by the network as it is uncompiled. Nothing of the training moves by it: none of its random numbers
is drawn, none of its statistics taken, and none of its checkpoints is another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsa.learn.evaluation.greedy_policy import GreedyPolicy, LiveStacks
from wsa.learn.evaluation.rollout import EPSILON, EVAL_SEED, NUM_ENVS, play
from wsa.learn.training import metrics as training_metrics
from wsa.learn.training.interrupt import StopRequest
from wsa.learn.training.loop import times
from wsa.store.common.errors import WsaError

_log = logging.getLogger(__name__)

RETURN = "eval/episodic_return"
# Frames, and windows, whose embeddings are kept from one evaluation to the next: games begin alike.
REMEMBERED = 4096


class PeriodicEvaluation:
    """Plays a network in training, and writes down what it returned.

    Where it is asked to stop in the midst of the games, they are left, and played when the run is
    continued.

    Args:
        config: The run, offline or online; none plays nothing.
        embedder: Opens what embeds frames, as `LiveEncoder`, when there is something to play.
        compiled: Whether the network goes through torch.compile in training.

    Attributes:
        seconds: Time that all of it took in this process.
        passes: Frames, and windows, that went through a model for it, summed over the models.
    """

    def __init__(
        self,
        config: Any = None,
        embedder: Callable[[], Any] = lambda: None,
        *,
        compiled: bool = False,
    ) -> None:
        self._config, self._open, self._compiled = config, embedder, compiled
        self._frequency = config.evaluation.eval_frequency if config else 0
        self._embedder: Any = None
        self.seconds, self.passes = 0.0, 0

    def due(self, step: int, *, stride: int = 1, last: bool = False) -> bool:
        """Whether there is one after a step.

        Args:
            step: That step, the last of `stride` taken at once.
            stride: How many.
            last: Whether it is the run's last.
        """
        return times(self._frequency, step, stride) > 0 or (last and self._frequency > 0)

    def owed(self, folder: Path, step: int, *, stride: int = 1, last: bool = False) -> bool:
        """Whether one was due after the step that the run in `folder` continues from, and left."""
        if not step or not self.due(step, stride=stride, last=last):
            return False
        return not training_metrics.has(folder, step, RETURN)

    def open(self) -> None:
        """Make ready to play, if ever there is something to play.

        Raises:
            MissingError: No weights.
            ConflictError: A model does not give here what it gave when the store was filled.
        """
        if self._frequency and self._embedder is None:
            # Building a model draws from the generator that trains.
            with torch.random.fork_rng(devices=[]):
                self._embedder = self._open()

    def play(
        self, network: Any, step: int, metrics: training_metrics.Metrics, stop: StopRequest
    ) -> None:
        """Play, and write a line of metrics, unless it is asked to stop.

        Games that cannot be played, since a model gives what is no number or a scheduler has gone,
        are warned of, and the training goes on.
        """
        began, training = time.perf_counter(), network.training
        self.open()
        config, passes = self._config, self._embedder.passes
        stacks = LiveStacks(self._embedder, NUM_ENVS, config.network.frame_stack)
        actions = len(config.protocol.actions)
        policy = GreedyPolicy(network, stacks, actions, EPSILON, EVAL_SEED, eager=self._compiled)

        def on_step(steps: int, episodes: int) -> None:
            if stop.asked:
                raise _Stopped

        try:
            played = play(
                config.game, config.protocol, policy, config.evaluation.eval_episodes,
                EVAL_SEED, on_step=on_step,
            )  # fmt: skip
        except _Stopped:
            return
        except WsaError as error:
            _log.warning("no games were played after step %s. %s", f"{step:,}", error)
            return
        finally:
            network.train(training)
            passes = self._embedder.passes - passes
            self.passes += passes
            self.seconds += time.perf_counter() - began
        returns = np.array([episode.returned for episode in played])
        line = {
            RETURN: float(returns.mean()),
            "eval/episodic_return_std": float(returns.std()),
            "eval/episodic_length": float(np.mean([episode.steps for episode in played])),
            "eval/backbone_passes": float(passes),
        }
        metrics.write(step, line)
        metrics.flush()


class _Stopped(Exception):
    """It was asked to stop."""
