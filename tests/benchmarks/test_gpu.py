"""`benchmarks/gpu.py` keeps what it has measured, whatever happens to a section."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, sections

ROOT = Path(__file__).parents[2]
# Python warns of forks beside threads; the forked process runs Python alone here.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def results(folder):
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["sections"]
    return found


def test_a_section_that_fails_hangs_or_dies_does_not_stop_the_others(tmp_path):
    def fails(add):
        add(model="a", rate=1.5)
        raise ValueError("no such thing")

    def hangs(add):
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
        add(child=child.pid)
        time.sleep(60)

    def dies(add):
        os._exit(9)

    def works(add):
        add(model="b", rate=1234.6)
        add(model="c", error=0.01234)

    section = sections.Section
    some = [
        section("fails", 60, fails), section("hangs", 1, hangs), section("dies", 60, dies),
        section("works", 60, works),
    ]  # fmt: skip
    assert sections.run(some, tmp_path, {"command": "python x"}) == 1
    failed, hung, dead, done = results(tmp_path)
    assert (failed["state"], failed["error"]) == ("failed", "ValueError: no such thing")
    assert failed["rows"] == [{"model": "a", "rate": 1.5}]
    assert (hung["state"], hung["error"]) == ("failed", "It took more than 1 s.")
    stat = Path(f"/proc/{hung['rows'][0]['child']}/stat")  # What it had started has ended too.
    assert not stat.exists() or stat.read_text().split()[2] == "Z"
    assert (dead["state"], dead["error"]) == ("failed", "Its process ended with code 9.")
    assert done["state"] == "done" and len(done["rows"]) == 2
    text = (tmp_path / "results.md").read_text()
    assert "- command: python x" in text
    assert "\n## fails\n\n**failed** after" in text
    assert "| model | rate | error |" in text
    assert "| b | 1,235 |  |\n| c |  | 0.0123 |" in text


def test_what_a_killed_script_had_measured_is_on_disk(tmp_path):
    seen: list[Any] = []

    def works(add):
        add(rate=1.0)

    def looks(add):
        seen.append(results(tmp_path))
        add(states=[result["state"] for result in seen[0]], rows=seen[0][0]["rows"])

    both = [sections.Section("one", 60, works), sections.Section("two", 60, looks)]
    assert sections.run(both, tmp_path, {}) == 0
    assert results(tmp_path)[1]["rows"] == [
        {"states": ["done", "running"], "rows": [{"rate": 1.0}]}
    ]


def test_all_sections_fit_into_eight_minutes(tmp_path):
    planned = gpu.Bench("cuda", gpu.Sizes(), tmp_path).sections()
    assert sum(section.seconds for section in planned) <= 8 * 60 - 10  # Less what imports take.
    assert len({section.title for section in planned}) == len(planned)


def test_acting_with_old_weights_is_found():
    network = gpu.made_network("cpu")
    states = gpu.torch.randn(2, 4, 3 * gpu.WIDTH)
    assert gpu.follows_weights(gpu.acting(network, states, "eager"), network, states)
    old = gpu.acting(copy.deepcopy(network), states, "eager")
    assert not gpu.follows_weights(old, network, states)


@pytest.mark.slow
def test_everything_runs_small_on_a_cpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--device", "cpu"]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {result["state"] for result in results(tmp_path)} == {"done"}
    assert all(result["rows"] for result in results(tmp_path))
