"""Shared parts of the benchmarks: interleaved timing in one run, Markdown tables, and commands.

Absolute times on shared machines are unreliable, so every figure is a ratio of things measured side
by side: contenders are timed in turn, round after round, and their medians are compared.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsa.encode.jobs.plan import Plan
from wsa.learn.collect.collect import collect, plan_collection
from wsa.learn.envs import atari
from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.common.terminal import numbers
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot


def wsa(*arguments: object) -> None:
    """Run a command to its end, in a separate process."""
    command = [sys.executable, "-m", "wsa.cli", *map(str, arguments)]
    print("wsa", *arguments, flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds of some steps, over all threads."""

    steps: float
    wall: float
    cpu: float

    def row(self, name: str) -> list[object]:
        """A row of the table."""
        rate, each = self.steps / self.wall, 1000 * self.cpu / self.steps
        return [name, f"{rate:,.0f}", f"{each:.3f}", f"{self.cpu / self.wall:.2f}"]


def timed(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[bytes, float, float]:
    """Run a command to its end; return what it printed, and its wall and CPU seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        sys.exit(f"{' '.join(command)}\n{ended.stderr.decode()}")
    return ended.stdout, wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def command(python: str, *arguments: object) -> tuple[dict[str, Any], float, float]:
    """Run a command of wsa; return its --json output, and its wall and CPU seconds."""
    print("wsa", *arguments, file=sys.stderr, flush=True)
    said, wall, cpu = timed([python, "-m", "wsa.cli", *map(str, arguments), "--json"])
    return json.loads(said), wall, cpu


@contextmanager
def store_of(game: str, steps: int, segment_steps: int = 256) -> Iterator[tuple[Backend, Path]]:
    """A temporary store with `steps` steps of a game by a random policy, and its parent folder."""
    with tempfile.TemporaryDirectory() as folder:
        backend = open_store(f"{folder}/store", create=True)
        plan = plan_collection(
            take_snapshot(backend),
            game,
            atari.protocol(game, "classic"),
            steps=steps,
            num_envs=4,
            policy="random",
            seed=1,
            segment_steps=segment_steps,
        )
        collect(plan, backend)
        yield backend, Path(folder)


def forget(backend: Backend, plan: Plan) -> None:
    """Undo a plan, so that the next round repeats it."""
    for item in plan.items:
        path = names.embedding_path(item.meta.game, item.model, item.meta.segment)
        backend.delete(names.commit_path(hashing.object_id(path)))
        for file in list(backend.list(path)):
            backend.delete(file.path)


def interleave(
    contenders: dict[str, Callable[[], float]], rounds: int = 5
) -> dict[str, list[float]]:
    """Measure each contender's rate once per round; the order rotates from round to round."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for turn in range(rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            rates[name].append(contenders[name]())
    return rates


def rate(work: Callable[[], int], seconds: float = 2.0) -> float:
    """Work per second, from calling `work` for at least `seconds`; each call returns its amount."""
    started, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < seconds:
        done += work()
    return done / spent


def table(unit: str, rates: dict[str, list[float]], base: str) -> None:
    """Print medians, ranges, and ratios to `base`, as a Markdown table."""
    middle = statistics.median(rates[base])
    print(f"| | {unit} (median of {len(rates[base])}) | range | ratio |")
    print("| --- | --- | --- | --- |")
    for name, measured in rates.items():
        median = statistics.median(measured)
        shown, low, high = numbers(median, min(measured), max(measured))
        print(f"| {name} | {shown} | {low} to {high} | {median / middle:.2f} |")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(markdown_table(columns, rows))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    return "\n".join(map(markdown_line, [columns, ["---"] * len(columns), *rows]))


def markdown_line(cells: Sequence[object]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"
