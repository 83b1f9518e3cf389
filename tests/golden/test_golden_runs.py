"""A store and runs that commit 528a08d wrote are read, verified, played, and trained on.

The test uses the command line only, because modules may move. `make_runs.sh` made the data with that
commit, the last before runs of all kinds had one configuration.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import command_kit
import pytest

HERE = Path(__file__).parent / "528a08d"
pytestmark = pytest.mark.usefixtures("all_probe_frames")  # What the models' probes were taken on.
GAME = "Centipede"
# A model's output, and the objects, passes, and copies that are left: the DQN run recorded four
# segments with only its own two models.
MODELS = {
    "ae": ("pooled", [0, 0, 0]),
    "sr": ("pooled+rp:16", [0, 0, 0]),
    "timm:test_resnet.r160_in1k:random": ("grid:2+rp:16", [4, 79, 11]),
}
RUNS = ("bc", "cql", "ppo", "ppo-lstm", "dqn", "nature")
FAST = "cql"  # `make nightly` plays the others.
UNFINISHED = ("cql", "ppo-lstm", "dqn")  # Killed half-way; the others are finished.
GAMES = ("--episodes", "1", "--num-envs", "1", "--engine", "torch", "--epsilon", "0.02",
         "--seed", "10001")  # fmt: skip
# The weights of `sr` that came with wsa then; wsa has others now.
OLD_SR = ["--weights", f"sr={HERE / 'sr.safetensors'}"]


def weights(folder):
    """The options that a run's models need."""
    return OLD_SR if '"sr-' in (folder / "config.json").read_text() else []


def run(*arguments):
    """What a command prints with --json."""
    return command_kit.run(*arguments, "--json").json


def copy_golden(folder, to):
    """Copy the golden folder.

    A run names its store, and the run it began from, by absolute paths. Tables of online runs are
    padded with zeros, which the repository leaves out.
    """
    copied = shutil.copytree(folder, to / "golden")
    expected = json.loads((folder / "expected.json").read_text())
    for path in copied.glob("runs/*/config.json"):
        path.write_text(path.read_text().replace(expected["root"], str(copied)))
    for name, length in expected["lengths"].items():
        os.truncate(copied / name, length)
    return copied


def state_of(store):
    """What verify, list, and show print of a store."""
    where = ("--store", str(store))
    columns = {
        "verify": ("objects", "files", "bytes", "leftovers", "damage"),
        "list": ("segments", "steps", "frames", "episodes", "mean_return", "bytes", "encoded"),
        "show": ("emulator", "protocols", "policies", "collections", "encoders", "authors"),
    }
    found = {
        "verify": run("verify", *where),
        "list": run("list", *where)[GAME],
        "show": run("show", GAME, *where),
    }
    return {verb: {name: found[verb][name] for name in names} for verb, names in columns.items()}


def play(folder, *options):
    """Evaluate a run: its updates, means, and the policy, seed, return, and steps of each game."""
    (folder / "eval.csv").unlink(missing_ok=True)
    summary = run("eval", str(folder), *GAMES, *weights(folder), *options)
    rows = command_kit.read_csv(folder / "eval.csv")
    games = [[row["policy"], row["seed"], row["return"], row["steps"]] for row in rows]
    means = {name: summary[name] for name in ("return_mean", "random_return_mean")}
    return {"updates": summary["trained"], **means, "games": games}


def resume(folder):
    """Train a run to its end; the updates and steps that were left."""
    summary = run("learn", "--resume", str(folder), *weights(folder))
    return {name: summary[name] for name in ("updates", "steps") if name in summary}


@pytest.fixture
def golden(tmp_path):
    return copy_golden(HERE, tmp_path)


@pytest.fixture(scope="module")
def expected():
    text = (HERE / "expected.json").read_text().replace('"licence"', '"license"')  # Renamed since.
    values: dict[str, Any] = json.loads(text)
    return values


def test_the_store_is_whole_and_described_as_before(golden, expected):
    state = state_of(golden / "store")
    assert state == {verb: expected[verb] for verb in state}


@pytest.mark.parametrize("model", MODELS)
def test_a_golden_store_is_encoded(golden, model):
    output, left = MODELS[model]
    options = ["--output", output, "--scheduler", "inproc", "--engine", "torch"]
    options += OLD_SR if model == "sr" else []
    for expected in (left, [0, 0, 0]):
        report = run("encode", "--models", model, *options, "--store", str(golden / "store"))
        assert [report["objects"], report["passes"], report["copied"]] == expected
        assert (report["fit_passes"], report["set_aside"]) == (0, [])
        if expected == left == [0, 0, 0]:
            break


@pytest.mark.parametrize(
    "name", [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_a_run_plays_and_goes_on_as_it_did(golden, expected, name):
    folder, values = golden / "runs" / name, expected["runs"][name]
    if name != FAST:
        assert play(folder) == values["as it is"]
    if name == "bc":
        assert play(folder, "--checkpoint", "best") == values["best"]
    if name in UNFINISHED:
        assert resume(folder) == values["resumed"]
        assert play(folder) == values["finished"]
    summary = run("learn", "--resume", str(folder), *weights(folder))
    assert summary["backbone_passes"] == summary.get("steps", 0) == 0  # It is finished now.


@pytest.mark.slow
def test_an_unfinished_run_plays_as_it_is(golden, expected):
    assert play(golden / "runs" / FAST) == expected["runs"][FAST]["as it is"]
