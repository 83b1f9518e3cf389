"""`benchmarks/lab.py` multiplies out what it measured, and repeats a cell without a pass."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_kit import MODEL

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def lab() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("lab_benchmark", BENCHMARKS / "lab.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "lab_benchmark", module)  # Dataclasses look it up.
        spec.loader.exec_module(module)
        patch.delitem(sys.modules, "kit")  # The name of another module too.
        yield module


def test_each_part_is_multiplied_by_its_own_factor(lab: Any) -> None:
    once = lab.Part("once", lab.Cost(3600.0, 1800.0, 7))
    often = lab.Part("often", lab.Cost(36.0, 72.0, 1), 1000)
    assert often.row() == ["often", "36.0", "72.0", "1", "1,000"]
    row = lab.total("all", [once, often], watts=4.0)
    assert row == ["all", "11.0", "1,007", "20.5", "82"]


def test_the_seconds_of_updates_come_from_their_logged_rates(lab: Any, tmp_path: Path) -> None:
    lines: list[dict[str, float]] = [
        {"step": 100, "time/updates_per_s": 50.0},
        {"step": 100, "eval/episodic_return": 1.0},
        {"step": 130, "time/updates_per_s": 10.0},
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert lab.seconds_of_updates(file) == 5.0


@pytest.mark.slow
def test_a_second_user_repeats_a_cell_of_a_small_lab() -> None:
    small = [
        "--models", MODEL, "--fusions", "wsa,mean", "--seeds", "1", "--first-steps", "100",
        "--steps", "100", "--updates", "5", "--loop-updates", "1",
    ]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, str(BENCHMARKS / "lab.py"), *small],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    looped = next(line for line in lines if line.startswith("| 2 updates with backbones"))
    batch = 32
    assert looped.split(" | ")[3] == f"{2 * 2 * batch}"  # States and next states of two batches.
    assert lines[-1].endswith("0 passes, and the same checkpoint to the bit.")
