"""The runs of `wsa study scale --during`: models are added and dropped in many orders.

A stage continues from the network of the stage before, with one model more or less. Orders that
start alike share their first stages, so for three models the six orders of adding are 15 runs, and
those of dropping 10. Controls are networks that never change, with as many updates.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from wsa.learn.bench import grid
from wsa.learn.bench.grid import Cell, Settings
from wsa.learn.configs.bench import BenchOptions
from wsa.learn.configs.learn import WarmStart

Way = Literal["add", "drop", "control"]
MOST_ALL_ORDERS = 3  # Number of models; with more, there are as many orders as models.


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of the study, with the models that were added or dropped so far, in order.

    It continues from the stage before, if any; a control never changes. Numbers start from 1.
    """

    way: Way
    changed: tuple[str, ...]
    present: tuple[str, ...]
    number: int
    cell: Cell
    before: Stage | None = None

    def __str__(self) -> str:
        """Name of the stage in text: its changes, a + b or all - b - a, or a control's models."""
        return "+".join(self.present) if self.way == "control" else self.cell.label


def orders(models: Sequence[str]) -> list[tuple[str, ...]]:
    """Orders in which to add models: all orders of up to three, or else those of a Latin square.

    In a Latin square each model has each position once.
    """
    if len(models) <= MOST_ALL_ORDERS:
        return list(itertools.permutations(models))
    return [tuple(models[i:]) + tuple(models[:i]) for i in range(len(models))]


def stages(bench: BenchOptions, settings: Settings) -> list[Stage]:
    """All runs, each after the one that it continues from."""
    all_stages: list[Stage] = []
    for game, seed in itertools.product(dict.fromkeys(bench.games), dict.fromkeys(bench.seeds)):
        maker = _StageBuilder(bench, settings, game, seed)
        all_stages += [*maker.changes("add"), *maker.changes("drop"), *maker.controls()]
    return all_stages


class _StageBuilder:
    """Makes the stages of one game and seed."""

    def __init__(self, bench: BenchOptions, settings: Settings, game: str, seed: int) -> None:
        self._bench, self._settings = bench, settings
        self._game, self._seed = game, seed
        self._models = tuple(dict.fromkeys(bench.models))

    def changes(self, way: Literal["add", "drop"]) -> list[Stage]:
        """From one model to all of them, or from all of them to one."""
        by_order: dict[tuple[str, ...], Stage] = {}
        for order in orders(self._models):
            for number in range(1, len(order) + 1):
                changed = order[:number] if way == "add" else order[: number - 1]
                if changed not in by_order:
                    kept = tuple(m for m in self._models if m not in changed)
                    present = changed if way == "add" else kept
                    before = by_order.get(changed[:-1])
                    by_order[changed] = self._stage(way, changed, present, number, before)
        return list(by_order.values())

    def controls(self) -> Iterator[Stage]:
        for present in (self._models, *((model,) for model in self._models)):
            yield self._stage("control", (), present, len(self._models), None)

    def _stage(
        self,
        way: Way,
        changed: tuple[str, ...],
        present: tuple[str, ...],
        number: int,
        before: Stage | None,
    ) -> Stage:
        bench = self._bench
        start = WarmStart()
        if before is not None:
            change = changed[-1:]
            init = str(before.cell.folder)
            start = WarmStart(init, add=change) if way == "add" else WarmStart(init, drop=change)
        request = dataclasses.replace(
            grid.with_models(grid.request_for(bench, "wsa"), present),
            game=self._game,
            seed=self._seed,
            store=str(self._settings.options["store"]),
            models=present if before is None else (),
            start=start,
        )
        if way == "control":  # Control: as many updates as all stages together.
            learner: Any = request.algorithm
            longer = msgspec.structs.replace(learner, updates=len(self._models) * learner.updates)
            request = dataclasses.replace(request, algorithm=longer)
        models_name = grid.folder_part(changed if way == "add" else (*present, *changed))
        name = f"{self._game}__{way}{len(changed)}__{models_name}__{self._seed}"
        label = {
            "add": " + ".join(changed),
            "drop": " - ".join(("all", *changed)),
            "control": f"never changed: {'+'.join(present)}",
        }[way]
        cell = Cell(
            request,
            (Path(bench.bench_dir) / "runs" / name).absolute(),
            bench.final_games.settings(bench.episodes),
            bench.compute,
            self._settings.segments.get(self._game, ()),
            label,
        )
        return Stage(way, changed, present, number, cell, before)
