"""The report of `wsa study combine`: scores of each way of combining models, with uncertainty.

After Agarwal et al. (2021, arXiv 2108.13264): interquartile means over games and seeds with
stratified bootstrap intervals, probabilities of improvement, and performance profiles.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsa.learn.bench.grid import Result, changed
from wsa.learn.bench.plot import stretched
from wsa.learn.bench.report import Method, complete, curves_of, normalized, returns_of
from wsa.learn.bench.run_cell import Failure
from wsa.learn.evaluation.scores import (
    Interval,
    improvement_interval,
    mean_score,
    profile_band,
    stratified_interval,
)
from wsa.learn.report import figures
from wsa.learn.report.document import Figure, Part, Table, Text, table
from wsa.learn.study import output
from wsa.learn.study.combine_plan import PAPER, Plan
from wsa.learn.study.games import better_than_random
from wsa.store.common.terminal import number, numbers, plural

KIND, TITLE = "combine", "Ways of combining models"
REFERENCE = "wsa"
MOST_CURVES = 6
FEW = 3  # Seeds.
COLUMNS = (
    "game", "method", "fusion", "models", "seed", "parameters", "trained", "episodes", "return_mean",
    "return_low", "return_high", "random_return_mean", "human_normalized", "better_than_random", "run",
)  # fmt: skip


Returns = dict[str, dict[int, float]]  # By game and seed.


@dataclasses.dataclass(frozen=True)
class Report:
    """The written report."""

    markdown: str
    table: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """An evaluated run."""

    method: str
    result: Result
    parameters: int | None
    folder: Path

    @property
    def mean(self) -> float:
        """Mean raw return of the run's games."""
        return float(self.result.summary["return_mean"])

    @property
    def beats_random(self) -> bool:
        """Whether the run plays better than the random policy."""
        return better_than_random(self.result.summary)


def write(folder: Path, grid_plan: Plan, failures: Sequence[Failure]) -> Report:
    """Write tables and page for the runs that are finished."""
    runs = [
        EvaluatedRun(run.method, result, run.parameters, run.cell.folder)
        for run in grid_plan.runs
        if (result := run.cell.result()) is not None
    ]
    methods = list(dict.fromkeys(run.method for run in grid_plan.runs))
    tables = {name: _returns(runs, name) for name in methods}
    overall = list(_overall(runs, methods, tables))
    parts: list[Part] = [
        *_overview(grid_plan, runs, failures),
        *_raw(runs, methods),
        _aggregate(overall),
        *_figures(runs, methods, tables, overall),
        *_curves(runs),
    ]
    bench = grid_plan.bench
    note = (
        f"{plural(bench.episodes, 'full game')} per run (epsilon {bench.final_games.epsilon:g}, environments seeded from "
        f"{bench.final_games.eval_seed}); raw returns. A random policy plays under the same protocol and "
        "seeds. A run is no better than random if Welch's t-test at 5% finds no difference. "
        "Human-normalized: 0 is the published score of a random policy, 1 that of a human tester. IQM: interquartile "
        "mean over games x seeds with 95% stratified bootstrap interval. P: probability that a run of "
        f"{REFERENCE} has a higher raw return than a run of the method on a game drawn at random "
        "(Mann-Whitney), with 95% bootstrap interval. All after Agarwal et al., 2021 (arXiv 2108.13264). "
        f"Trained by wsa learn with {', '.join(changed(bench)) or 'its defaults'}; store "
        f"{grid_plan.settings.options['store']}."
    )
    markdown = output.write(folder, KIND, TITLE, parts, note, {KIND: (COLUMNS, map(_row, runs))})
    return Report(markdown, [dataclasses.asdict(line) for line in overall])


def _row(run: EvaluatedRun) -> tuple[Any, ...]:
    r, s = run.result, run.result.summary
    return (
        r.game, run.method, r.fusion, "+".join(r.models), r.seed, run.parameters, s["trained"],
        s["episodes"], s["return_mean"], s["return_low"], s["return_high"], s["random_return_mean"],
        s["human_normalized"], run.beats_random, run.folder.name,
    )  # fmt: skip


def _returns(runs: Sequence[EvaluatedRun], method: str) -> Returns:
    """Mean raw returns of a method's runs."""
    returns: Returns = {}
    for run in runs:
        if run.method == method:
            returns.setdefault(run.result.game, {})[run.result.seed] = run.mean
    return returns


@dataclasses.dataclass(frozen=True)
class Overall:
    """A method's results over all games, with the parameters of its largest network, the
    interquartile mean of human-normalized scores, and the probability that the reference method
    is better.
    """

    method: str
    parameters: int | None
    runs: int
    no_better: int
    iqm: Interval | None
    against: Interval | None


def _overall(
    runs: Sequence[EvaluatedRun], methods: Sequence[str], tables: Mapping[str, Returns]
) -> Iterator[Overall]:
    for method in methods:
        own_runs = [run for run in runs if run.method == method]
        raw = tables[method]
        scores = normalized(raw)
        iqm = stratified_interval(scores) if scores.size else None
        shared = [game for game in raw if game in tables.get(REFERENCE, {})]
        reference, own = complete(tables.get(REFERENCE, {}), shared), complete(raw, shared)
        against = None
        if method != REFERENCE and reference.size and own.size:
            against = improvement_interval(reference, own)
        counts = [run.parameters for run in own_runs if run.parameters is not None]
        yield Overall(
            method, max(counts, default=None), len(own_runs),
            sum(not run.beats_random for run in own_runs), iqm, against,
        )  # fmt: skip


def _overview(
    grid_plan: Plan, runs: Sequence[EvaluatedRun], failures: Sequence[Failure]
) -> Iterator[Text | Table]:
    lost = len(grid_plan.runs) - len(runs)
    yield Text(f"{len(runs)} of {len(grid_plan.runs)} runs are trained and evaluated.")
    if len({run.result.seed for run in runs}) < FEW:
        yield Text("With fewer than three seeds, the intervals say little about other seeds.")
    if failures:
        yield output.failures_table(failures)
    elif lost:
        yield Text(
            f"{lost} {'is' if lost == 1 else 'are'} missing. Run the same command again to continue."
        )
    if grid_plan.left_out:
        yield table(
            "Left out",
            ("run", "reason"),
            list(grid_plan.left_out.items()),
            "These runs are impossible with these models.",
        )


def _raw(runs: Sequence[EvaluatedRun], methods: Sequence[str]) -> Iterator[Table]:
    for game in dict.fromkeys(run.result.game for run in runs):
        rows = []
        for method in methods:
            own_runs = [r for r in runs if r.method == method and r.result.game == game]
            if own_runs:
                rows.append(_line(method, own_runs))
        chance = next(r for r in runs if r.result.game == game).result.summary["random_return_mean"]
        rows.append(("random policy", number(chance), "-", "-", "-", ""))
        yield table(
            f"Raw return: {game}",
            (
                "method",
                "mean",
                "std over seeds",
                "seeds",
                "parameters",
                "runs no better than random",
            ),
            rows,
        )


def _line(method: str, runs: Sequence[EvaluatedRun]) -> tuple[object, ...]:
    means = np.array([run.mean for run in runs])
    shown = numbers(means.mean(), *([means.std(ddof=1)] if len(means) > 1 else []))
    no_better = sum(not run.beats_random for run in runs)
    count = runs[0].parameters
    return (
        method, shown[0], shown[1] if len(shown) > 1 else None, len(runs), count and f"{count:,}",
        f"{no_better} of {len(runs)}" if no_better else "",
    )  # fmt: skip


def _aggregate(overall: Sequence[Overall]) -> Table:
    best = sorted(overall, key=lambda line: -line.iqm.value if line.iqm else math.inf)
    return table(
        "Over all games",
        ("method", "IQM", f"P({REFERENCE} better)", "parameters", "runs", "no better than random"),
        [
            (
                line.method,
                line.iqm,
                line.against,
                line.parameters and f"{line.parameters:,}",
                line.runs,
                f"{line.no_better} of {line.runs}",
            )
            for line in best
        ],
        "Human-normalized. P above 0.5: the reference is better more often than not. An interval that "
        "contains 0.5 decides nothing.",
    )


def _figures(
    runs: Sequence[EvaluatedRun],
    methods: Sequence[str],
    tables: Mapping[str, Returns],
    overall: Sequence[Overall],
) -> Iterator[Figure]:
    style = {name: 0 if name in PAPER else 1 for name in methods}
    ranked = sorted(((o, o.iqm) for o in overall if o.iqm), key=lambda pair: -pair[1].value)
    bars = [figures.Bar(o.method, *iqm, style[o.method]) for o, iqm in ranked]
    paper = "First color: methods of the paper. Second color: controls."
    if bars:
        yield Figure(
            "Interquartile mean over games and seeds",
            figures.intervals(bars, "human-normalized score", line=0.0),
            f"{paper} 0 is the published score of a random policy.",
        )
    counted = [
        (float(o.parameters), bar)
        for bar, (o, _) in zip(bars, ranked, strict=True)
        if o.parameters is not None
    ]
    if counted:
        sizes, sized = zip(*counted, strict=True)
        yield Figure(
            "Score against parameters",
            figures.points(sizes, sized, "trained parameters", "IQM"),
            paper,
        )
    against = [figures.Bar(o.method, *o.against, style[o.method]) for o in overall if o.against]
    if against:
        yield Figure(
            f"Probability that {REFERENCE} is better",
            figures.intervals(against, f"P({REFERENCE} > method)", line=0.5),
            "On a game drawn at random. An interval that contains 0.5 decides nothing.",
        )
    drawn = list(_profiles([o.method for o, _ in ranked], tables))
    if drawn:
        yield Figure(
            "Performance profile",
            figures.curves(drawn, "human-normalized score", "share of runs above"),
            f"With 95% bands: {REFERENCE} and the other methods with the highest IQM.",
        )
    for game in dict.fromkeys(run.result.game for run in runs):
        yield _of_game(game, [run for run in runs if run.result.game == game], style)


def _profiles(ranked: Sequence[str], tables: Mapping[str, Returns]) -> Iterator[figures.Line]:
    chosen = list(dict.fromkeys([*(m for m in ranked if m == REFERENCE), *ranked]))[:MOST_CURVES]
    scores = {method: normalized(tables[method]) for method in chosen}
    values = [value for own in scores.values() for value in own.ravel().tolist()]
    if not values:
        return
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) + 1e-3
    thresholds = np.linspace(low - margin, high + margin, 101)
    for method, own in scores.items():
        yield figures.Line(method, thresholds, *profile_band(own, thresholds))


def _of_game(game: str, runs: Sequence[EvaluatedRun], style: Mapping[str, int]) -> Figure:
    bars = []
    for method in dict.fromkeys(run.method for run in runs):
        own_runs = [run for run in runs if run.method == method]
        summary = own_runs[0].result.summary
        interval = Interval(own_runs[0].mean, summary["return_low"], summary["return_high"])
        if len(own_runs) > 1:
            interval = stratified_interval(np.array([[run.mean] for run in own_runs]), mean_score)
        bars.append(figures.Bar(method, *interval, style[method]))
    bars.sort(key=lambda bar: -bar.value)
    chance = float(runs[0].result.summary["random_return_mean"])
    return Figure(
        f"Raw return: {game}",
        figures.intervals(bars, "raw return", line=chance),
        "Mean with 95% bootstrap interval over seeds, or over games for a single seed. Dashed: random policy.",
    )


def _curves(runs: Sequence[EvaluatedRun]) -> Iterator[Figure]:
    """Returns during training, for runs that played."""
    logged = list(curves_of([(run.folder, run.result) for run in runs]))
    called = {str(Method(r.result.fusion, r.result.models)): r.method for r in runs}
    for game, curves in returns_of(logged).items():
        middles, by_method = stretched(curves)
        lines = []
        for method, means in by_method.items():
            known = np.isfinite(means).all(axis=0)
            if known.any():
                x, y = middles[known], means[:, known]
                band = y.mean(axis=0), y.min(axis=0), y.max(axis=0)
                lines.append(figures.Line(called[method], x, *band))
        if lines:
            yield Figure(
                f"During training: {game}",
                figures.curves(lines, "steps", "raw return"),
                "Mean over seeds; the band spans the worst to the best seed.",
            )
