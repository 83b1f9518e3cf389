"""Output without a reader, characters that a terminal lacks, folders that are gone: work goes on."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from wsa import cli
from wsa.encode.inference.encoder import choose_device
from wsa.store.common import streams
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.objects.record_cache import cache_folder

WSA = (sys.executable, "-m", "wsa.cli")


def test_progress_without_a_reader_ends_no_work(wsa):
    """As `wsa collect ... 2>&1 | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [*WSA, "collect", "--game", "Pong", "--steps", "40", "--num-envs", "2"]
    ended = subprocess.run(command, stdout=writing, stderr=writing, check=False)
    os.close(writing)
    assert ended.returncode == 0
    assert json.loads(wsa("list", "--json").out)["Pong"]["steps"] == 40


def test_a_result_without_a_reader_leaves_the_exit_code(filled):
    """Damage is still damage if `head` has seen enough of it."""
    reading, writing = os.pipe()
    os.close(reading)
    array = next(Path("store").rglob("zarr.json"))
    array.chmod(0o644)
    array.write_bytes(b"junk")
    ended = subprocess.run([*WSA, "verify"], stdout=writing, capture_output=False, check=False)
    os.close(writing)
    assert ended.returncode == 5


@pytest.mark.variants
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-", ">&-"])
def test_streams_may_be_closed_from_the_beginning(filled, closed):
    code = f"{sys.executable} -m wsa.cli list {closed}"
    ended = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert ("Breakout" in ended.stdout) == (closed == "2>&-")
    assert "Traceback" not in ended.stderr


def test_a_full_disk_is_an_error_all_the_same(filled):
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*WSA, "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 6 and "No space left" in ended.stderr


def test_a_terminal_that_lacks_characters(wsa):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [*WSA, "list", "--store", "l\u00e4ufe"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 3 and "l\\xe4ufe" in ended.stderr


def test_a_current_folder_that_was_removed(tmp_path):
    code = f"mkdir gone; cd gone; rmdir ../gone; {sys.executable} -m wsa.cli list"
    ended = subprocess.run(
        ["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (
        2,
        "wsa list: the current folder was removed. Change to another, as with cd.\n",
    )


class Terminal(io.StringIO):
    """Standard output that says it is a terminal, which tyro paints for."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("verb", cli.VERBS)
def test_what_is_wrong_is_a_line_without_colours_on_a_terminal_too(verb, monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert cli.main([verb, "--nonsense"]) == 2
    (line,) = said.getvalue().splitlines()
    assert line.startswith(f"wsa {verb}: ") and line.isprintable()


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_on_a_real_terminal(tmp_path, environment):
    terminal, inside = pty.openpty()
    variables = {**os.environ, "TERM": "xterm-256color", **environment}
    command = [*WSA, "list", "--stroe", "x"]
    process = subprocess.Popen(command, stdout=inside, stderr=inside, env=variables)
    assert process.wait(60) == 2
    os.close(inside)
    said = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert said == (
        "wsa list: Unrecognized options: --stroe, x. Perhaps you meant --store. 'wsa list --help' "
        "lists the options.\r\n"
    )


def test_a_user_without_a_home_says_where(monkeypatch, capsys):
    def homeless(*_: object, **__: object) -> None:
        raise RuntimeError("could not determine the home directory")

    for name in ("WSA_STORE", "WSA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("platformdirs.user_data_path", homeless)
    monkeypatch.setattr("platformdirs.user_cache_path", homeless)
    assert cli.main(["list"]) == 2
    assert capsys.readouterr().err.startswith(
        "wsa list: No store is named, and you have no home folder"
    )
    with pytest.raises(UsageError, match="Set WSA_CACHE"):
        cache_folder()


def test_a_gpu_that_is_not_there(wsa, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MissingError, match="finds no GPU"):
        choose_device("cuda")
    outcome = wsa(
        "learn",
        "--game",
        "Pong",
        "--online",
        "--algo",
        "ppo",
        "--device",
        "cuda",
        "--run-dir",
        "run",
    )
    assert outcome.code == 3 and "finds no GPU" in outcome.err
    assert not Path("run").exists()


def test_a_worker_does_nothing_of_the_script_that_it_imports(monkeypatch):
    """A script that calls `main` without a guard: each worker process imports it."""
    monkeypatch.setattr("multiprocessing.process._current_process._inheriting", True, raising=False)
    assert cli.main(["lisst"]) == 0


def test_streams_are_put_back(capsys):
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), streams.lasting():
        print("said")
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr().out == "said\n"
