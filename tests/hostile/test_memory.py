"""A hostile store takes no more memory than an honest one (P9): refused before it is decoded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("bomb_process.py")


def run(folder, *names):
    """What came of each attack, by name."""
    ran = subprocess.run(
        [sys.executable, PROGRAM, folder, *names],
        capture_output=True,
        check=False,
        env={**os.environ, "WSA_CACHE": str(folder / "cache")},
    )
    assert ran.returncode == 0, ran.stderr.decode()
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    return {one["name"]: (one["what"], one["grown_mb"]) for one in found}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run(tmp_path_factory.mktemp("bombs"))


@pytest.mark.timeout(600)
def test_attacks_are_refused_within_the_stated_memory(outcomes):
    assert len(outcomes) >= 22
    for name, (what, grown_mb) in outcomes.items():
        if name == "a good array of 64 MB":
            assert what == "read" and grown_mb < 2 * 64 + 200
        else:
            assert what.startswith("refused"), (name, what)
            # No chunk of theirs is larger than a megabyte by right; most take a few megabytes.
            assert grown_mb < (200 if "JSON" in name else 50), (name, grown_mb)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_million_of_anything_takes_its_names(tmp_path):
    found = run(tmp_path, "garbage_commits 1000000", "garbage_attempts 1000000")
    assert found["garbage_commits 1000000"][1] < 300
    assert found["garbage_attempts 1000000"][1] < 600
