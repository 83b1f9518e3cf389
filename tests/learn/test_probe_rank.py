"""`benchmarks/probe_rank.py` ranks encoders by probe and by return, and goes on where it ended."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Of each encoder, what the fake probe says and what the fake games return.
KNOWN = {"vos": (0.9, 5.0), "okk:random": (0.5, 1.0), "vos:random": (0.7, 3.0)}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("probe_rank", BENCHMARKS / "probe_rank.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delitem(sys.modules, "kit")  # Another module may be called so.
    return module


def answer_of(command: list[str]) -> dict[str, Any]:
    if "eval" in command:
        run = Path(command[command.index("eval") + 1]).name
        (earned,) = [e for n, (_, e) in KNOWN.items() if run == f"Pong-{n.replace(':', '-')}-1"]
        return {"return_mean": earned}
    mean = {name: {"value": told, "low": told, "high": told} for name, (told, _) in KNOWN.items()}
    return {
        "models": [
            {"name": name, "both": {"mean_r2": mean[name], "mean_hit": mean[name]},
             "narrow": {"mean_r2": None}, "mean_f1": -mean[name]["value"]}
            for name in KNOWN
        ]
    }  # fmt: skip


def test_encoders_are_ranked_and_nothing_is_done_twice(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    ran: list[str] = []
    answered: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        answered.append(command[3])
        if answered.count("eval") == 2 and "stop" not in answered:
            answered.append("stop")
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(command, 0, json.dumps(answer_of(command)))

    monkeypatch.setattr(script, "wsa", lambda verb, *_: ran.append(verb))
    monkeypatch.setattr(script.subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        script.main([str(tmp_path), "--small"])
    assert answered == ["probe", "eval", "eval", "stop"]
    script.main([str(tmp_path), "--small"])
    assert answered[4:] == ["eval", "eval"]  # The probe and the first games were kept.
    capsys.readouterr()
    del ran[:]
    script.main([str(tmp_path), "--small"])
    assert ran == ["collect", "encode"] and answered[6:] == []
    lines = capsys.readouterr().out.splitlines()
    order = [line.split(" | ")[0] for line in lines if line.startswith(("| vos", "| okk"))]
    assert order == ["| vos", "| vos:random", "| okk:random"]
    assert "| R2 | 1.00 | 0.00 |" in lines and "| F1 | -1.00 | 0.00 |" in lines
    assert not any(line.startswith("| random to better") for line in lines)
