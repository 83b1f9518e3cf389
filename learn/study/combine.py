"""`wsa study combine`: compare ways of combining models, with the cells of a bench."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from wsa.encode.inference.encoder import choose_device
from wsa.learn.bench import grid, runner
from wsa.learn.bench.run_cell import Failure
from wsa.learn.configs.study import CombineOptions
from wsa.learn.study import combine_report
from wsa.learn.study.combine_plan import Plan, Planned, costs, plan
from wsa.store.common import terminal
from wsa.store.objects.root import open_snapshot
from wsa.store.objects.snapshot import Snapshot


def combine(o: CombineOptions) -> int:
    """`wsa study combine`; the exit code is that of the first failed run, or 0."""
    create = o.online and not o.dry_run
    _, snapshot = open_snapshot(o.store, create=create, or_empty=o.online and o.dry_run)
    device = choose_device(o.compute.device)
    grid_plan = plan(o, snapshot, device)
    left = [run for run in grid_plan.runs if run.cell.result() is None]
    terminal.say(
        f"{len(grid_plan.runs) - len(left)} of {len(grid_plan.runs)} runs are done; {o.study_dir}"
    )
    for name, why in grid_plan.left_out.items():
        terminal.say(f"left out: {name}: {why}")
    if o.dry_run:
        return _dry(o, grid_plan, left, snapshot, device)
    grid.write(grid_plan.bench, grid_plan.settings)
    failures = list(runner.run_cells(grid_plan.bench, [run.cell for run in left]))
    return _report(o, grid_plan, failures)


def _dry(
    o: CombineOptions, grid_plan: Plan, left: list[Planned], snapshot: Snapshot, device: str
) -> int:
    rows = [
        (run.cell.request.game, run.method, run.cell.request.seed, run.parameters, run.cell.state())
        for run in grid_plan.runs
    ]
    columns = ("game", "method", "seed", "parameters", "state")
    total = costs(grid_plan, left, snapshot, device)
    return grid.print_grid(o.json, total, columns, rows, left_out=grid_plan.left_out)


def _report(o: CombineOptions, grid_plan: Plan, failures: list[Failure]) -> int:
    folder = Path(o.study_dir)
    report = combine_report.write(folder, grid_plan, failures)
    if o.json:
        terminal.result(
            True,
            {
                "runs": len(grid_plan.runs),
                "failed": [dataclasses.asdict(failure) for failure in failures],
                "left_out": grid_plan.left_out,
                "table": report.table,
            },
        )
    else:
        print(report.markdown)
    terminal.say(f"{folder / 'index.html'}")
    return runner.say_failures("study", failures, len(grid_plan.runs))
