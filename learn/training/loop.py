"""The loop that all training shares: metrics, evaluations, checkpoints, and interruption."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

from wsa.learn.training.interrupt import StopRequest
from wsa.learn.training.metrics import Metrics
from wsa.store.common.errors import ConflictError

_log = logging.getLogger(__name__)

DEAD_ROWS = "wsa/dead_rows"
"""Metric: fraction of a batch's states in which a ReLU zeroes all scores (`Fusion.dead_rows`)."""

OnLine = Callable[[int, dict[str, float]], None]
"""Called with a step and every line of metrics."""


def times(frequency: int, steps: int, stride: int = 1) -> int:
    """Return how often an event with period `frequency` occurred in the last `stride` steps."""
    return steps // frequency - (steps - stride) // frequency if frequency else 0


class Evaluation(Protocol):
    """Periodic evaluation games: `wsa.learn.evaluation.periodic.PeriodicEvaluation`."""

    frequency: int
    seconds: float

    def skipped(self, folder: Path, step: int, *, stride: int = 1, last: bool = False) -> bool:
        """Return whether an interruption skipped the games that were due after a step."""
        ...

    def play(self, network: Any, step: int, metrics: Metrics, stop: StopRequest) -> None:
        """Play the games, and write a line of metrics."""
        ...


class Loop:
    """Iterates over the remaining steps of a training run.

        with Loop(folder, start, total, save=save, save_frequency=1000) as loop:
            for step in loop:
                line = update(step)
                if loop.every(100):
                    loop.write(line)

    After each step, the loop plays the evaluation if one is due. It saves a checkpoint at a fixed
    frequency, at the last step, and on Ctrl-C or SIGTERM, after which it stops.

    Args:
        start: Step to continue from.
        total: Last step.
        save: Saves a checkpoint, given the step.
        save_frequency: Steps between checkpoints.
        stride: Steps per iteration.
        network: The network to evaluate.
        trained: Whether the network has had an update; before the first, no games are played.

    Attributes:
        metrics: The run's metrics.
        step: The current step.
    """

    metrics: Metrics

    def __init__(
        self,
        folder: Path,
        start: int,
        total: int,
        *,
        save: Callable[[int], None],
        save_frequency: int,
        stride: int = 1,
        on_line: OnLine = lambda step, line: None,
        evaluation: Evaluation | None = None,
        network: Any = None,
        trained: Callable[[], bool] = lambda: True,
    ) -> None:
        self._folder, self._start, self._total, self._stride = folder, start, total, stride
        self._save, self._save_frequency = save, save_frequency
        self._on_line, self._network, self._trained = on_line, network, trained
        self._evaluation = evaluation
        self._stop = StopRequest()
        self._checked_fusion = False
        self._open = ExitStack()
        self._began = 0.0
        self._finished = False
        self.step = start

    def __enter__(self) -> Self:
        self.metrics = self._open.enter_context(Metrics(self._folder, self._start))
        self._open.enter_context(self._stop)
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[int]:
        """Yield the remaining steps.

        Raises:
            KeyboardInterrupt: On Ctrl-C or SIGTERM, after a checkpoint is saved.
        """
        self._play_skipped()
        for step in range(self._start + self._stride, self._total + 1, self._stride):
            self.step = step
            yield step
            evaluation = self._evaluation
            due = evaluation and evaluation.frequency and self.every(evaluation.frequency)
            if evaluation and due and self._trained():
                evaluation.play(self._network, step, self.metrics, self._stop)
            stopping = self._stop.asked  # Read once: a signal may arrive between the lines below.
            if self.every(self._save_frequency) or stopping:
                self.metrics.flush()
                self._save(step)
            if stopping:
                raise stopping
            if self._finished:
                return

    @property
    def last(self) -> bool:
        """Whether the current step is the last."""
        return self._finished or self.step == self._total

    @property
    def seconds(self) -> float:
        """Seconds since the loop was entered, without evaluations."""
        evaluating = self._evaluation.seconds if self._evaluation else 0.0
        return time.perf_counter() - self._began - evaluating

    def every(self, frequency: int) -> bool:
        """Return whether an event with period `frequency` is due; at the last step it always is."""
        return times(frequency, self.step, self._stride) > 0 or self.last

    def write(self, line: dict[str, float]) -> None:
        """Write a line of metrics for the current step.

        Raises:
            ConflictError: If a loss or a validation is not a finite number.
        """
        self.metrics.write(self.step, line)
        _check_finite(self.step, line)
        if not self._checked_fusion and DEAD_ROWS in line:
            self._checked_fusion = True
            _warn_if_dead(line[DEAD_ROWS])
        self._on_line(self.step, line)

    def finish(self) -> None:
        """Make the current step the last."""
        self._finished = True

    def _play_skipped(self) -> None:
        """Play the games that an interruption skipped."""
        evaluation, last = self._evaluation, self._start == self._total
        if not evaluation or not self._trained():
            return
        if evaluation.skipped(self._folder, self._start, stride=self._stride, last=last):
            evaluation.play(self._network, self._start, self.metrics, self._stop)
            if self._stop.asked:
                raise self._stop.asked


def diverged(what: str) -> ConflictError:
    """Return an error that says what is not a finite number, and what to do."""
    return ConflictError(
        "not-finite",
        f"{what}, so the training has diverged. Start another run with a lower --learning-rate, or "
        "clip gradients (--max-grad-norm, if the algorithm has it). The newest checkpoint may have diverged too.",
    )


def _check_finite(step: int, line: dict[str, float]) -> None:
    """Stop a run that has diverged, before hours more are wasted."""
    for name, value in line.items():
        # Without any variance to explain, the explained variance is NaN.
        known = name.startswith(("losses/", "validation/")) and name != "losses/explained_variance"
        if known and not math.isfinite(value):
            raise diverged(f"{name} is {value} at step {step:,}")


def _warn_if_dead(dead_rows: float) -> None:
    """Warn if a run's fusion is dead from the start, before hours of training are wasted.

    With a ReLU on scores, which both of the authors' presets have, an initialization can set every
    score to 0 in every state. The scorer then gets no gradient, and never will.
    """
    if dead_rows == 1:
        _log.warning(
            "the fusion is dead: in every state of the last batch a ReLU cuts off all scores, so "
            "the weights of the models get no gradient, and never will. That depends on the "
            "initialization: start again with another --seed, or with --score-activation none and "
            "--normalizer softmax."
        )
