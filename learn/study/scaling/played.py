"""`wsa study scale --after played`: games of a trained network with sets of its models.

With up to four models all sets are played, which gives each model's exact Shapley value of the
return. With more: the whole, each model alone, and each model left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wsa.learn.configs.evaluation import EvaluationSettings
from wsa.learn.report import figures
from wsa.learn.report.document import Figure, Part, Text, table
from wsa.learn.runs.presence import Mask
from wsa.learn.study import output, trained_runs
from wsa.learn.study.games import (
    NO_BETTER_THAN_RANDOM,
    UNCHANGED,
    Condition,
    PlayedGames,
    beats_random,
    difference,
    evaluation_note,
)
from wsa.learn.study.scaling.cached_report import letters_of
from wsa.learn.study.scaling.subsets import name_of, shapley, subsets
from wsa.learn.study.trained_runs import TrainedRun
from wsa.store.common.terminal import numbers

KIND, TITLE = "scale-played", "After training, in games"
MOST_EXACT = 4
COLUMNS = (*trained_runs.COLUMNS, "checkpoint", "present", "models", "number", "return", "passes")


@dataclasses.dataclass(frozen=True)
class PlayedResult:
    """A run, and its games with sets of its models."""

    run: TrainedRun
    sets: dict[Mask, PlayedGames]
    random: PlayedGames

    @property
    def values(self) -> dict[Mask, float]:
        """Mean return of each set; that of the empty set is a random policy's."""
        means = {mask: played.mean for mask, played in self.sets.items()}
        return {(False,) * len(self.run.models): self.random.mean} | means

    @property
    def shapley(self) -> tuple[float, ...] | None:
        """Each model's Shapley value of the return; None unless all sets were played."""
        if len(self.values) < 2 ** len(self.run.models):
            return None
        return tuple(shapley(self.values).tolist())


def conditions(run: TrainedRun) -> dict[Mask, Condition]:
    """The conditions of playing with each set of a run's models, the whole last."""
    models = len(run.models)
    masks = subsets(models)
    if models > MOST_EXACT:
        masks = [mask for mask in masks if sum(mask) in (1, models - 1, models)]
    return {mask: _condition(mask) for mask in masks}


def _condition(mask: Mask) -> Condition:
    name = UNCHANGED.name if all(mask) else f"models {''.join('01'[there] for there in mask)}"
    return Condition(name, models=mask)


def write(folder: Path, runs: Sequence[PlayedResult], evaluation: EvaluationSettings) -> str:
    """Write the tables and the page; return the study as Markdown."""
    parts = [part for one in runs for part in _parts(one)]
    note = (
        f"{evaluation_note(evaluation)}. A model that is left out is not run at all. Shapley value (exact): "
        "how much a model adds to the mean return, averaged over all orders in which models can be "
        "added. Without any model, a random policy plays."
    )
    rows = [row for one in runs for row in _rows(one)]
    return output.write(folder, KIND, TITLE, parts, note, {KIND: (COLUMNS, rows)})


def summary(one: PlayedResult) -> dict[str, Any]:
    """A run as JSON values."""
    return {
        "run": str(one.run.folder),
        "parameters": one.run.parameters,
        "sets": {
            name_of(one.run.models, mask): list(played.interval)
            for mask, played in one.sets.items()
        },
        "random": list(one.random.interval),
        "shapley": one.shapley and dict(zip(one.run.models, one.shapley, strict=True)),
    }


def _rows(one: PlayedResult) -> list[tuple[Any, ...]]:
    sets = [(name_of(one.run.models, mask), sum(mask), played) for mask, played in one.sets.items()]
    return [
        (*one.run.columns, one.run.network, name, count, number, returned, played.passes)
        for name, count, played in [("", 0, one.random), *sets]
        for number, returned in enumerate(played.returns)
    ]


def _parts(one: PlayedResult) -> Iterator[Part]:
    run = one.run
    all_models = one.sets[(True,) * len(run.models)]
    yield Text(f"{run.folder}: {run.name}; network {run.network}, {run.counted}.")
    if not beats_random(all_models, one.random):
        yield Text(NO_BETTER_THAN_RANDOM)
    bars = [
        figures.Bar(name_of(run.models, mask), *played.interval, int(not all(mask)))
        for mask, played in one.sets.items()
    ]
    bars.append(figures.Bar("random policy", *one.random.interval, 2))
    yield Figure(
        f"Return with sets of models ({run.name})",
        figures.intervals(bars, "raw return", line=one.random.mean),
        "Mean with 95% bootstrap interval over the games. Dashed: random policy.",
    )
    if one.shapley is not None:
        letters, legend = letters_of(run.models)
        drawing = figures.lattice(one.values, letters, "mean return")
        yield Figure("Every set of models", drawing, legend)
        yield table(
            "What each model adds",
            ("model", "Shapley value of the return"),
            list(zip(run.models, numbers(*one.shapley, signed=True), strict=True)),
            f"They sum to {numbers(sum(one.shapley), signed=True)[0]}, the difference between all models and a random policy.",
        )
    yield table(
        f"Games: {run.name}",
        ("models", "mean return", "loss compared with all models", "passes"),
        [
            (
                name_of(run.models, mask),
                played.interval,
                None if all(mask) else difference(all_models, played),
                f"{played.passes:,}",
            )
            for mask, played in one.sets.items()
        ]
        + [("random policy", one.random.interval, difference(all_models, one.random), "0")],
    )
