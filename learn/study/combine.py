"""`wsa study combine`: compare ways of combining models, with the cells of a bench."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from wsa.encode.inference.encoder import choose_device
from wsa.learn.bench import grid, runner
from wsa.learn.bench.run_cell import Failure
from wsa.learn.configs.study import CombineOptions
from wsa.learn.study import combine_report
from wsa.learn.study.combine_plan import Plan, costs, left_of, plan
from wsa.store.common import terminal
from wsa.store.objects.root import open_snapshot
from wsa.store.objects.snapshot import Snapshot


def combine(o: CombineOptions, connect: runner.Connect) -> int:
    """`wsa study combine`; the exit code is that of the first failed run, or 0."""
    create = o.online and not o.dry_run
    _, snapshot = open_snapshot(o.store, create=create, or_empty=o.online and o.dry_run)
    device = choose_device(o.device)
    made = plan(o, snapshot, device)
    left = list(left_of(made))
    terminal.say(f"{len(made.runs) - len(left)} of {len(made.runs)} runs are done; {o.study_dir}")
    for name, why in made.left_out.items():
        terminal.say(f"left out: {name}: {why}")
    if o.dry_run:
        return _dry(o, made, snapshot, device)
    grid.write(made.bench, made.settings)
    cells = [run.cell for run in left]
    failures = list(runner.run_cells(made.bench, cells, connect))
    return _report(o, made, failures)


def _dry(o: CombineOptions, made: Plan, snapshot: Snapshot, device: str) -> int:
    left = list(left_of(made))
    total = costs(made, left, snapshot, device)
    columns = ("game", "method", "seed", "parameters", "state")
    rows = [
        (
            run.cell.request.game,
            run.method,
            run.cell.request.seed,
            run.parameters,
            f"{run.cell.done():,} of {run.cell.total:,}" if run in left else "done",
        )
        for run in made.runs
    ]
    if o.json:
        table = [dict(zip(columns, row, strict=True)) for row in rows]
        return terminal.result(True, {**total, "left_out": made.left_out, "grid": table})
    terminal.table("", columns, rows)
    print()
    return terminal.result(False, total)


def _report(o: CombineOptions, made: Plan, failures: list[Failure]) -> int:
    folder = Path(o.study_dir)
    report = combine_report.write(folder, made, failures)
    if o.json:
        terminal.result(
            True,
            {
                "runs": len(made.runs),
                "failed": [dataclasses.asdict(failure) for failure in failures],
                "left_out": made.left_out,
                "table": report.table,
            },
        )
    else:
        print(report.markdown)
    terminal.say(f"{folder / 'index.html'}")
    return runner.say_failures("study", failures, len(made.runs))
