"""What a lab saves: 4 fusions x 5 seeds on one data set, by wsa and with models in the loop.

    python -m benchmarks.learning.lab [--updates 100] [--to-updates 100000] [--watts-per-core 4.4]

The script plays a game, encodes it, and trains a grid, with the commands that a lab would use and
one cell after the other. Then it trains on a few batches of the same data with the models in the
loop, as the authors do: every state and next state goes through each model once, in the engine that
filled the store. That learner makes the same update in all other respects.

A first, small data set takes the startup, such as the choice of engines, so it counts once. The
rest of the data is multiplied out to `--to-steps`, and training to `--to-updates`. The first table
has what was measured and its factor, the second table the products. Both learners pay the same for
startup and final games; the games are cut after 50 steps, so that they take seconds.

A second user, with a store and a cache of their own, pulls embeddings and rows but no frames, and
repeats the first cell. The script stops if that makes a pass, or if any bit of the checkpoint
differs.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.kit import command, markdown
from wsa.encode.inference.cores import cores
from wsa.encode.inference.encoder import Encoder
from wsa.encode.inference.segment_inputs import read_segment_frames
from wsa.encode.registration.register import open_models
from wsa.learn.data.transitions import OfflineBatches
from wsa.learn.offline.trainer import make_learner
from wsa.learn.runs.config import OfflineRun, read_config
from wsa.learn.runs.data import open_data
from wsa.learn.runs.network import make_network

LONGEST = 50  # Steps of a game.


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and what to multiply it out to."""

    game: str = "Breakout"
    """ALE game."""
    models: str = "lite0,lite1,lite2"
    """Models to fuse; each sees one frame."""
    output: str = "pooled"
    """Embedding to keep. The default needs no basis, whose fit takes minutes."""
    fusions: str = "wsa,mean,lin,dpa"
    """Fusions of the grid."""
    seeds: int = 5
    """Seeds of each fusion."""
    first_steps: int = 128
    """Steps of the first data set, which counts once."""
    steps: int = 1000
    """Steps of the second data set, which is multiplied out."""
    updates: int = 100
    """Updates of each cell."""
    loop_updates: int = 2
    """Updates with models in the loop, for each fusion."""
    to_steps: int = 100_000
    """Steps of the lab's data set: the default of wsa collect."""
    to_updates: int = 100_000
    """Updates of each of the lab's cells: the default of wsa learn."""
    watts_per_core: float = 4.4
    """Power of a busy core. The default is the TDP of a server's EPYC 7763: 280 W for 64 cores."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds, and passes through backbones."""

    wall: float = 0.0
    cpu: float = 0.0
    passes: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu, self.passes + other.passes)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.wall * times, self.cpu * times, self.passes * times)


@dataclasses.dataclass(frozen=True)
class Part:
    """A measured part of the work, and the factor to multiply it by."""

    name: str
    cost: Cost
    times: float = 1

    def row(self) -> list[object]:
        """A row of the table of parts."""
        cost = self.cost
        return [self.name, f"{cost.wall:.1f}", f"{cost.cpu:.1f}", f"{cost.passes:,.0f}",
                f"{self.times:,.0f}"]  # fmt: skip


def total(name: str, parts: Sequence[Part], watts: float) -> list[object]:
    """A row of the table of products."""
    cost = sum((part.cost * part.times for part in parts), Cost())
    hours, busy = cost.wall / 3600, cost.cpu / 3600
    return [name, f"{hours:,.1f}", f"{cost.passes:,.0f}", f"{busy:,.1f}", f"{busy * watts:,.0f}"]


def filled(o: Options, store: Path, steps: int, seed: int) -> tuple[Cost, Cost]:
    """Collect and encode some steps; return the cost of each command."""
    where = (f"--store={store}", f"--game={o.game}")
    _, *collected = command(
        sys.executable, "collect", *where, f"--steps={steps}", "--num-envs=4", f"--seed={seed}",
        f"--max-episode-steps={LONGEST}",
    )  # fmt: skip
    said, *encoded = command(
        sys.executable, "encode", *where, f"--models={o.models}", f"--output={o.output}",
        "--scheduler=inproc",
    )  # fmt: skip
    return Cost(*collected), Cost(*encoded, said["passes"] + said["fit_passes"])


def trained(o: Options, store: Path, bench: Path) -> tuple[Cost, Cost]:
    """Train the grid; return the cost of its updates, and of everything else."""
    seeds = ",".join(map(str, range(1, o.seeds + 1)))
    _, wall, cpu = command(
        sys.executable, "bench", f"--store={store}", f"--games={o.game}", f"--fusions={o.fusions}",
        f"--models={o.models}", f"--seeds={seeds}", f"--updates={o.updates}", "--episodes=1",
        "--eval-num-envs=1", f"--bench-dir={bench}",
    )  # fmt: skip
    updating = sum(map(seconds_of_updates, bench.glob("runs/*/metrics.jsonl")))
    with (bench / "results.csv").open() as file:
        played = sum(float(row["backbone_passes"]) for row in csv.DictReader(file))
    share = updating / wall
    return Cost(wall, cpu) * share, Cost(wall, cpu) * (1 - share) + Cost(passes=played)


def seconds_of_updates(metrics: Path) -> float:
    """Seconds that a run's updates took, from its logged rates."""
    seconds, before = 0.0, 0
    for line in map(json.loads, metrics.read_text().splitlines()):
        if "time/updates_per_s" in line:
            seconds += (line["step"] - before) / line["time/updates_per_s"]
            before = line["step"]
    return seconds


def looped(runs: Sequence[Path], updates: int) -> Cost:
    """Cost of some updates of each run's learner, with its models in the loop."""
    encoders: list[Encoder] = []
    spent = Cost()
    draw = np.random.default_rng(0)
    for run in runs:
        config = read_config(run)
        assert isinstance(config, OfflineRun)
        snapshot, flat = open_data(config)
        assert flat is not None
        encoders = encoders or open_models(snapshot, config.inputs)
        frames = read_segment_frames(snapshot, snapshot.segments()[0], rows=False).frames
        learner = make_learner(
            config.hyperparameters, make_network(config, flat.windows, flat.shapes)
        )
        size = config.hyperparameters.batch_size
        batches = OfflineBatches(flat, config.network.frame_stack, size, 0)
        for encoder in encoders:
            encoder(frames[:1])  # Start its threads.
        passes, wall, cpu = Encoder.total_passes, time.perf_counter(), time.process_time()
        for step in range(1, updates + 1):
            seen = frames[draw.integers(len(frames), size=2 * size)]  # States and next states.
            for encoder in encoders:
                encoder(seen)
            learner.update(step, batches.draw())
        spent += Cost(
            time.perf_counter() - wall, time.process_time() - cpu, Encoder.total_passes - passes
        )
    return spent


def repeated(o: Options, store: Path, cell: Path, folder: Path) -> str:
    """Pull the store and repeat a cell as a second user, without a pass; describe it."""
    os.environ["WSA_CACHE"] = str(folder / "cache")
    mine = f"--store={folder / 'store'}"
    _, pulling, _ = command(sys.executable, "pull", store, mine, f"--game={o.game}", "--no-frames")
    config = read_config(cell)
    said, learning, _ = command(
        sys.executable, "learn", mine, f"--game={o.game}", f"--models={o.models}",
        f"--fusion={config.network.fusion.name}", f"--seed={config.seed}",
        f"--updates={o.updates}", f"--run-dir={folder / 'run'}",
    )  # fmt: skip
    assert said["backbone_passes"] == 0, said
    file = f"checkpoints/{o.updates:09d}.safetensors"
    assert (cell / file).read_bytes() == (folder / "run" / file).read_bytes(), "not the same run"
    return (
        f"A second user pulled the store in {pulling:.1f} s and repeated the cell {cell.name} in "
        f"{learning:.1f} s: 0 passes, and the same checkpoint to the bit."
    )


def main(o: Options) -> None:
    """Measure, and print the tables."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["WSA_CACHE"] = str(folder / "cache")
        store, bench = folder / "store", folder / "bench"
        first = sum(filled(o, store, o.first_steps, 1), Cost())
        collected, encoded = filled(o, store, o.steps, 101)
        updating, rest = trained(o, store, bench)
        runs = sorted((bench / "runs").glob("*__1"), key=lambda run: "__wsa__" not in run.name)
        in_loop = looped(runs, o.loop_updates)
        second = repeated(o, store, runs[0], folder / "second")

    cells = len(runs) * o.seeds
    more_steps, more_updates = o.to_steps / o.steps, o.to_updates / o.updates
    loop_updates = len(runs) * o.loop_updates
    once = Part(f"collect and encode {o.first_steps:,} steps, startup included", first)
    collect = Part(f"collect {o.steps:,} steps", collected, more_steps)
    encode = Part(f"encode {o.steps:,} steps", encoded, more_steps)
    begin = Part(f"startup and final games of {cells} cells", rest)
    train = Part(f"{cells * o.updates:,} updates of wsa", updating, more_updates)
    loop = Part(
        f"{loop_updates:,} updates with models in the loop",
        in_loop,
        cells * o.to_updates / loop_updates,
    )
    print(f"{o.models}, {o.output}; measured on {cores()} cores:\n")
    parts = [once, collect, encode, begin, train, loop]
    markdown(["", "s", "CPU s", "passes", "times"], [part.row() for part in parts])
    print(f"\n{cells} cells of {o.to_updates:,} updates, {o.to_steps:,} steps of {o.game}:\n")
    markdown(
        ["", "hours", "passes", "CPU hours", f"Wh at {o.watts_per_core:g} W per core"],
        [
            total("wsa", [once, collect, encode, begin, train], o.watts_per_core),
            total("models in the loop", [collect, begin, loop], o.watts_per_core),
        ],
    )
    print(f"\n{second}")


if __name__ == "__main__":
    main(tyro.cli(Options))
