"""Results of a bench as tables: raw, normalized, aggregated over games and seeds, and curves.

results.csv   raw results, one row for each run
table.csv     a row for each method and game, and one for each method over all games
table.md      the same as Markdown
report.html   the same with figures, as one page that can be mailed
curves.csv    metrics logged during training: returns, validation scores, weights
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsa.learn.bench import plot
from wsa.learn.bench.grid import Result, read_result
from wsa.learn.bench.plot import Curve
from wsa.learn.bench.run_cell import Failure
from wsa.learn.configs.evaluation import EvaluationSettings
from wsa.learn.evaluation.scores import (
    RANDOM_HUMAN,
    Interval,
    Scores,
    human_normalized,
    stratified_interval,
)
from wsa.learn.report import figures
from wsa.learn.report.document import (
    Figure,
    Part,
    Section,
    Text,
    csv_table,
    markdown,
    table,
    versions,
)
from wsa.learn.report.page import page
from wsa.learn.training import metrics
from wsa.learn.training.metrics import EVALUATION_RETURN, TRAINING_RETURN
from wsa.store.common import atomic_files
from wsa.store.common.terminal import number, numbers, plural
from wsa.store.objects.writer import command_line

# Returns for a game's curve: those of evaluations if there were any, else those of training.
RETURNS = (EVALUATION_RETURN, TRAINING_RETURN)
CURVES = ("eval/", TRAINING_RETURN, "validation/", "wsa/")
ALL = "all games"

RUN_COLUMNS = (
    "parameters", "trained", "episodes", "return_mean", "return_std", "return_low", "return_high",
    "human_normalized", "random_return_mean", "random_human_normalized", "hit_rate",
    "backbone_passes",
)  # fmt: skip


class Method(NamedTuple):
    """A method under comparison: a fusion, and the models that it fuses."""

    fusion: str
    models: tuple[str, ...]

    def __str__(self) -> str:
        """Name of the method in tables."""
        return f"{self.fusion} {'+'.join(self.models)}".rstrip()


@dataclasses.dataclass(frozen=True)
class Line:
    """Results of a method on a game, or over all games.

    The mean and the sample standard deviation are over runs of their mean raw returns; there is
    none over all games, and no deviation of a single run. The normalized score is the mean for a
    game, and over all games the interquartile mean, which has an interval. Parameters are those of
    the largest network; None if the runs' versions of wsa did not count them.
    """

    method: Method
    game: str
    seeds: int
    games: int
    mean: float | None
    std: float | None
    normalized: float | None
    interval: Interval | None = None
    parameters: int | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """The written report."""

    results: tuple[Result, ...]
    lines: tuple[Line, ...]
    markdown: str

    def summary(self, failures: Sequence[Failure]) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "runs": len(self.results),
            "failed": [dataclasses.asdict(failure) for failure in failures],
            "table": [dict(zip(TABLE_COLUMNS, _row(line), strict=True)) for line in self.lines],
        }


def write(
    folder: Path, evaluation: EvaluationSettings, store: str, changed: Sequence[str]
) -> Report:
    """Write the tables of a bench, for all of its runs evaluated with the same settings.

    Raises:
        DamagedError: If a run's result is damaged.
        StorageError: If there is no room, or the folder refuses access.
    """
    runs = sorted(_evaluated_runs(folder, evaluation), key=lambda run: _key(run[1]))
    results = [result for _, result in runs]
    lines = list(tabulate(results))
    curves = list(curves_of(runs))
    drawn = returns_of(curves)
    section = _section(results, lines, evaluation, store, changed, drawn)
    text = markdown(section)
    key_columns = ("game", "fusion", "models", "seed")
    raw = [(*_key(r), *(r.summary.get(name) for name in RUN_COLUMNS)) for r in results]
    files = {
        "results.csv": csv_table((*key_columns, *RUN_COLUMNS), raw),
        "table.csv": csv_table(TABLE_COLUMNS, map(_row, lines)),
        "table.md": text.encode(),
        "report.html": page("wsa bench", [section]).encode(),
        "curves.csv": csv_table((*key_columns, "step", "scalar", "value"), curves),
    }
    for game, of_game in drawn.items():
        files[f"curves-{game}.png"] = plot.png(f"{game}, raw return by step", of_game)
    for name, content in files.items():
        atomic_files.replace(folder / name, content)
    return Report(tuple(results), tuple(lines), text)


def tabulate(results: Sequence[Result]) -> Iterator[Line]:
    """Yield the rows of a table, by method."""
    for method in dict.fromkeys(Method(r.fusion, r.models) for r in results):
        of_method = [r for r in results if Method(r.fusion, r.models) == method]
        games = list(dict.fromkeys(r.game for r in of_method))
        raw = {
            game: {r.seed: float(r.summary["return_mean"]) for r in of_method if r.game == game}
            for game in games
        }
        for game, by_seed in raw.items():
            returns = np.array(list(by_seed.values()))
            mean = float(returns.mean())
            std = float(returns.std(ddof=1)) if len(returns) > 1 else None
            score = human_normalized(game, mean)
            counted = _parameters(r for r in of_method if r.game == game)
            yield Line(method, game, len(returns), 1, mean, std, score, parameters=counted)
        yield dataclasses.replace(_over_games(method, raw), parameters=_parameters(of_method))


def _parameters(results: Iterable[Result]) -> int | None:
    """Number of parameters of the largest network; None if none was counted."""
    counts = [r.summary.get("parameters") for r in results]
    return max((count for count in counts if count is not None), default=None)


def _over_games(method: Method, raw: Mapping[str, Mapping[int, float]]) -> Line:
    """Interquartile mean over games with a known human score, and seeds that have all of them."""
    scores = normalized(raw)
    seeds, games = scores.shape
    if not seeds:
        return Line(method, ALL, 0, games, None, None, None)
    interval = stratified_interval(scores)
    return Line(method, ALL, seeds, games, None, None, interval.value, interval)


def normalized(raw: Mapping[str, Mapping[int, float]]) -> Scores:
    """Human-normalized scores (seeds, games) of the games with a human score; see `complete`."""
    scores = {
        game: {seed: human_normalized(game, mean) for seed, mean in by_seed.items()}
        for game, by_seed in raw.items()
        if game in RANDOM_HUMAN
    }
    return complete(scores, list(scores))


def complete(raw: Mapping[str, Mapping[int, Any]], games: Sequence[str]) -> Scores:
    """Values (seeds, games) of the seeds that finished all these games."""
    seeds = sorted(set.intersection(*(set(raw.get(game, {})) for game in games))) if games else []
    values = [[raw[game][seed] for game in games] for seed in seeds]
    return np.array(values, np.float64).reshape(len(seeds), len(games))


TABLE_COLUMNS = (
    "fusion", "models", "parameters", "game", "games", "seeds", "return_mean", "return_std",
    "human_normalized", "low", "high",
)  # fmt: skip


def _row(line: Line) -> tuple[Any, ...]:
    low, high = (line.interval.low, line.interval.high) if line.interval else (None, None)
    models = "+".join(line.method.models)
    return (
        line.method.fusion, models, line.parameters, line.game, line.games, line.seeds, line.mean,
        line.std, line.normalized, low, high,
    )  # fmt: skip


def _section(
    results: Sequence[Result],
    lines: Sequence[Line],
    evaluation: EvaluationSettings,
    store: str,
    changed: Sequence[str],
    drawn: Mapping[str, Sequence[Curve]],
) -> Section:
    """The bench's report: two tables, intervals over games, and each game's curves."""
    games = list(dict.fromkeys(r.game for r in results))
    methods = list(dict.fromkeys(line.method for line in lines))
    by_method = {(line.method, line.game): line for line in lines}
    raw, normalized, bars = [], [], []
    for method in methods:
        cells = [by_method.get((method, game)) for game in games]
        overall = by_method[method, ALL]
        raw.append([str(method), *(_raw(line) for line in cells)])
        scores = [
            "" if line is None or line.normalized is None else f"{line.normalized:.3f}"
            for line in cells
        ]
        counted = f"{overall.games} x {overall.seeds}"
        size = "" if overall.parameters is None else f"{overall.parameters:,}"
        normalized.append([str(method), *scores, str(overall.interval or ""), counted, size])
        if overall.interval:
            bars.append(figures.Bar(str(method), *overall.interval))
    chance = {r.game: r.summary["random_return_mean"] for r in results}
    raw.append(["random policy", *(number(chance[game]) for game in games)])
    parts: list[Part] = [
        Text(
            f"{plural(len(results), 'run')}; `wsa learn` with {', '.join(changed) or 'its defaults'}; store "
            f"{store}."
        )
    ]
    if bars:
        drawing = figures.intervals(bars, "IQM of human-normalized scores", line=0.0)
        parts.append(
            Figure(
                "All games",
                drawing,
                "0 is the published score of a random policy, 1 that of a human tester.",
            )
        )
    for game, curves in drawn.items():
        # A mean has no point if no stretch of steps has an episode of every run.
        strong = [line for line in plot.lines(curves) if not line.pale and np.size(line.x)]
        figure_lines = [figures.Line(line.label, line.x, line.y) for line in strong]
        note = "Mean over runs; the number of runs is in parentheses."
        if figure_lines:
            parts.append(Figure(game, figures.curves(figure_lines, "steps", "raw return"), note))
    parts += [
        table(
            "Raw return",
            ["method", *games],
            raw,
            f"Mean of {plural(evaluation.episodes, 'full game')} (epsilon {evaluation.epsilon:g}), then mean +- sample "
            "standard deviation over seeds; the number of seeds is in parentheses.",
        ),
        table(
            "Human-normalized",
            ["method", *games, "IQM", "games x seeds", "parameters"],
            normalized,
            "0 is the score of a random policy, 1 that of a human tester (Mnih et al., 2015; Wang et "
            "al., 2016). IQM: interquartile mean over games x seeds, with 95% stratified bootstrap "
            "interval; a single seed has none. Parameters: number of trainable parameters of the "
            "largest network, including its head.",
        ),
    ]
    return Section(
        "bench", "Results", tuple(parts), {"command": command_line(), "versions": versions()}
    )


def _raw(line: Line | None) -> str:
    if line is None:
        return ""
    shown = numbers(*(value for value in (line.mean, line.std) if value is not None))
    return f"{' +- '.join(shown)} ({line.seeds})"


def _evaluated_runs(folder: Path, evaluation: EvaluationSettings) -> Iterator[tuple[Path, Result]]:
    for run in sorted((folder / "runs").glob("*/")):
        result = read_result(run)
        if result is not None and result.evaluation == evaluation:
            yield run, result


def _key(result: Result) -> tuple[str, str, str, int]:
    return result.game, result.fusion, "+".join(result.models), result.seed


def curves_of(runs: Sequence[tuple[Path, Result]]) -> Iterator[tuple[Any, ...]]:
    """Yield every logged scalar that is worth a curve."""
    for folder, result in runs:
        for line in metrics.read(folder):
            for scalar, value in line.items():
                if scalar.startswith(CURVES) and value is not None:
                    yield (*_key(result), line["step"], scalar, value)


def returns_of(curves: Sequence[tuple[Any, ...]]) -> dict[str, list[Curve]]:
    """Curves of returns, by game, from the output of `curves_of`."""
    points: dict[tuple[str, str, int], list[tuple[float, float]]] = defaultdict(list)
    logged = {(game, scalar) for game, *_, scalar, _ in curves}
    for game, fusion, models, seed, step, scalar, value in curves:
        if scalar == next((known for known in RETURNS if (game, known) in logged), ""):
            points[game, f"{fusion} {models}".rstrip(), seed].append((step, value))
    curves_by_game: dict[str, list[Curve]] = defaultdict(list)
    for (game, method, _), pairs in points.items():
        steps, returns = np.array(pairs, np.float64).T
        curves_by_game[game].append(Curve(method, steps, returns))
    return curves_by_game
