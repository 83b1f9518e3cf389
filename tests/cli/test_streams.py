"""Output without a reader, terminals, closed streams, and folders that are gone: work goes on."""

import errno
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from command_kit import ENCODE, OTHER_MODEL

from wsa import cli
from wsa.encode.inference.encoder import choose_device
from wsa.store.common import streams
from wsa.store.common.atomic_files import no_permission
from wsa.store.common.cache_folder import cache_folder
from wsa.store.common.errors import MissingError, UsageError

COLLECT = ("collect", "--game", "Pong", "--steps", "8", "--num-envs", "1")


@pytest.fixture
def no_reader():
    """A pipe that nothing reads, as that of `wsa ... | head -1` once `head` has its line."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def shell(script, **options):
    """Run a script in which `wsa` is the command."""
    script = f'wsa() {{ {sys.executable} -m wsa.cli "$@"; }}; {script}'
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, **options
    )


def test_output_without_a_reader_changes_no_exit_code(filled, warm, no_reader):
    def run(*arguments, **files):
        return warm.run(["-m", "wsa.cli", *arguments], text=True, **files)

    assert run(*COLLECT, stdout=no_reader, stderr=no_reader).returncode == 0
    assert filled("list", "--json").json["Pong"]["steps"] == 8
    listed = run("list", stdout=no_reader, stderr=subprocess.PIPE)
    assert (listed.returncode, len(listed.stderr.splitlines())) == (0, 1)  # The store's place.
    array = next(Path("store").rglob("zarr.json"))
    array.unlink()
    array.write_bytes(b"junk")
    assert run("verify", stdout=no_reader, stderr=subprocess.PIPE).returncode == 5


def test_a_full_disk_below_the_output_is_an_error(filled):
    ended = shell("wsa list > /dev/full")
    assert ended.returncode == 6 and "No space left" in ended.stderr


@pytest.mark.variants
@pytest.mark.parametrize("command", ["list --games", "--help"])
def test_a_reader_may_leave_after_one_line(filled, command):
    ended = shell(f"wsa {command} | head -1; exit ${{PIPESTATUS[0]}}")
    assert ended.returncode == 0 and ended.stdout.count("\n") == 1
    assert "Error" not in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.variants
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-", ">&-"])
def test_streams_may_be_closed_from_the_beginning(filled, closed):
    ended = shell(f"wsa list {closed}")
    assert ended.returncode == 0 and "Traceback" not in ended.stderr
    assert ("Breakout" in ended.stdout) == (closed == "2>&-")


def test_a_terminal_that_lacks_characters_gets_escapes(tmp_path):
    ended = shell("PYTHONIOENCODING=ascii wsa list --store l\u00e4ufe", cwd=tmp_path)
    assert ended.returncode == 3 and "l\\xe4ufe" in ended.stderr


def test_a_current_folder_that_was_removed_is_an_error(tmp_path):
    ended = shell("mkdir gone; cd gone; rmdir ../gone; wsa list", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == (
        "wsa list: the current folder was removed. Change to another one with cd.\n"
    )


def test_an_error_on_a_real_terminal_is_one_plain_line():
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "wsa.cli", "list", "--stroe", "x"],
        stdout=inside, stderr=inside, env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    assert process.wait(60) == 2
    os.close(inside)
    text = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert text == (
        "wsa list: Unrecognized options: --stroe, x. Perhaps you meant --store. 'wsa list --help' "
        "lists the options.\r\n"
    )


def test_a_user_without_a_home_is_asked_for_a_place(monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("could not determine the home directory")

    for name in ("WSA_STORE", "WSA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("platformdirs.user_data_path", fail)
    monkeypatch.setattr("platformdirs.user_cache_path", fail)
    assert cli.main(["list"]) == 2
    assert capsys.readouterr().err.startswith(
        "wsa list: No store is named, and there is no home folder"
    )
    with pytest.raises(UsageError, match="Set WSA_CACHE"):
        cache_folder()


def test_an_encoding_without_a_folder_for_its_report_is_done(filled, monkeypatch):
    def fail(*_):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("WSA_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", fail)
    outcome = filled("encode", "--models", OTHER_MODEL, *ENCODE[3:])
    assert outcome.code == 0 and "no report: There is no home folder" in outcome.err
    assert "objects" in outcome.out


def test_an_encoding_with_an_unusable_cache_is_done(filled, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WSA_CACHE", str(tmp_path / "file"))
    outcome = filled("encode", "--models", OTHER_MODEL, *ENCODE[3:])
    assert outcome.code == 0 and "no report: ./file/encode-reports" in outcome.err


def test_a_cache_is_a_local_folder(monkeypatch):
    monkeypatch.setenv("WSA_CACHE", "s3://lab/cache")
    with pytest.raises(UsageError, match="WSA_CACHE=s3://lab/cache is a URL"):
        cache_folder()


def test_a_cache_of_another_user_is_not_to_be_shared(tmp_path, monkeypatch):
    monkeypatch.setenv("WSA_CACHE", str(tmp_path))
    denied = PermissionError(errno.EACCES, "Permission denied")
    assert "a cache of their own: set WSA_CACHE" in no_permission(tmp_path / "flat", denied)
    monkeypatch.delenv("WSA_CACHE")  # Then the cache is in the home folder.
    assert "a cache of their own: set WSA_CACHE" in no_permission(cache_folder() / "flat", denied)
    assert "how a group shares a store" in no_permission(tmp_path / "flat", denied)
    assert "how a group shares a store" in no_permission(tmp_path.parent, denied)


def test_a_missing_gpu_is_an_error(wsa, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MissingError, match="finds no GPU"):
        choose_device("cuda")
    online = ("--game", "Pong", "--online", "--algo", "ppo", "--device", "cuda")
    outcome = wsa("learn", *online, "--run-dir", "run")
    assert outcome.code == 3 and "finds no GPU" in outcome.err
    assert not Path("run").exists()


def test_a_worker_that_imports_the_script_runs_no_command(monkeypatch):
    """Each worker process imports the script that called `main`, even without a guard."""
    monkeypatch.setattr("multiprocessing.process._current_process._inheriting", True, raising=False)
    assert cli.main(["lisst"]) == 0


def test_streams_are_restored_after_an_error(capsys):
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), streams.lasting():
        print("printed")
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr().out == "printed\n"
