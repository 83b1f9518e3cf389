"""Help, version, examples, and what is imported to give them."""

import pkgutil
import re
import shlex
import subprocess
import sys

import pytest

from wsa import __version__, cli
from wsa.learn.configs.study import KINDS

COMMANDS = [*cli.VERBS, *(f"study {kind}" for kind in (*KINDS, "scale --during"))]
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
    assert all(
        out.count(f"\n  {name} ") == out.count(verb.what) == 1 for name, verb in cli.VERBS.items()
    )
    assert out.endswith("example:\n  wsa demo\n")


def test_without_arguments_help_is_shown_as_a_usage_error(wsa):
    assert wsa()[:2] == (2, wsa("-h").out)


def test_a_hyperparameter_can_be_switched_on_and_off_whatever_its_default(wsa):
    out = wsa("learn", "--online", "--algo", "ppo", "--help").out
    assert re.search(r"--anneal-lr, --no-anneal-lr\s[^(]*\(default:\s+True\)", out.replace("│", ""))
    run = ("--online", "--algo", "ppo", "--game", "Pong", "--rl-preset", "paper")
    for flag in ("recurrent", "anneal-lr"):
        for value, switch in ((True, f"--{flag}"), (False, f"--no-{flag}")):
            algorithm = cli.parse("learn", [*run, switch]).algorithm
            assert getattr(algorithm, flag.replace("-", "_")) is value


def test_version(wsa):
    assert wsa("--version") == wsa("-V") == (0, f"wsa {__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_ends_with_an_example_that_parses(wsa, command):
    code, out, err = wsa(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: wsa {command} ")
    *_, title, example = out.splitlines()
    assert (title, example[:6]) == ("example:", "  wsa ")
    verb, *rest = shlex.split(example)[1:]
    assert verb == command.split()[0]
    assert cli.parse(verb, rest) is not None
    assert callable(pkgutil.resolve_name(cli.VERBS[verb].function))


@pytest.mark.parametrize("command", COMMANDS)
def test_everyday_options_fit_on_one_screen(wsa, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("WSA_STORE", "/home/me/wsa")
    lines = wsa(*command.split(), "--help").out.splitlines()
    further = [i for i, line in enumerate(lines) if re.fullmatch(r" \S.* options *", line)]
    everyday = lines[: further[0] - 1] if further else lines  # Without the blank line.
    assert len(everyday) <= 24
    assert not re.search(r"default: (None|''|)\)|\{None\}", "\n".join(lines))


@pytest.mark.parametrize("verb", ["collect", "encode", "learn"])
def test_game_and_store_are_everyday_options(wsa, verb):
    everyday = re.split(r"^ \S.* options *$", wsa(verb, "--help").out, flags=re.MULTILINE)[0]
    assert " --game " in everyday and " --store " in everyday
