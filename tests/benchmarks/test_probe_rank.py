"""The ranking script ranks encoders by probe and by return, and resumes where it stopped."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.encoding import probe_rank

# By encoder, its score in the fake probe and its return in the fake games.
SCORES = {"vos": (0.9, 5.0), "okk:random": (0.5, 1.0), "vos:random": (0.7, 3.0)}


def reply(command):
    if "eval" in command:
        run = Path(command[command.index("eval") + 1]).name
        (returned,) = [r for n, (_, r) in SCORES.items() if run == f"Pong-{n.replace(':', '-')}-1"]
        return {"return_mean": returned}
    mean = {n: {"value": score, "low": score, "high": score} for n, (score, _) in SCORES.items()}
    return {
        "models": [
            {"name": name, "both": {"mean_r2": mean[name], "mean_hit": mean[name]},
             "narrow": {"mean_r2": None}, "mean_f1": -mean[name]["value"]}
            for name in SCORES
        ]
    }  # fmt: skip


def test_an_interrupted_ranking_resumes_and_repeats_nothing(monkeypatch, tmp_path, capsys):
    verbs: list[str] = []
    replies: list[str] = []

    def run(command, **_):
        replies.append(command[3])
        if replies.count("eval") == 2 and "stop" not in replies:
            replies.append("stop")
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(command, 0, json.dumps(reply(command)))

    monkeypatch.setattr(probe_rank, "wsa", lambda verb, *_: verbs.append(verb))
    monkeypatch.setattr(probe_rank.subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        probe_rank.main([str(tmp_path), "--small"])
    assert replies == ["probe", "eval", "eval", "stop"]
    probe_rank.main([str(tmp_path), "--small"])
    assert replies[4:] == ["eval", "eval"]  # The probe and the first games were kept.
    capsys.readouterr()
    verbs.clear()
    probe_rank.main([str(tmp_path), "--small"])
    assert verbs == ["collect", "encode"] and replies[6:] == []
    lines = capsys.readouterr().out.splitlines()
    order = [line.split(" | ")[0] for line in lines if line.startswith(("| vos", "| okk"))]
    assert order == ["| vos", "| vos:random", "| okk:random"]
    assert "| R2 | 1.00 | 0.00 |" in lines and "| F1 | -1.00 | 0.00 |" in lines
    assert not any(line.startswith("| random to better") for line in lines)
