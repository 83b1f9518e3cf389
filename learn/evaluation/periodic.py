"""Periodic evaluation during training, which gives a run's learning curve.

Games are played as in `wsa eval`: full games, raw returns, epsilon 0.001, and the uncompiled
network. The environments are separate from training's and use the same seeds every time.
Evaluation does not affect training: it draws none of its random numbers, adds nothing to its
statistics, and changes none of its checkpoints.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsa.learn.configs.evaluation import EPSILON, EVAL_SEED, NUM_ENVS, EvaluationSettings
from wsa.learn.evaluation.episodes import play
from wsa.learn.evaluation.greedy_policy import GreedyPolicy, LiveStacks
from wsa.learn.training import metrics as training_metrics
from wsa.learn.training.interrupt import StopRequest
from wsa.learn.training.loop import times
from wsa.learn.training.metrics import EVALUATION_RETURN
from wsa.store.common.errors import WsaError

_log = logging.getLogger(__name__)

# Number of embeddings to keep between evaluations, because games begin alike.
REMEMBERED = 4096


class PeriodicEvaluation:
    """Plays games with the network in training, and logs their returns.

    If training is interrupted during the games, they are abandoned, and played when the run is
    resumed.

    Args:
        config: Configuration of the run, offline or online; None to play no games.
        embedder: Opens an encoder of frames, such as `LiveEncoder`, before the first games.
        compiled: Whether training uses torch.compile on the network.

    Attributes:
        frequency: Steps between evaluations, which also follow the last step; 0 for never.
        seconds: Time that evaluations took in this process.
    """

    def __init__(
        self,
        config: Any = None,
        embedder: Callable[[], Any] = lambda: None,
        *,
        compiled: bool = False,
    ) -> None:
        self._config, self._open, self._compiled = config, embedder, compiled
        self.frequency = config.evaluation.eval_frequency if config else 0
        self._embedder: Any = None
        self.seconds = 0.0

    @property
    def finished_passes(self) -> int:
        """Passes that the encoder has finished, as `LiveEncoder.finished_passes`; 0 until opened."""
        return self._embedder.finished_passes if self._embedder else 0

    def skipped(self, folder: Path, step: int, *, stride: int = 1, last: bool = False) -> bool:
        """Return whether the evaluation after `step`, from which the run resumes, was skipped.

        Args:
            step: The step, the last of `stride` steps taken at once.
            stride: Number of steps taken at once.
            last: Whether it is the run's last step.
        """
        due = times(self.frequency, step, stride) > 0 or (last and self.frequency > 0)
        return bool(step) and due and not training_metrics.has(folder, step, EVALUATION_RETURN)

    def open(self) -> None:
        """Open the encoder, if evaluation is on.

        Raises:
            MissingError: If a model's weights are missing.
            ConflictError: If a model's outputs differ from those when the store was encoded.
        """
        if self.frequency and self._embedder is None:
            # Building a model would draw from training's generator.
            with torch.random.fork_rng(devices=[]):
                self._embedder = self._open()

    def play(
        self, network: Any, step: int, metrics: training_metrics.Metrics, stop: StopRequest
    ) -> None:
        """Play the games, and write a line of metrics unless training is interrupted.

        If games fail, because a model returns NaN or a scheduler is gone, log a warning and
        continue training.
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
            games = EvaluationSettings(config.evaluation.eval_episodes)
            played = play(config.game, config.protocol, policy, games, on_step=on_step)
        except _Stopped:
            return
        except WsaError as error:
            _log.warning("no games were played after step %s. %s", f"{step:,}", error)
            return
        finally:
            network.train(training)
            self.seconds += time.perf_counter() - began
        returns = np.array([episode.returned for episode in played])
        line = {
            EVALUATION_RETURN: float(returns.mean()),
            "eval/episodic_return_std": float(returns.std()),
            "eval/episodic_length": float(np.mean([episode.steps for episode in played])),
            "eval/backbone_passes": float(self._embedder.passes - passes),
        }
        metrics.write(step, line)
        metrics.flush()


class _Stopped(Exception):
    """Training was interrupted."""
