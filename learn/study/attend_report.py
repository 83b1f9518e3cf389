"""The report of `wsa study attend`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsa.learn.bench.grid import EvaluationSettings
from wsa.learn.evaluation.scores import Interval
from wsa.learn.report import figures
from wsa.learn.report.document import Figure, Part, Text, table
from wsa.learn.runs.config import OfflineRun, OnlineRun
from wsa.learn.study import output
from wsa.learn.study.games import NO_BETTER_THAN_RANDOM, PlayedGames, difference, evaluation_note
from wsa.learn.study.interventions import Kind
from wsa.learn.study.trained_runs import in_text
from wsa.learn.study.weight_statistics import (
    REACH,
    Log,
    around_rewards,
    by_action,
    effective_number,
    entropy,
    switches_per_second,
)

KIND, TITLE = "attend", "Which model gets the attention"
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
    "run", "game", "fusion", "seed", "parameters", "model", "mean_weight", "std_weight", "largest_share", "entropy",
    "effective_number", "switches_per_s", "steps", "games",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AttentionResult:
    """A run with its logged weights and its games.

    Attributes:
        run: The run's folder.
        config: The run.
        models: Displayed names of its models.
        parameters: Number of trainable parameters; None if unknown.
        steps_per_s: Number of steps in a second of play.
        log: Weights of its newest evaluation.
        games: Games in each condition; empty if nothing was played.
        random: Games of a random policy; None if nothing was played.
    """

    run: str
    config: OfflineRun | OnlineRun
    models: tuple[str, ...]
    parameters: int | None
    steps_per_s: float
    log: Log
    games: dict[Kind, PlayedGames]
    random: PlayedGames | None


def write(folder: Path, runs: Sequence[AttentionResult], evaluation: EvaluationSettings) -> str:
    """Write the tables and the page; return the study as Markdown."""
    parts = [part for one in runs for part in _parts(one)]
    weighed = (
        "Weights at every step of the run's newest wsa eval, scaled to sum to 1. Effective number: exp "
        "of their entropy, from 1 to the number of models. Largest: share of steps at which a model "
        "has the largest weight. A switch is a step at which that model changes. Bands around rewards: "
        "95 % bootstrap intervals over the rewards."
    )
    played = f" Interventions: {evaluation_note(evaluation)}." if evaluation.episodes else ""
    rows = (row for one in runs for row in _rows(one))
    extra = {
        "attend-events": (EVENT_COLUMNS, [row for one in runs for row in _event_rows(one)]),
        "attend-actions": (ACTION_COLUMNS, [row for one in runs for row in _action_rows(one)]),
        "attend-games": (GAME_COLUMNS, [row for one in runs for row in _game_rows(one)]),
    }
    return output.write(folder, KIND, TITLE, parts, weighed + played, COLUMNS, rows, extra)


def summary(one: AttentionResult) -> dict[str, Any]:
    """A run as JSON values."""
    return {
        "run": one.run,
        "parameters": one.parameters,
        "models": [dict(zip(COLUMNS, row, strict=True)) for row in _rows(one)],
        "games": {kind: list(played.interval) for kind, played in one.games.items()},
    }


def _run_columns(one: AttentionResult) -> tuple[Any, ...]:
    c = one.config
    return one.run, c.game, c.network.fusion.name, c.seed, one.parameters


def _rows(one: AttentionResult) -> Iterator[tuple[Any, ...]]:
    shares = one.log.shares
    largest = np.bincount(shares.argmax(axis=1), minlength=len(one.models)) / len(shares)
    overall = (
        float(entropy(shares).mean()), float(effective_number(shares).mean()),
        switches_per_second(one.log, one.steps_per_s), len(shares), int(one.log.game.max()) + 1,
    )  # fmt: skip
    for i, model in enumerate(one.models):
        of_model = float(shares[:, i].mean()), float(shares[:, i].std()), float(largest[i])
        yield (*_run_columns(one), model, *of_model, *overall)


EVENT_COLUMNS = ("run", "game", "fusion", "seed", "parameters", "event", "count", "model", "step", "mean", "low",
                 "high")  # fmt: skip
ACTION_COLUMNS = (
    "run",
    "game",
    "fusion",
    "seed",
    "parameters",
    "action",
    "count",
    "model",
    "mean_weight",
)
GAME_COLUMNS = ("run", "game", "fusion", "seed", "parameters", "condition", "number", "return")


def _event_rows(one: AttentionResult) -> Iterator[tuple[Any, ...]]:
    for sign, name in SIGNS.items():
        events = around_rewards(one.log, sign)
        if events is None:
            continue
        count, bands = events
        for model, band in zip(one.models, bands, strict=True):
            for step, values in enumerate(band.T, -REACH):
                yield (*_run_columns(one), name, count, model, step, *values.tolist())


def _action_rows(one: AttentionResult) -> Iterator[tuple[Any, ...]]:
    actions = one.config.protocol.actions
    counts, means = by_action(one.log, len(actions))
    for action, count, row in zip(actions, counts.tolist(), means.tolist(), strict=True):
        for model, mean in zip(one.models, row, strict=True):
            yield (*_run_columns(one), action, count, model, mean if count else "")


def _game_rows(one: AttentionResult) -> Iterator[tuple[Any, ...]]:
    for kind, played in one.games.items():
        for number, returned in enumerate(played.returns):
            yield (*_run_columns(one), kind, number, returned)


def _parts(one: AttentionResult) -> Iterator[Part]:
    name = f"{one.config.game}, {one.config.network.fusion.name}, seed {one.config.seed}"
    rows = list(_rows(one))
    *_, effective, switches, steps, games = rows[0]
    yield Text(
        f"{one.run}: {name}, {in_text(one.parameters)}; {steps:,} steps of {games} games. Effective number of "
        f"models: {effective:.2f} of {len(one.models)}. The model with the largest weight changes "
        f"{switches:.2f} times per second."
    )
    yield table(
        f"Use of the models: {name}",
        ("model", "mean weight", "std", "largest in"),
        [(r[5], f"{r[6]:.3f}", f"{r[7]:.3f}", f"{r[8]:.0%} of steps") for r in rows],
    )
    yield _film(one)
    for sign, event in SIGNS.items():
        events = around_rewards(one.log, sign)
        if events is not None:
            count, bands = events
            x = np.arange(-REACH, REACH + 1) / one.steps_per_s
            yield Figure(
                f"Around {event}",
                figures.events(x, one.models, list(bands), "seconds from the event"),
                f"{count:,} {event}; mean weights with 95 % bootstrap bands.",
            )
    actions = one.config.protocol.actions
    counts, means = by_action(one.log, len(actions))
    yield table(
        "Weights by action",
        ("action", "steps", *one.models),
        [
            (action, f"{count:,}", *(f"{w:.3f}" if count else None for w in row))
            for action, count, row in zip(actions, counts.tolist(), means.tolist(), strict=True)
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
        figures.stacked(one.models, seconds, means, "seconds"),
        "The weights of the models, stacked.",
    )


def _conclusion(lost: Interval | None, games: int) -> str:
    if lost is None:
        return ""
    if games < FEW:
        return "too few games to tell"
    return "it matters" if lost.low > 0 else "no loss shown"


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
        if not difference(base, one.random).low > 0:
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
