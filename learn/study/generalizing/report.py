"""The report of `wsa study generalize`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsa.learn.bench.run_cell import Failure
from wsa.learn.configs.evaluation import EvaluationSettings
from wsa.learn.report import figures
from wsa.learn.report.document import Figure, Part, Text, table
from wsa.learn.study import output, trained_runs
from wsa.learn.study.games import env_seeds, evaluation_note
from wsa.learn.study.generalizing.retention import FEW, Pair, Retention
from wsa.learn.study.generalizing.shift import Shift
from wsa.learn.study.generalizing.suites import COLORS
from wsa.learn.study.trained_runs import TrainedRun

KIND, TITLE = "generalize", "In games that the runs were not trained on"
COLUMNS = (
    *trained_runs.COLUMNS, "checkpoint", "suite", "variant", "policy", "number", "env_seed", "return",
)  # fmt: skip
# The columns of a variant, after those of its run.
KEPT_COLUMNS = (
    "suite", "variant", "return_mean", "return_low", "return_high", "random_mean", "change", "change_low",
    "change_high", "kept", "kept_low", "kept_high", "passes",
)  # fmt: skip
SHIFT_COLUMNS = (
    "variant", "states", "model", "cosine", "weight_before", "weight_after", "weight_moved",
    "action_agreement",
)  # fmt: skip
NO_ADVANTAGE = (
    "These games do not show that the run plays better than a random policy. In the unchanged game, its "
    "return minus the random policy's is {}. So there is no advantage to keep, and only returns are "
    "shown."
)


@dataclasses.dataclass(frozen=True)
class VariantResult:
    """A run, and its games without a change and by suite and variant, beside those of a random
    policy.

    `shifts` has the effect of each variant on embeddings and weights.
    """

    run: TrainedRun
    plain: Pair
    suites: dict[str, dict[str, Pair]]
    shifts: dict[str, Shift]


def write(
    folder: Path,
    runs: Sequence[VariantResult],
    failed: Sequence[Failure],
    missing_suites: Sequence[str],
    evaluation: EvaluationSettings,
) -> str:
    """Write the tables and the page; return the study as Markdown."""
    parts: list[Part] = [*_overview(runs), *(Text(note) for note in missing_suites)]
    if failed:
        rows = [(one.cell, one.message) for one in failed]
        parts.append(table("Runs that failed", ("run", "reason"), rows))
    parts += [part for one in runs for part in _parts(one, evaluation.episodes)]
    note = (
        f"{evaluation_note(evaluation)}. Games with and without a change have the same seeds, in "
        "pairs. Kept: (return in the variant - random policy in the variant) / (return - random "
        "policy), if the 95% interval of the run's advantage over the random policy is above 0. "
        "Intervals: bootstrap over pairs of games. Embeddings: cosine between the embeddings of a "
        "frame with and without the change, after the same actions, as the network normalizes "
        "them. Weights are scaled to sum to 1."
    )
    seeds, of_run = env_seeds(evaluation), trained_runs.COLUMNS
    tables = {
        KIND: (COLUMNS, [row for one in runs for row in _rows(one, seeds)]),
        "generalize-kept": (
            (*of_run, *KEPT_COLUMNS),
            [(*one.run.columns, *row) for one in runs for row in _kept_rows(one)],
        ),
        "generalize-shift": (
            (*of_run, *SHIFT_COLUMNS),
            [(*one.run.columns, *row) for one in runs for row in _shift_rows(one)],
        ),
    }
    return output.write(folder, KIND, TITLE, parts, note, tables)


def summary(one: VariantResult) -> dict[str, Any]:
    """A run as JSON values."""
    retention = Retention(one.plain)
    return {
        "run": str(one.run.folder),
        "parameters": one.run.parameters,
        "return": list(one.plain[0].interval),
        "random": list(one.plain[1].interval),
        "above_random": retention.beats_random,
        "suites": {s: retention.share(list(pairs.values())) for s, pairs in one.suites.items()},
        "variants": [dict(zip(KEPT_COLUMNS, row, strict=True)) for row in _kept_rows(one)],
        "shifts": [dict(zip(SHIFT_COLUMNS, row, strict=True)) for row in _shift_rows(one)],
    }


def failed(one: Failure) -> dict[str, Any]:
    """A run that failed as JSON values."""
    values = dataclasses.asdict(one)
    return {"run": values.pop("cell"), **values}


def _rows(one: VariantResult, seeds: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    plain = ("", "", one.plain)
    entries = [(s, v, pair) for s, variants in one.suites.items() for v, pair in variants.items()]
    for suite, variant, pair in (plain, *entries):
        for policy, played in zip(("run", "random"), pair, strict=True):
            for number, (seed, returned) in enumerate(zip(seeds, played.returns, strict=True)):
                columns = (*one.run.columns, one.run.network, suite, variant, policy)
                yield (*columns, number, seed, returned)


def _kept_rows(one: VariantResult) -> Iterator[tuple[Any, ...]]:
    retention = Retention(one.plain)
    for suite, variants in one.suites.items():
        for variant, pair in variants.items():
            share_kept, (played, chance) = retention.share([pair]) or (None,) * 3, pair
            values = (*played.interval, chance.mean, *retention.change(played), *share_kept)
            yield (suite, variant, *values, played.passes)


def _shift_rows(one: VariantResult) -> Iterator[tuple[Any, ...]]:
    for variant, s in one.shifts.items():
        missing = (None,) * len(s.cosine)
        weights = (s.before or missing, s.after or missing, s.moved or missing)
        for of_model in zip(one.run.models, s.cosine, *weights, strict=True):
            yield (variant, s.states, *of_model, s.agreement)


def _overview(runs: Sequence[VariantResult]) -> Iterator[Part]:
    """Results of all runs, suite by suite."""
    suites = list(dict.fromkeys(suite for one in runs for suite in one.suites))
    rows, bars = [], []
    for style, one in enumerate(runs):
        retention, called = Retention(one.plain), one.run.folder.name
        shares = {s: retention.share(list(pairs.values())) for s, pairs in one.suites.items()}
        played, chance = (p.interval for p in one.plain)
        cells = [shares.get(suite) for suite in suites]
        note = "" if retention.beats_random else "not shown to be better than random"
        counted = one.run.parameters and f"{one.run.parameters:,}"
        rows.append((called, one.run.name, counted, played, chance, *cells, note))
        bars += [
            figures.Bar(f"{suite}: {called}", *value, style)
            for suite, value in shares.items()
            if value is not None
        ]
    if bars:
        bars.sort(key=lambda bar: suites.index(bar.label.partition(":")[0]))
        yield Figure(
            "Share of the score that is kept",
            figures.intervals(bars, "share kept, mean over the suite", line=1.0),
            "1 (dashed): as far above the random policy as in the unchanged game. 0: no better than random.",
        )
    if rows:
        yield table(
            "Share of the score that is kept, mean over each suite",
            ("run", "game", "parameters", "mean return", "random policy", *suites, "note"),
            rows,
        )


def _parts(one: VariantResult, games: int) -> Iterator[Part]:
    run, retention = one.run, Retention(one.plain)
    yield Text(f"{run.folder}: {run.name}; network {run.network}, {run.counted}.")
    if not retention.beats_random:
        yield Text(NO_ADVANTAGE.format(retention.advantage))
    elif games < FEW:
        yield Text(f"With fewer than {FEW} games per condition, the intervals say little.")
    for suite, variants in one.suites.items():
        if suite == "authors" and len(variants) == len(COLORS) ** 2:
            yield _recolorings(one, retention, list(variants.values()))
        else:
            yield _bars(one, retention, suite, variants)
    yield table(
        f"Variants: {one.run.name}",
        ("suite", "variant", "mean return", "random policy", "change of the return", "kept"),
        [("", "unchanged", *(p.interval for p in one.plain), None, None)]
        + [
            (
                suite,
                variant,
                *(p.interval for p in pair),
                retention.change(pair[0]),
                retention.share([pair]),
            )
            for suite, variants in one.suites.items()
            for variant, pair in variants.items()
        ],
        "A change whose interval contains 0 shows nothing; more --episodes may narrow it.",
    )
    if one.shifts:
        yield from _moved(one)


def _bars(
    one: VariantResult, retention: Retention, suite: str, variants: dict[str, Pair]
) -> Figure:
    title = f"{suite}: {one.run.name}"
    if retention.beats_random:
        shares = {variant: retention.share([pair]) for variant, pair in variants.items()}
        bars = [figures.Bar(v, *value) for v, value in shares.items() if value is not None]
        return Figure(
            title, figures.intervals(bars, "share kept", line=1.0), "Dashed: the whole score."
        )
    games = {"unchanged": one.plain, **variants}
    bars = [figures.Bar(variant, *pair[0].interval) for variant, pair in games.items()]
    line = one.plain[1].mean
    note = "Dashed: random policy in the unchanged game."
    return Figure(title, figures.intervals(bars, "raw return", line=line), note)


def _recolorings(one: VariantResult, retention: Retention, pairs: Sequence[Pair]) -> Figure:
    """The paper's 25 recolorings, by color of the player and of the blocks."""
    numbers = [kept.value if (kept := retention.share([p])) else p[0].mean for p in pairs]
    values = np.array(numbers).reshape(len(COLORS), len(COLORS))
    title = "share kept" if retention.beats_random else "mean return"
    note = "Black is the background's color, so black objects are invisible."
    svg = figures.heat_map(
        values, COLORS, COLORS, "color of the blocks", y_label="player and ball",
        strongest=1.0 if retention.beats_random else None,
    )  # fmt: skip
    return Figure(f"Breakout's 25 recolorings, {title}: {one.run.name}", svg, note)


def _moved(one: VariantResult) -> Iterator[Part]:
    """The model that a change of looks moves most, and how the fusion responds."""
    variants, shifts = list(one.shifts), list(one.shifts.values())
    yield Figure(
        f"Embeddings with changed looks: {one.run.name}",
        figures.heat_map(
            np.array([s.cosine for s in shifts]), variants, one.run.models,
            "cosine of the embeddings", strongest=1.0,
        ),
        "1: the embedding does not change. 0: it is unrelated to the original.",
    )  # fmt: skip
    weighed = [(s.before, s.after) for s in shifts if s.before and s.after]
    if len(one.run.models) > 1 and weighed:
        changes = np.array([np.subtract(after, before) for before, after in weighed])
        yield Figure(
            f"How the fusion responds: {one.run.name}",
            figures.heat_map(changes, variants, one.run.models, "change of the mean weight"),
            "If a change confuses a model, a fusion that notices gives the model less weight.",
        )
    rows = []
    for variant, s in one.shifts.items():
        moved_most = int(np.argmin(s.cosine))
        weight = None
        if s.before and s.after:
            weight = f"{s.before[moved_most]:.2f} to {s.after[moved_most]:.2f}"
        rows.append(
            (
                variant,
                one.run.models[moved_most],
                f"{s.cosine[moved_most]:z.2f}",
                weight,
                f"{s.agreement:.0%}",
            )
        )
    yield table(
        f"The model whose embeddings change most: {one.run.name}",
        ("variant", "model", "cosine", "weight", "same action"),
        rows,
        f"Over the same {shifts[0].states} states with and without the change.",
    )
