"""The report of `wsa study scale --during`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsa.learn.bench.grid import changed
from wsa.learn.bench.run_cell import Failure
from wsa.learn.configs.bench import BenchOptions
from wsa.learn.report import figures
from wsa.learn.report.document import Figure, Part, Text, table
from wsa.learn.study import output
from wsa.learn.study.games import PlayedGames, better_than_random, evaluation_note
from wsa.learn.study.scaling.during_plan import Stage
from wsa.store.common.terminal import number

KIND, TITLE = "scale-during", "While training: models added and dropped"
COLUMNS = (
    "game", "seed", "way", "order", "stage", "present", "parameters", "updates_so_far",
    "return_after_change", "return_at_end", "return_low", "return_high", "random_return_mean", "run",
)  # fmt: skip


def write(
    folder: Path,
    bench: BenchOptions,
    all_stages: Sequence[Stage],
    changes: Mapping[Path, PlayedGames],
    failures: Sequence[Failure],
) -> str:
    """Write the tables and the page; return the study as Markdown."""
    done = [stage for stage in all_stages if stage.cell.result() is not None]
    parts: list[Part] = [Text(f"{len(done)} of {len(all_stages)} runs are trained and evaluated.")]
    if lost := sum(not better_than_random(_summary(stage)) for stage in done):
        parts.append(
            Text(
                f"{lost} of them {'plays' if lost == 1 else 'play'} no better than a random policy (Welch's t-test at 5%). For "
                "such a network, the cost of a change cannot be measured."
            )
        )
    if failures:
        parts.append(output.failures_table(failures))
    for game in dict.fromkeys(stage.cell.request.game for stage in done):
        game_stages = [stage for stage in done if stage.cell.request.game == game]
        parts += [*_figures(game, game_stages, changes), *_tables(game, game_stages, changes)]
    evaluation = all_stages[0].cell.evaluation
    note = (
        f"{evaluation_note(evaluation)}. A stage continues from the previous stage's network with one "
        "model added or dropped. It is evaluated right after that change, before any update, and at its "
        "end. Controls are never changed, and train for as many updates as all stages together. Trained "
        "by wsa learn with "
        f"{', '.join(changed(bench)) or 'its defaults'}."
    )
    rows = [_row(stage, changes) for stage in done]
    return output.write(folder, KIND, TITLE, parts, note, {KIND: (COLUMNS, rows)})


def as_json(
    all_stages: Sequence[Stage], changes: Mapping[Path, PlayedGames]
) -> list[dict[str, Any]]:
    """The finished runs as JSON values."""
    done = (stage for stage in all_stages if stage.cell.result() is not None)
    return [dict(zip(COLUMNS, _row(stage, changes), strict=True)) for stage in done]


def _summary(stage: Stage) -> dict[str, Any]:
    result = stage.cell.result()
    assert result is not None
    return result.summary


def _so_far(stage: Stage) -> int:
    return stage.cell.total + (_so_far(stage.before) if stage.before else 0)


def _row(stage: Stage, changes: Mapping[Path, PlayedGames]) -> tuple[Any, ...]:
    s, r, shock = _summary(stage), stage.cell.request, changes.get(stage.cell.folder)
    return (
        r.game, r.seed, stage.way, str(stage), stage.number, "+".join(stage.present),
        s.get("parameters"), _so_far(stage), shock and shock.mean, s["return_mean"], s["return_low"], s["return_high"],
        s["random_return_mean"], stage.cell.folder.name,
    )  # fmt: skip


def _mean(values: Sequence[float]) -> str | None:
    return number(float(np.mean(values))) if values else None


def _tables(
    game: str, game_stages: Sequence[Stage], changes: Mapping[Path, PlayedGames]
) -> Iterator[Part]:
    chance = _summary(game_stages[0])["random_return_mean"]
    for way, title in (("add", "Added"), ("drop", "Dropped"), ("control", "Never changed")):
        rows = []
        for name in dict.fromkeys(str(s) for s in game_stages if s.way == way):
            same_order = [s for s in game_stages if s.way == way and str(s) == name]
            before = [_summary(s.before)["return_mean"] for s in same_order if s.before]
            shock = [changes[f].mean for s in same_order if (f := s.cell.folder) in changes]
            end = [_summary(s)["return_mean"] for s in same_order]
            rows.append(
                (name, _so_far(same_order[0]), _mean(before), _mean(shock), _mean(end), len(end))
            )
        yield table(
            f"{title}: {game}",
            ("order", "updates", "before", "right after", "at the end", "seeds"),
            rows,
            f"Mean raw returns over seeds. A random policy reaches {number(chance)}.",
        )


def _figures(
    game: str, game_stages: Sequence[Stage], changes: Mapping[Path, PlayedGames]
) -> Iterator[Figure]:
    """For each order, the returns before a change, after it, and at the end of its stage."""
    for way, title in (("add", "adding"), ("drop", "dropping")):
        lines = []
        last = max((s.number for s in game_stages if s.way == way), default=0)
        for name in dict.fromkeys(str(s) for s in game_stages if s.way == way and s.number == last):
            ends = [s for s in game_stages if s.way == way and str(s) == name]
            paths = [_path(stage, changes) for stage in ends]
            complete_paths = [np.array(path) for path in paths if len(path) == max(map(len, paths))]
            x, y = np.mean(complete_paths, axis=0).T
            lines.append(figures.Line(name, x, y))
        if lines:
            yield Figure(
                f"Shock and recovery, {title}: {game}",
                figures.curves(lines, "updates", "raw return"),
                "Vertical steps are changes of models, slopes are training. Mean over seeds.",
            )


def _path(stage: Stage, changes: Mapping[Path, PlayedGames]) -> list[tuple[float, float]]:
    """Updates and returns from the first stage to this one; a change is a vertical step."""
    path = _path(stage.before, changes) if stage.before else []
    if path and (shock := changes.get(stage.cell.folder)) is not None:
        path.append((path[-1][0], shock.mean))
    path.append((float(_so_far(stage)), float(_summary(stage)["return_mean"])))
    return path
