"""The loop that every training shares: metrics, evaluations, checkpoints, and stopping when asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

from wsa.learn.training.dead_fusion import DeadFusion
from wsa.learn.training.interrupt import StopRequest
from wsa.learn.training.metrics import Metrics

OnLine = Callable[[int, dict[str, float]], None]
"""Called with a step and every line of metrics."""


def times(frequency: int, steps: int, stride: int = 1) -> int:
    """How often something that happens every `frequency` steps happened in the last `stride`."""
    return steps // frequency - (steps - stride) // frequency if frequency else 0


class Evaluation(Protocol):
    """Games that are played every so often: `wsa.learn.evaluation.periodic.PeriodicEvaluation`."""

    seconds: float

    def due(self, step: int, *, stride: int = 1, last: bool = False) -> bool:
        """Whether to play after a step."""
        ...

    def owed(self, folder: Path, step: int, *, stride: int = 1, last: bool = False) -> bool:
        """Whether an interruption left out the games after a step."""
        ...

    def play(self, network: Any, step: int, metrics: Metrics, stop: StopRequest) -> None:
        """Play, and write a line of metrics."""
        ...


class Loop:
    """The steps of a training, from where it continues to its last.

        with Loop(folder, start, total, save=save, save_frequency=1000) as loop:
            for step in loop:
                line = update(step)
                if loop.every(100):
                    loop.write(line)

    After each step the loop plays the evaluation that is due and saves a checkpoint: every so often,
    at the last step, and when the training is asked to stop (Ctrl-C, SIGTERM), which it then does.

    Args:
        folder: The run's folder.
        start: Step that the training continues from.
        total: Its last step.
        save: Saves a checkpoint of a step.
        save_frequency: Steps between checkpoints.
        stride: Steps that are made at once.
        on_line: Called with every line of metrics.
        evaluation: Games to play every so often, if any.
        network: What plays them.
        trained: Whether it has had an update; before that there is nothing to evaluate.

    Attributes:
        metrics: The run's scalars.
        step: The step at hand.
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
        self._stop, self._dead = StopRequest(), DeadFusion()
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
        """The steps that are left.

        Raises:
            KeyboardInterrupt: It was asked to stop; a checkpoint has been saved.
        """
        self._play_owed()
        for step in range(self._start + self._stride, self._total + 1, self._stride):
            self.step = step
            yield step
            evaluation = self._evaluation
            if evaluation and self._trained() and self._due(evaluation):
                evaluation.play(self._network, step, self.metrics, self._stop)
            stopping = self._stop.asked  # Once: a signal may come between the lines below.
            if self.every(self._save_frequency) or stopping:
                self.metrics.flush()
                self._save(step)
            if stopping:
                raise stopping
            if self._finished:
                return

    @property
    def last(self) -> bool:
        """Whether the step at hand is the last."""
        return self._finished or self.step == self._total

    @property
    def seconds(self) -> float:
        """Time since the loop was entered, less what evaluations took."""
        played = self._evaluation.seconds if self._evaluation else 0.0
        return time.perf_counter() - self._began - played

    def every(self, frequency: int) -> bool:
        """Whether something that happens every `frequency` steps, and at the last, happens now."""
        return times(frequency, self.step, self._stride) > 0 or self.last

    def write(self, line: dict[str, float]) -> None:
        """Write a line of metrics at the step at hand."""
        self.metrics.write(self.step, line)
        self._dead.see(line)
        self._on_line(self.step, line)

    def finish(self) -> None:
        """Make the step at hand the last."""
        self._finished = True

    def _due(self, evaluation: Evaluation) -> bool:
        return evaluation.due(self.step, stride=self._stride, last=self.last)

    def _play_owed(self) -> None:
        """Play the games that an interruption left out."""
        evaluation, last = self._evaluation, self._start == self._total
        if not evaluation or not self._trained():
            return
        if evaluation.owed(self._folder, self._start, stride=self._stride, last=last):
            evaluation.play(self._network, self._start, self.metrics, self._stop)
            if self._stop.asked:
                raise self._stop.asked
