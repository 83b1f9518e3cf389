"""Help, version, examples, and what is imported to give them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from wsa import __version__, cli

HEAVY = {"torch", "zarr", "numpy", "dask", "distributed", "timm", "gymnasium", "ale_py", "tyro"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["colect"]])
def test_what_is_asked_of_no_verb_is_answered_without_heavy_imports(arguments):
    code = f"import sys\nfrom wsa.cli import main\nmain({arguments!r})\nprint(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert not HEAVY & set(ended.splitlines()[-1].split())


@pytest.mark.parametrize("verb", ["collect", "learn", "encode", "bench"])
def test_help_of_a_verb_imports_no_model_library(verb):
    code = f"import sys\nfrom wsa.cli import main\nmain([{verb!r}, '--help'])\nprint(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert not (HEAVY - {"tyro"}) & set(ended.splitlines()[-1].split())


def test_help_lists_every_verb(wsa):
    code, out, err = wsa("--help")
    assert (code, err) == (0, "")
    assert all(f"  {name} " in out and verb.what in out for name, verb in cli.VERBS.items())
    assert out.endswith("example:\n  wsa demo\n")


def test_without_arguments_help_is_shown_as_a_usage_error(wsa):
    assert wsa()[:2] == (2, wsa("-h").out)


def test_version(wsa):
    assert wsa("--version") == wsa("-V") == (0, f"wsa {__version__}\n", "")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_ends_with_its_example(wsa, verb):
    code, out, err = wsa(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: wsa {verb} ")
    assert out.endswith(f"example:\n  {cli.VERBS[verb].example}\n")


@pytest.mark.parametrize("verb", ["collect", "encode", "learn"])
def test_everyday_options_fit_on_one_screen(wsa, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("WSA_STORE", "/home/me/wsa")
    lines = wsa(verb, "--help").out.splitlines()
    further = [i for i, line in enumerate(lines) if re.fullmatch(r" \S.* options *", line)]
    everyday = lines[: further[0] - 1]  # Without the blank line.
    assert len(everyday) <= 24
    assert all(any(f" {flag} " in line for line in everyday) for flag in ("--game", "--store"))


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_example_of_a_verb_parses(verb):
    program, name, *rest = shlex.split(cli.VERBS[verb].example)
    assert (program, name) == ("wsa", verb)
    assert cli.parse(verb, rest) is not None
    assert callable(cli._load(cli.VERBS[verb].function))
