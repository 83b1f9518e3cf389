"""A warm process behaves like a new interpreter; `make nightly` runs the same tests on both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_kit import wait_until

PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.fixture(params=[pytest.param("real", marks=pytest.mark.slow), "warm"])
def start(request, warm):
    """`start(arguments, **options)` takes what follows `python` on a command line."""
    # Tests that run in the background of a script ignore Ctrl-C, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    if request.param == "warm":
        yield warm.start
    else:
        yield lambda arguments, **options: subprocess.Popen([sys.executable, *arguments], **options)
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(start):
    """Like `subprocess.run`, with text."""

    def wait(arguments, input="", **options):
        process = start(arguments, stdin=subprocess.PIPE, **PIPES, **options)
        out, err = process.communicate(input, timeout=100)
        return subprocess.CompletedProcess(arguments, process.wait(), out, err)

    return wait


def test_exit_codes_outputs_and_exit_hooks(run):
    ended = run(["-c", "import sys; print('a'); print('b', file=sys.stderr); sys.exit(7)"])
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "a\n", "b\n")
    ended = run(["-c", "1/0"])
    assert ended.returncode == 1 and ended.stderr.startswith("Traceback")
    assert ended.stderr.endswith("ZeroDivisionError: division by zero\n")
    ended = run(["-c", "import sys; sys.exit('words')"])
    assert (ended.returncode, ended.stderr) == (1, "words\n")
    code = (
        "import atexit, threading, time; atexit.register(print, 'bye'); "
        "threading.Thread(target=lambda: (time.sleep(.1), print('thread'))).start()"
    )
    ended = run(["-c", code])
    assert (ended.returncode, ended.stdout) == (0, "thread\nbye\n")
    assert run(["-c", "import os; os._exit(9)"]).returncode == 9
    ended = run(
        ["-c", "import sys; print(sys.stdin.read().upper(), sys.argv)", "x", "y"], input="hi"
    )
    assert ended.stdout == "HI ['-c', 'x', 'y']\n"


def test_a_script_has_its_folder_and_environment(run, tmp_path):
    (tmp_path / "helper.py").write_text("x = 5")
    (tmp_path / "script.py").write_text(
        "import os, sys, helper\n"
        "print(os.getcwd(), os.environ.get('A'), os.environ.get('HOME'), helper.x, sys.argv[1:], __name__)"
    )
    ended = run([str(tmp_path / "script.py"), "q"], cwd=tmp_path, env={"A": "1", "PATH": ""})
    assert ended.stdout == f"{tmp_path} 1 None 5 ['q'] __main__\n", ended


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it(start, signum):
    code = "import time\nprint('on', flush=True)\ntime.sleep(60)"
    process = start(["-c", code], start_new_session=True, **PIPES)
    assert process.stdout.readline() == "on\n" and process.poll() is None
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    os.killpg(process.pid, signum)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (-signum, ""), err
    assert ("KeyboardInterrupt" in err) == (signum == signal.SIGINT)
    assert process.poll() == -signum and not psutil.pid_exists(process.pid)


def test_no_file_handle_is_left_open(warm):
    def count_handles():
        folders = [Path(f"/proc/{pid}/fd") for pid in ("self", warm._process.pid)]
        return [len(list(folder.iterdir())) for folder in folders]

    warm.run(["-c", ""], capture_output=True)
    before = count_handles()
    for _ in range(10):
        warm.run(["-c", ""], capture_output=True, text=True)
    # The parent closes its own a moment after its reply.
    wait_until(lambda: all(now <= then for now, then in zip(count_handles(), before, strict=True)))
