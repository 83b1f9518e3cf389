"""The report of `wsa study attend`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.learn.configs.evaluation import EvaluationSettings
from wsa.learn.evaluation.scores import Interval
from wsa.learn.report import figures
from wsa.learn.report.document import Figure, Part, Text, table
from wsa.learn.study import output, trained_runs
from wsa.learn.study.games import (
    NO_BETTER_THAN_RANDOM,
    PlayedGames,
    beats_random,
    difference,
    evaluation_note,
)
from wsa.learn.study.interventions import Kind
from wsa.learn.study.trained_runs import TrainedRun
from wsa.learn.study.weight_statistics import (
    REACH,
    Log,
    around_rewards,
    by_action,
    effective_number,
    entropy,
    switches_per_second,
)
from wsa.store.common.terminal import plural

KIND, TITLE = "attend", "Which model gets the attention"
EMULATOR_HZ = 60
FEW = 5  # Below this number of games, an interval says nothing.
MOST_POINTS = 400  # Points in the chart of a game.
SIGNS = {1: "rewards", -1: "penalties"}
CONDITION_NAMES = {
    "none": "as trained",
    "frozen": "weights frozen at their mean",
    "uniform": "weights uniform",
    "shuffled": "context of another state",
}
COLUMNS = (
    *trained_runs.COLUMNS, "model", "mean_weight", "std_weight", "largest_share", "entropy", "effective_number",
    "switches_per_s", "steps", "games",
)  # fmt: skip
EVENT_COLUMNS = (*trained_runs.COLUMNS, "event", "count", "model", "step", "mean", "low", "high")
ACTION_COLUMNS = (*trained_runs.COLUMNS, "action", "count", "model", "mean_weight")
GAME_COLUMNS = (*trained_runs.COLUMNS, "condition", "number", "return")


@dataclasses.dataclass(frozen=True)
class AttentionResult:
    """A run with its logged weights and its games; `random` is None if nothing was played."""

    run: TrainedRun
    log: Log
    games: dict[Kind, PlayedGames]
    random: PlayedGames | None

    @property
    def steps_per_s(self) -> float:
        """Number of steps in a second of play."""
        return EMULATOR_HZ / self.run.config.protocol.frame_skip

    @functools.cached_property
    def events(self) -> list[tuple[str, int, NDArray[np.float64]]]:
        """Kinds of events that occurred, with their number, and the weights around them."""
        found = [(name, around_rewards(self.log, sign)) for sign, name in SIGNS.items()]
        return [(name, *around) for name, around in found if around is not None]

    @functools.cached_property
    def by_action(self) -> list[tuple[str, int, list[float]]]:
        """Each action, with the number of its steps, and the mean weights at them."""
        actions = self.run.config.protocol.actions
        counts, means = by_action(self.log, len(actions))
        return list(zip(actions, counts.tolist(), means.tolist(), strict=True))


def write(folder: Path, runs: Sequence[AttentionResult], evaluation: EvaluationSettings) -> str:
    """Write the tables and the page; return the study as Markdown."""
    parts = [part for one in runs for part in _parts(one)]
    weighed = (
        "Weights at every step of the run's newest wsa eval, scaled to sum to 1. Effective number: exp "
        "of their entropy, from 1 to the number of models. Largest: share of steps at which a model "
        "has the largest weight. A switch is a step at which that model changes. Bands around rewards: "
        "95% bootstrap intervals over the rewards."
    )
    played = f" Interventions: {evaluation_note(evaluation)}." if evaluation.episodes else ""
    tables = {
        KIND: (COLUMNS, [row for one in runs for row in _rows(one)]),
        "attend-events": (EVENT_COLUMNS, [row for one in runs for row in _event_rows(one)]),
        "attend-actions": (ACTION_COLUMNS, [row for one in runs for row in _action_rows(one)]),
        "attend-games": (GAME_COLUMNS, [row for one in runs for row in _game_rows(one)]),
    }
    return output.write(folder, KIND, TITLE, parts, weighed + played, tables)


def summary(one: AttentionResult) -> dict[str, Any]:
    """A run as JSON values."""
    return {
        "run": str(one.run.folder),
        "parameters": one.run.parameters,
        "models": [dict(zip(COLUMNS, row, strict=True)) for row in _rows(one)],
        "games": {kind: list(played.interval) for kind, played in one.games.items()},
    }


def _rows(one: AttentionResult) -> Iterator[tuple[Any, ...]]:
    shares = one.log.shares
    largest = np.bincount(shares.argmax(axis=1), minlength=len(one.run.models)) / len(shares)
    overall = (
        float(entropy(shares).mean()), float(effective_number(shares).mean()),
        switches_per_second(one.log, one.steps_per_s), len(shares), int(one.log.game.max()) + 1,
    )  # fmt: skip
    for i, model in enumerate(one.run.models):
        of_model = float(shares[:, i].mean()), float(shares[:, i].std()), float(largest[i])
        yield (*one.run.columns, model, *of_model, *overall)


def _event_rows(one: AttentionResult) -> Iterator[tuple[Any, ...]]:
    for name, count, bands in one.events:
        for model, band in zip(one.run.models, bands, strict=True):
            for step, values in enumerate(band.T, -REACH):
                yield (*one.run.columns, name, count, model, step, *values.tolist())


def _action_rows(one: AttentionResult) -> Iterator[tuple[Any, ...]]:
    for action, count, row in one.by_action:
        for model, mean in zip(one.run.models, row, strict=True):
            yield (*one.run.columns, action, count, model, mean if count else "")


def _game_rows(one: AttentionResult) -> Iterator[tuple[Any, ...]]:
    for kind, played in one.games.items():
        for number, returned in enumerate(played.returns):
            yield (*one.run.columns, kind, number, returned)


def _parts(one: AttentionResult) -> Iterator[Part]:
    rows = list(_rows(one))
    *_, effective, switches, steps, games = rows[0]
    yield Text(
        f"{one.run.folder}: {one.run.name}, {one.run.counted}; {plural(steps, 'step')} of "
        f"{plural(games, 'game')}. Effective "
        f"number of models: {effective:.2f} of {len(one.run.models)}. The model with the largest weight changes "
        f"{switches:.2f} times per second."
    )
    yield table(
        f"Use of the models: {one.run.name}",
        ("model", "mean weight", "std", "largest in"),
        [(r[5], f"{r[6]:.3f}", f"{r[7]:.3f}", f"{r[8]:.0%} of steps") for r in rows],
    )
    yield _film(one)
    for event, count, bands in one.events:
        x = np.arange(-REACH, REACH + 1) / one.steps_per_s
        lines = [figures.Line(m, x, *band) for m, band in zip(one.run.models, bands, strict=True)]
        yield Figure(
            f"Around {event}",
            figures.curves(lines, "seconds from the event", "weight", at=0.0),
            f"{count:,} {event}; mean weights with 95% bootstrap bands.",
        )
    yield table(
        "Weights by action",
        ("action", "steps", *one.run.models),
        [
            (action, f"{count:,}", *(f"{w:.3f}" if count else None for w in row))
            for action, count, row in one.by_action
        ],
    )
    yield from _interventions(one)


def _film(one: AttentionResult) -> Figure:
    """Weights over the first game, averaged over equal stretches if it is long."""
    shares = one.log.shares[one.log.game == 0]
    stretches = np.array_split(np.arange(len(shares)), min(len(shares), MOST_POINTS))
    means = np.stack([shares[at].mean(axis=0) for at in stretches], axis=1)
    seconds = np.array([at[0] for at in stretches]) / one.steps_per_s
    return Figure(
        "The first game",
        figures.stacked(one.run.models, seconds, means, "seconds"),
        "The weights of the models, stacked.",
    )


def _conclusion(lost: Interval | None, games: int) -> str:
    if lost is None:
        return ""
    if games < FEW:
        return "too few games to tell"
    return "it matters" if lost.above_zero else "no loss shown"


def _interventions(one: AttentionResult) -> Iterator[Part]:
    if not one.games:
        yield Text("No interventions were played.")
        return
    base = one.games["none"]
    rows: list[tuple[object, ...]] = []
    for kind, played in one.games.items():
        lost = None if kind == "none" else difference(base, played)
        rows.append(
            (CONDITION_NAMES[kind], played.interval, lost, _conclusion(lost, len(played.returns)))
        )
    if one.random is not None:
        rows.append(("random policy", one.random.interval, difference(base, one.random), ""))
        if not beats_random(base, one.random):
            yield Text(NO_BETTER_THAN_RANDOM)
    yield table(
        "Does the attention matter?",
        ("condition", "mean return", "loss compared with as trained", "conclusion"),
        rows,
        "A loss whose interval contains 0 shows nothing; more --episodes may narrow it.",
    )
    bars = [
        figures.Bar(CONDITION_NAMES[kind], *played.interval, int(kind != "none"))
        for kind, played in one.games.items()
    ]
    yield Figure(
        "Return under interventions", figures.intervals(bars, "raw return", line=base.mean)
    )
