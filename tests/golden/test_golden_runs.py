"""A store and run folders that commit 528a08d wrote are read, verified, played and trained on.

Only the command line is used: what is behind it may move. `make_runs.sh` made the data with that
commit, the last before runs of all kinds were given one configuration.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from wsa import cli

HERE = Path(__file__).parent / "528a08d"
pytestmark = pytest.mark.usefixtures("whole_strip")  # What the models' probes were taken on.
GAME = "Centipede"
# A model's output, and the objects, passes and copies that are left to do: the DQN run recorded four
# segments with its own two models only.
MODELS = {
    "ae": ("pooled", [0, 0, 0]),
    "sr": ("pooled+rp:16", [0, 0, 0]),
    "timm:test_resnet.r160_in1k:random": ("grid:2+rp:16", [4, 79, 11]),
}
RUNS = ("bc", "cql", "ppo", "ppo-lstm", "dqn", "nature")
FAST = ("cql",)  # The others are played by night.
UNFINISHED = ("cql", "ppo-lstm", "dqn")  # Killed half-way; the others are finished.
GAMES = (
    "--episodes",
    "1",
    "--num-envs",
    "1",
    "--engine",
    "torch",
    "--epsilon",
    "0.02",
    "--seed",
    "10001",
)


# The weights of `sr` that came with wsa then; since then others do.
OLD_SR = ["--weights", f"sr={HERE / 'sr.safetensors'}"]


def weights(run: Path) -> list[str]:
    """What opens the models of a run."""
    return OLD_SR if '"sr-' in (run / "config.json").read_text() else []


def said(*arguments: str) -> Any:
    """What a command prints with --json."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = cli.main([*arguments, "--json"])
    assert code == 0, arguments
    return json.loads(out.getvalue())


def copy(folder: Path, to: Path) -> Path:
    """The golden folder somewhere else.

    A run names its store, and what it began from, by absolute paths. Tables of online runs are
    padded with zeros, which were not kept.
    """
    copied = shutil.copytree(folder, to / "golden")
    written = json.loads((folder / "expected.json").read_text())
    for path in copied.glob("runs/*/config.json"):
        path.write_text(path.read_text().replace(written["root"], str(copied)))
    for name, length in written["lengths"].items():
        os.truncate(copied / name, length)
    return copied


def state_of(store: Path) -> dict[str, Any]:
    """What a store says of itself."""
    where = ("--store", str(store))
    kept = {
        "verify": ("objects", "files", "bytes", "leftovers", "damage"),
        "list": ("segments", "steps", "frames", "episodes", "mean_return", "bytes", "encoded"),
        "show": ("emulator", "protocols", "policies", "collections", "encoders", "authors"),
    }
    found = {
        "verify": said("verify", *where),
        "list": said("list", *where)[GAME],
        "show": said("show", GAME, *where),
    }
    return {verb: {name: found[verb][name] for name in names} for verb, names in kept.items()}


def played(run: Path, *options: str) -> dict[str, Any]:
    """What a run scores: updates, means, and of each game its policy, seed, return and steps."""
    (run / "eval.csv").unlink(missing_ok=True)
    summary = said("eval", str(run), *GAMES, *weights(run), *options)
    with (run / "eval.csv").open(newline="") as file:
        games = [[g["policy"], g["seed"], g["return"], g["steps"]] for g in csv.DictReader(file)]
    kept = ("updates", "return_mean", "random_return_mean")
    return {name: summary[name] for name in kept} | {"games": games}


def worth(run: Path) -> dict[str, Any]:
    """What a run scores as it is, its best network too, and as it is once it was continued."""
    found = {"as it is": played(run)}
    if run.name == "bc":
        found["best"] = played(run, "--checkpoint", "best")
    if run.name in UNFINISHED:
        done = said("learn", "--resume", str(run), *weights(run))
        found["resumed"] = {name: done[name] for name in ("updates", "steps") if name in done}
        found["finished"] = played(run)
    return found


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return copy(HERE, tmp_path)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "expected.json").read_text())
    return found


def test_the_store_is_whole_and_says_what_it_said(golden, expected):
    found = state_of(golden / "store")
    assert found == {verb: expected[verb] for verb in found}


@pytest.mark.parametrize("model", MODELS)
def test_the_store_is_encoded(golden, model):
    output, left = MODELS[model]
    how = ["--output", output, "--scheduler", "inproc", "--engine", "torch"]
    how += OLD_SR if model == "sr" else []
    for expected in (left, [0, 0, 0]):
        done = said("encode", "--models", model, *how, "--store", str(golden / "store"))
        assert [done["objects"], done["passes"], done["copied"]] == expected
        assert (done["strip_passes"], done["set_aside"]) == (0, [])
        if expected == left == [0, 0, 0]:
            break


@pytest.mark.parametrize(
    "run", [r if r in FAST else pytest.param(r, marks=pytest.mark.slow) for r in RUNS]
)
def test_a_run_plays_and_goes_on_as_it_did(golden, expected, run):
    folder = golden / "runs" / run
    assert worth(folder) == expected["runs"][run]
    done = said("learn", "--resume", str(folder), *weights(folder))
    assert done["backbone_passes"] == done.get("steps", 0) == 0  # It is finished now.
