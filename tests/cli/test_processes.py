"""The command in processes of its own: Ctrl-C, two at once, a reader that leaves, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

MODEL = "timm:test_resnet.r160_in1k:random"
LONG = ("collect", "--game", "Breakout", "--steps", "100000", "--num-envs", "2")
SHORT = (
    "collect",
    "--game",
    "Breakout",
    "--steps",
    "456",
    "--num-envs",
    "2",
    "--segment-steps",
    "32",
    "--max-episode-steps",
    "150",
)
ENCODE = ("encode", "--models", MODEL, "--output", "grid:1", "--device", "cpu")
INTERRUPTED = "interrupted. Nothing committed is lost; the same command continues."

Begin = Callable[..., Any]  # As `subprocess.Popen`.


@pytest.fixture
def begin(filled, tmp_path, warm) -> Iterator[Begin]:
    """`begin(*arguments)` starts the command as a terminal does: leading its own processes.

    A `cold` one imports what it needs, which takes seconds.
    """
    started: list[Any] = []
    # Tests that run in the background of a script ignore Ctrl-C, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(*arguments: str, cold: bool = False) -> Any:
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = ["-m", "wsa.cli", *arguments]
        process = (
            subprocess.Popen([sys.executable, *command], start_new_session=True, **how)  # type: ignore[call-overload]
            if cold
            else warm.start(command, start_new_session=True, **how)
        )
        started.append(process)
        return process

    yield start
    signal.signal(signal.SIGINT, before)
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def interrupt(process: subprocess.Popen[str], how: signal.Signals = signal.SIGINT) -> str:
    """Press Ctrl-C: all of the process's group get the signal. Returns what it said.

    SIGTERM goes to the process alone, as from `kill` and from most job managers.
    """
    children = psutil.Process(process.pid).children(recursive=True)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    out, err = process.communicate(timeout=60)
    # A Python interrupted within an `exec` of text, as dataclasses use it while they are imported,
    # ends itself by the signal when all is done; a shell calls that 130 too.
    assert process.returncode in (128 + how, -signal.SIGINT), err
    assert out == ""
    assert "Traceback" not in err and "Error" not in err
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    return err


def until(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until something has happened while a process runs."""
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.03)


def records(folder: Path) -> int:
    return len(list((folder / "store" / "commits").glob("*/*.json")))


SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


@pytest.mark.parametrize(
    "how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_interrupting_a_collection(filled, begin, tmp_path, how):
    before = records(tmp_path)
    process = begin(*SHORT[:4], "100000", *SHORT[5:])
    until(lambda: records(tmp_path) > before + 3, process)
    said = f"wsa collect: {INTERRUPTED.replace('interrupted', SIGNALS[how])}"
    assert interrupt(process, how).splitlines()[-1] == said
    there = json.loads(filled("list", "--json").out)["Breakout"]["steps"]
    steps = str(there + 64)
    outcome = filled(*SHORT[:4], steps, *SHORT[5:], "--json")
    assert (outcome.code, json.loads(outcome.out)["steps"] <= 128) == (0, True)
    assert filled("verify").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_an_encoding_by_workers(filled, begin, tmp_path, how):
    filled(*SHORT)
    before = records(tmp_path)
    process = begin(*ENCODE, "--workers", "2")
    until(lambda: records(tmp_path) > before + 3, process)  # The model, and three segments.
    said = f"wsa encode: {INTERRUPTED.replace('interrupted', SIGNALS[how])}"
    assert interrupt(process, how).splitlines()[-1] == said
    outcome = filled(*ENCODE, "--scheduler", "inproc", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["present"] >= 2
    assert filled("verify").code == 0


@pytest.mark.slow
def test_interrupting_while_workers_start(filled, begin):
    process = begin(*ENCODE, "--workers", "2", cold=True)
    until(lambda: len(psutil.Process(process.pid).children(recursive=True)) > 1, process)
    assert interrupt(process).splitlines()[-1] == f"wsa encode: {INTERRUPTED}"


@pytest.mark.slow
def test_interrupting_a_training(filled, begin, tmp_path):
    small = ("--batch-size", "2", "--fusion-size", "8", "--frame-stack", "1")
    command = ("learn", "--game", "Breakout", "--run-dir", "new", "--updates", "2000", *small)
    process = begin(*command, "--log-frequency", "10")
    metrics = tmp_path / "new" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size, process)
    assert interrupt(process).splitlines()[-1] == f"wsa learn: {INTERRUPTED}"
    (saved,) = (tmp_path / "new" / "checkpoints").glob("*.safetensors")
    outcome = filled(*command, "--log-frequency", "10", "--json")
    assert (outcome.code, json.loads(outcome.out)["updates"]) == (0, 2000 - int(saved.stem))


@pytest.mark.slow
def test_interrupting_an_evaluation(begin, tmp_path):
    process = begin("eval", "run", "--episodes", "50")
    time.sleep(6)
    assert interrupt(process).splitlines()[-1] == f"wsa eval: {INTERRUPTED}"
    assert not (tmp_path / "run" / "eval.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["collect", "encode", "learn", "eval", "verify", "models"])
def test_interrupting_at_any_time(filled, begin, tmp_path, verb):
    if verb in ("encode", "verify"):
        filled(*SHORT)
    command = {
        "collect": LONG,
        "encode": (*ENCODE, "--workers", "2"),
        "learn": ("learn", "--game", "Breakout", "--updates", "1000000", "--run-dir", "new"),
        "eval": ("eval", "run", "--episodes", "100"),
    }.get(verb, (verb,))
    ended = 0
    for step in range(1, 17):
        process = begin(*command, cold=True)
        try:
            process.wait(0.1 * step if verb in ("verify", "models") else 0.7 * step)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        if out:  # It was over, or as good as.
            ended += 1
        else:
            assert process.returncode in (130, -signal.SIGINT)
            assert err.splitlines()[-1] == f"wsa {verb}: {INTERRUPTED}"
    assert ended < 14
    assert filled("verify").code == 0


@pytest.mark.parametrize(
    "command",
    [SHORT, pytest.param((*ENCODE, "--scheduler", "inproc"), marks=pytest.mark.slow)],
    ids=["collect", "encode"],
)
def test_two_at_once(filled, begin, tmp_path, command):
    both = [begin(*command, "--json") for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    once = filled(*command, "--json")
    assert once.code == 0
    assert json.loads(once.out)[{"collect": "segments", "encode": "objects"}[command[0]]] == 0
    report = json.loads(filled("verify", "--json").out)
    assert (report["damage"], report["leftovers"]) == ([], 0)
    made = [json.loads(out) for out, _ in said]
    if command[0] == "collect":  # Each counts what it made visible itself.
        total = json.loads(filled("list", "--json").out)["Breakout"]["steps"]
        assert sum(one["steps"] for one in made) + 200 == total


@pytest.mark.slow
def test_two_at_once_into_one_run(filled, begin):
    command = ("learn", "--game", "Breakout", "--updates", "300", "--run-dir", "new")
    both = [begin(*command) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 4], [0, 0]), said
    if 4 in codes:
        assert said[codes.index(4)].splitlines()[-1] == (
            "wsa learn: Another process is training new. Wait for it, or give another --run-dir."
        )
    outcome = filled(*command, "--json")
    assert (outcome.code, json.loads(outcome.out)["updates"]) == (0, 0)


@pytest.mark.parametrize("command", ["list --games", "--help"])
def test_a_reader_that_has_enough(filled, command):
    code = f"{sys.executable} -m wsa.cli {command} | head -1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert ended.stdout.count("\n") == 1
    assert "Error" not in ended.stderr and "Traceback" not in ended.stderr


def test_a_closed_output(filled, warm):
    reading, writing = os.pipe()
    os.close(reading)
    command = ["-m", "wsa.cli", "list"]
    ended = warm.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (ended.returncode, ended.stderr.splitlines()[1:]) == (0, [])


@pytest.mark.slow
def test_an_error_of_a_worker_is_one_line(filled, begin, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"junk")
    process = begin(
        "encode", "--models", "timm:test_resnet.r160_in1k", "--output", "pooled",
        "--weights", "test_resnet_r160_in1k=w.safetensors",
    )  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err.count("\n")) == (4, "", 4), err
    assert re.match(r"wsa encode: \S+w.safetensors does not hold the weights", err.splitlines()[3])
