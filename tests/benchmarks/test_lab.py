"""The lab benchmark multiplies out what it measured, and repeats a cell without a pass."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_kit import MODEL

from benchmarks.learning import lab

ROOT = Path(__file__).parents[2]


def test_each_part_is_multiplied_by_its_own_factor():
    once = lab.Part("once", lab.Cost(3600.0, 1800.0, 7))
    often = lab.Part("often", lab.Cost(36.0, 72.0, 1), 1000)
    assert often.row() == ["often", "36.0", "72.0", "1", "1,000"]
    row = lab.total("all", [once, often], watts=4.0)
    assert row == ["all", "11.0", "1,007", "20.5", "82"]


def test_the_seconds_of_updates_come_from_their_logged_rates(tmp_path):
    lines: list[dict[str, float]] = [
        {"step": 100, "time/updates_per_s": 50.0},
        {"step": 100, "eval/episodic_return": 1.0},
        {"step": 130, "time/updates_per_s": 10.0},
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert lab.seconds_of_updates(file) == 5.0


@pytest.mark.slow
def test_a_second_user_repeats_a_cell_of_a_small_lab():
    small = [
        "--models", MODEL, "--fusions", "wsa,mean", "--seeds", "1", "--first-steps", "100",
        "--steps", "100", "--updates", "5", "--loop-updates", "1",
    ]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.learning.lab", *small], cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    looped = next(line for line in lines if line.startswith("| 2 updates with models"))
    batch = 32
    assert looped.split(" | ")[3] == f"{2 * 2 * batch}"  # States and next states of two batches.
    assert lines[-1].endswith("0 passes, and the same checkpoint to the bit.")
