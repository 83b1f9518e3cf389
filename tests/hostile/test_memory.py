"""P9: reading a hostile store takes little memory; wsa refuses each bomb before it expands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("bomb_process.py")
ATTACKS = 22


def attack(folder, *arguments):
    """Run the program; outcome and growth in MB by name of the attack."""
    ended = subprocess.run(
        [sys.executable, PROGRAM, folder, *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, "WSA_CACHE": str(folder / "cache")},
    )
    assert ended.returncode == 0, ended.stderr.decode()
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    return {one["name"]: (one["what"], one["grown_mb"]) for one in found}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("arguments", "array_mb"),
    [(["--small"], 8), pytest.param([], 64, marks=pytest.mark.slow)],
    ids=["small", "full size"],
)
def test_attacks_are_refused_within_the_stated_memory(tmp_path, arguments, array_mb):
    outcomes = attack(tmp_path, *arguments)
    assert len(outcomes) == ATTACKS
    what, grown_mb = outcomes.pop("a good array")
    assert what == "read" and grown_mb < 2 * array_mb + 100
    for name, (what, grown_mb) in outcomes.items():
        assert what.startswith("refused"), (name, what)
        # No chunk of these stores may exceed a megabyte; only JSON is read as a whole.
        assert grown_mb < (200 if "JSON" in name else 50), (name, grown_mb)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_million_false_files_cost_no_more_than_their_names(tmp_path):
    outcomes = attack(tmp_path, "garbage_commits 1000000", "garbage_attempts 1000000")
    assert outcomes["garbage_commits 1000000"][1] < 300
    assert outcomes["garbage_attempts 1000000"][1] < 600
