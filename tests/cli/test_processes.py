"""The command in processes of its own: interrupted, terminated, and two at once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_kit import ALIAS, LEARN, MODEL, wait_until

from wsa import cli

COLLECT = ("collect", "--game", "Breakout", "--num-envs", "2", "--segment-steps", "32",
           "--max-episode-steps", "150", "--steps")  # fmt: skip
ENCODE = ("encode", "--models", MODEL, "--output", "grid:1", "--device", "cpu")
ENDED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


@pytest.fixture
def begin(filled, tmp_path, warm):
    """`begin(*arguments)` starts the command as a terminal does: leading its own processes.

    A `cold` one imports what it needs, which takes seconds.
    """
    started: list[Any] = []

    def start(*arguments, cold=False):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = ["-m", "wsa.cli", *map(str, arguments)]
        process = (
            subprocess.Popen([sys.executable, *command], start_new_session=True, **pipes)  # type: ignore[call-overload]
            if cold
            else warm.start(command, start_new_session=True, **pipes)
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def last_words(verb, signum=signal.SIGINT):
    """The last line of a command that a signal ended."""
    return f"wsa {verb}: {ENDED[signum]}. Nothing committed is lost; the same command continues."


def interrupt(process, signum=signal.SIGINT):
    """End a process by a signal, check that its children end too, and return its last line.

    Ctrl-C goes to all of the process's group; SIGTERM, as from `kill` and from most job managers,
    to the process alone.
    """
    children = psutil.Process(process.pid).children(recursive=True)
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    # A Python interrupted within an `exec` of text, which dataclasses use while they are imported,
    # ends itself by the signal when all is done; a shell calls that 130 too.
    assert process.returncode in (128 + signum, -signal.SIGINT), err
    assert out == ""
    assert "Traceback" not in err and "Error" not in err
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    return err.splitlines()[-1]


def handles(pid, signum):
    """Whether a process has installed a handler of its own; wsa's does as soon as it runs."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (caught,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught >> signum - 1 & 1)


def count_records(folder):
    return len(list((folder / "store" / "commits").glob("*/*.json")))


def wait_for_records(process, folder, more):
    """Wait until a process has committed so many objects."""
    enough = count_records(folder) + more
    wait_until(lambda: count_records(folder) >= enough, process)


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_an_interrupted_collection_goes_on(filled, begin, tmp_path, signum):
    process = begin(*COLLECT, 100_000)
    wait_for_records(process, tmp_path, 4)
    assert interrupt(process, signum) == last_words("collect", signum)
    collected = filled("list", "--json").json["Breakout"]["steps"]
    assert filled(*COLLECT, collected + 64, "--json").json["steps"] <= 128
    assert filled("verify").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_encoding_ends_its_workers_and_goes_on(filled, begin, tmp_path, signum):
    filled(*COLLECT, 456)
    process = begin(*ENCODE, "--workers", "2")
    wait_for_records(process, tmp_path, 4)  # The model, and three segments.
    assert interrupt(process, signum) == last_words("encode", signum)
    assert filled(*ENCODE, "--scheduler", "inproc", "--json").json["present"] >= 2
    assert filled("verify").code == 0


@pytest.mark.slow
def test_workers_end_when_they_are_interrupted_while_they_start(filled, begin):
    process = begin(*ENCODE, "--workers", "2", cold=True)
    wait_until(lambda: len(psutil.Process(process.pid).children(recursive=True)) > 1, process)
    assert interrupt(process) == last_words("encode")


@pytest.mark.slow
def test_an_interrupted_training_goes_on(filled, begin, tmp_path):
    command = (*LEARN, "--run-dir", "new", "--updates", "2000", "--log-frequency", "10")
    process = begin(*command)
    metrics = tmp_path / "new" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.stat().st_size, process)
    assert interrupt(process) == last_words("learn")
    (saved,) = (tmp_path / "new" / "checkpoints").glob("*.safetensors")
    assert filled(*command, "--json").json["updates"] == 2000 - int(saved.stem)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["collect", "encode", "learn", "eval", "verify", "models"])
def test_any_moment_is_safe_for_an_interrupt(filled, begin, tmp_path, verb):
    if verb in ("encode", "verify"):
        filled(*COLLECT, 456)
    command = {
        "collect": (*COLLECT, 100_000),
        "encode": (*ENCODE, "--workers", "2"),
        "learn": (*LEARN, "--updates", "1000000", "--run-dir", "new"),
        "eval": ("eval", "run", "--episodes", "100"),
    }.get(verb, (verb,))
    finished = 0
    for step in range(1, 17):
        process = begin(*command, cold=True)
        wait_until(partial(handles, process.pid, signal.SIGTERM), process)
        try:
            process.wait(0.1 * step if verb in ("verify", "models") else 0.7 * step)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        if out:  # It was over, or nearly.
            finished += 1
        else:
            assert process.returncode in (130, -signal.SIGINT), err
            assert err.splitlines()[-1] == last_words(verb)
    assert finished < 14
    assert not (tmp_path / "run" / "eval.csv").exists()
    assert filled("verify").code == 0


@pytest.mark.variants
@pytest.mark.parametrize("verb", ["collect", "encode"])
def test_two_commands_at_once_share_the_work(filled, begin, verb):
    command = {"collect": (*COLLECT, 328), "encode": (*ENCODE, "--scheduler", "inproc")}[verb]
    both = [begin(*command, "--json") for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    again = filled(*command, "--json").json
    assert again[{"collect": "segments", "encode": "objects"}[verb]] == 0
    report = filled("verify", "--json").json
    assert (report["damage"], report["leftovers"]) == ([], 0)
    if verb == "collect":  # Each counts what it committed itself.
        total = filled("list", "--json").json["Breakout"]["steps"]
        assert sum(json.loads(out)["steps"] for out, _ in outputs) + 200 == total


@pytest.mark.slow
def test_an_error_of_a_worker_is_one_line(filled, begin, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"junk")
    process = begin(
        "encode", "--models", "timm:test_resnet.r160_in1k", "--output", "pooled",
        "--weights", f"{ALIAS}=w.safetensors",
    )  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err.count("\n")) == (4, "", 4), err
    assert re.match(r"wsa encode: \S+w.safetensors does not hold the weights", err.splitlines()[3])


@pytest.mark.parametrize("signum", ENDED)
def test_a_signal_that_surfaces_as_another_error_ends_the_command(monkeypatch, capsys, signum):
    """A library that is interrupted while it is imported may fail with a RecursionError."""

    def interrupted(verb, rest):
        try:
            os.kill(os.getpid(), signum)
        except KeyboardInterrupt:
            raise RecursionError("maximum recursion depth exceeded") from None

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.main(["learn"]) == 128 + signum
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capsys.readouterr() == ("", last_words("learn", signum) + "\n")
