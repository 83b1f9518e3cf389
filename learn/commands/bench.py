"""`wsa bench`: train and evaluate a grid of runs, skip finished ones, and tabulate the results."""

from __future__ import annotations

from pathlib import Path

from wsa.learn.bench import grid, report, runner
from wsa.learn.bench.grid import Cell
from wsa.learn.configs.bench import BenchOptions
from wsa.store.common import terminal
from wsa.store.objects.root import open_snapshot


def bench(o: BenchOptions) -> int:
    """`wsa bench`; the exit code is that of the first failed run, or 0."""
    grid.check(o)
    create = o.online and not o.dry_run
    _, snapshot = open_snapshot(o.store, create=create, or_empty=o.online and o.dry_run)
    settings = grid.shared_settings(o, snapshot)
    cells = grid.cells(o, settings)
    left = [cell for cell in cells if cell.result() is None]
    terminal.say(f"{len(cells) - len(left)} of {len(cells)} runs are done; {o.bench_dir}")
    if o.dry_run:
        return _dry(o, cells, left)
    grid.write(o, settings)
    failures = list(runner.run_cells(o, left))
    written = report.write(
        Path(o.bench_dir), cells[0].evaluation, settings.options["store"], grid.changed(o)
    )
    if o.json:
        terminal.result(True, written.summary(failures))
    else:
        print(written.markdown)
    return runner.say_failures("bench", failures, len(cells))


def _dry(o: BenchOptions, cells: list[Cell], left: list[Cell]) -> int:
    """Print the progress of each run of the grid.

    Raises:
        WsaError: If an offline run that has not begun could not be started.
    """
    if not o.online:  # Configuring an online run may add models to the store.
        from wsa.learn.bench.run_cell import configured  # Imported here: it imports torch.

        # Runs that differ only in their seed can start, or not, together.
        alike = {(c.request.game, c.request.fusion, c.request.models): c for c in left}
        for cell in alike.values():
            configured(cell, "cpu")
    rows = []
    for cell in cells:
        request = cell.request
        models = "+".join(request.models) or "pixels"
        rows.append((request.game, request.fusion, models, str(request.seed), cell.state()))
    unit = "steps" if o.online else "updates"
    total = {
        "runs": len(cells),
        "left": len(left),
        f"{unit}_left": sum(cell.left() for cell in left),
        "games_left": len(left) * o.episodes,
    }
    return grid.print_grid(o.json, total, ("game", "fusion", "models", "seed", unit), rows)
