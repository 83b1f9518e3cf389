"""Output of `wsa probe`: Markdown tables, and the same results as JSON and CSV values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsa.learn.evaluation.scores import Interval
from wsa.learn.probe.probe import ENDS, NARROW, WAYS, Line, Table, Way
from wsa.learn.probe.scores import HIT_WITHIN
from wsa.store.common import terminal

_UNTRAINED = ", seed "
_TITLES: dict[str, str] = {
    "both": "",
    "transfer": "random to better: ",
    "narrow": f"{NARROW} axes: ",
}


def means_table(table: Table, *, hits: bool) -> str:
    """One row for each model, from best to worst; seeds of an untrained network share a row."""
    ways: list[Way] = [way for way in WAYS if any(way in line.sums for line in table.lines)]
    columns = ["model", "numbers"]
    for way in ways:
        columns += [f"{_TITLES[way]}R2", f"{_TITLES[way]}hit"][: 1 + hits]
    rows = []
    for name, lines in _grouped(table):
        row = [name, f"{lines[0].numbers:,}" if lines[0].numbers else "-"]
        for way in ways:
            pairs = [table.means.get((line.name, way)) for line in lines]
            for i in range(1 + hits):
                row.append(_interval([pair[i] for pair in pairs if pair]))
        rows.append(row)
    return terminal.markdown(columns, rows)


def _grouped(table: Table) -> list[tuple[str, list[Line]]]:
    """Ranked lines; seeds of an untrained network are grouped and ranked by their mean."""
    groups: dict[str, list[Line]] = {}
    for line in table.ranked():
        name = line.name.partition(_UNTRAINED)[0] if line.kind == "untrained" else line.name
        groups.setdefault(name, []).append(line)

    def place(lines: list[Line]) -> tuple[int, float]:
        return ENDS.get(lines[0].kind, 1), -sum(map(table.rank, lines)) / len(lines)

    return [
        (f"{name}, {len(lines)} seeds" if len(lines) > 1 else lines[0].name, lines)
        for name, lines in sorted(groups.items(), key=lambda one: place(one[1]))
    ]


def _interval(means: Sequence[Interval]) -> str:
    """A mean with its interval over episodes; for several seeds, mean, minimum, and maximum."""
    if len(means) <= 1:
        return str(means[0]) if means else "-"
    values = [mean.value for mean in means]
    return str(Interval(sum(values) / len(values), min(values), max(values)))


def notes(table: Table, *, hits: bool) -> list[str]:
    """Notes on reading the table of means, and on measures that cannot rank."""
    remarks = []
    if table.lines[0].kind == "state":
        remarks += [
            f"{_displayed(name)} is not used for ranking: the true state has {one.true_state:.2f}, "
            f"{one.best_name} {one.best_other:.2f}"
            for name, one in table.calibrations.items()
            if not one.ranks
        ]
        if not table.ranked_by:
            remarks.append("no measure puts the true state first, so the models are not ranked")
    kinds = set(table.better.tolist())
    if len(kinds) == 1:
        remarks.append(
            f"only {'better' if kinds == {True} else 'random'} play is probed: the store has no other "
            "play that all these models have encoded"
        )
    if table.unread:
        remarks.append(
            f"left out of means, because no encoder predicts them (R2 below 0.1): {', '.join(table.unread)}"
        )
    seeds = " For several seeds, brackets show the minimum and maximum."
    spread = seeds if any(len(lines) > 1 for _, lines in _grouped(table)) else ""
    what = f" A hit is within {HIT_WITHIN} units of memory." if hits else ""
    by = f"Ranked by {_displayed(table.ranked_by)}. " if table.ranked_by else ""
    remarks.append(f"{by}In brackets: 95% intervals over episodes.{spread}{what}")
    return remarks


def _displayed(measure: str) -> str:
    """Displayed name of a measure of `Table.calibrations`."""
    name, _, way = measure.partition(" ")
    return _TITLES[way or "both"] + {"r2": "R2", "hit": "hit", "f1": "F1"}[name]


def variables_table(table: Table, *, hits: bool) -> str:
    """R2 and hits of each variable, by model."""
    rows = []
    for line in table.ranked():
        scores = line.scores("both")
        if scores is None:
            continue
        cells = []
        for i, name in enumerate(table.ordered):
            cell = _number(scores.r2[i])
            cells.append(
                f"{cell} / {_number(scores.hit[i])}" if hits and name in table.counted else cell
            )
        rows.append([line.name, *cells])
    return terminal.markdown(["", *table.ordered], rows)


def f1_table(table: Table, *, plain: bool) -> str:
    """F1 of each variable, by model: the plain mean over its values if `plain`, else weighted."""
    average: Literal["macro", "weighted"] = "macro" if plain else "weighted"
    ranked = table.ranked()
    names = list(ranked[0].f1)
    rows = []
    for line in ranked:
        values = [line.mean_f1(average), *(getattr(line.f1[name], average) for name in names)]
        rows.append([line.name, *map(_number, values)])
    return terminal.markdown(["", "mean", *names], rows)


def seen_table(seen: dict[str, dict[str, float]], shown: dict[str, float]) -> str:
    """How often each object is on the screen, and how often its exact position was in training."""
    rows = [
        [thing, _number(shown[thing]), _number(of.get("random")), _number(of.get("better"))]
        for thing, of in seen.items()
    ]
    columns = ["object", "on the screen", "position seen in training, random play", "better play"]
    return terminal.markdown(columns, rows)


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def as_json(table: Table) -> dict[str, Any]:
    """All results as JSON values."""
    return {
        "ranked_by": table.ranked_by,
        "hit_within": HIT_WITHIN,
        "counted": [name for name in table.counted if name not in table.unread],
        "unread": table.unread,
        "calibration": {
            name: {**dataclasses.asdict(one), "ranks": one.ranks}
            for name, one in table.calibrations.items()
        },
        "models": [_line(table, line) for line in table.ranked()],
    }


def _line(table: Table, line: Line) -> dict[str, Any]:
    ways: dict[str, Any] = {}
    for way in line.sums:
        scores, pair = line.scores(way), table.means.get((line.name, way))
        assert scores is not None
        ways[way] = {
            "mean_r2": pair and pair[0]._asdict(),
            "mean_hit": pair and pair[1]._asdict(),
            "r2": _values(table.ordered, scores.r2),
            "hit": _values(table.ordered, scores.hit),
        }
    return {
        "name": line.name,
        "key": line.key,
        "kind": line.kind,
        "numbers": line.numbers,
        "kept": line.kept,
        **ways,
        "f1": {name: dataclasses.asdict(one) for name, one in line.f1.items()},
        "mean_f1": line.mean_f1("weighted"),
        "mean_f1_macro": line.mean_f1("macro"),
    }


def _values(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, float | None]:
    pairs = zip(names, values, strict=True)
    return {name: None if math.isnan(v) else float(v) for name, v in pairs}


CSV_COLUMNS = [
    *("model", "key", "kind", "numbers", "variable"),
    *(
        f"{measure}{'' if way == 'both' else f'_{way}'}"
        for way in WAYS
        for measure in ("r2", "hit")
    ),
    *("f1", "f1_macro"),
]


def csv_rows(table: Table) -> Iterator[list[Any]]:
    """Yield a row for each model and variable, with the columns `CSV_COLUMNS`."""
    for line in table.ranked():
        for name in dict.fromkeys([*table.ordered, *line.f1]):
            cells: list[float | None] = []
            for way in WAYS:
                scores = line.scores(way)
                i = table.ordered.index(name) if scores else 0
                cells += [scores.r2[i], scores.hit[i]] if scores else [None, None]
            f1 = line.f1.get(name)
            cells += [f1.weighted, f1.macro] if f1 else [None, None]
            shown = ["" if v is None or math.isnan(v) else f"{v:.4f}" for v in cells]
            yield [line.name, line.key, line.kind, line.numbers, name, *shown]
