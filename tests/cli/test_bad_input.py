"""A command line that cannot work ends in one line that says why and what to do; nothing changes."""

import io
import os
import sys

import pytest
from command_kit import LEARN

from wsa import cli
from wsa.encode.inference.cores import cores

# A command, then below it the message, whose lines are joined.
MESSAGES = f"""
colect
    there is no such verb. Did you mean 'collect'? 'wsa --help' lists them.
xyz
    there is no such verb. 'wsa --help' lists them.
train
    there is no such verb. Did you mean 'learn'? 'wsa --help' lists them.
collect --steps abc
    Error parsing --steps: 'abc' is not a whole number. 'wsa collect --help' lists the options.
collect --sticky abc
    Error parsing --sticky: 'abc' is not a number. 'wsa collect --help' lists the options.
collect --stepz 3
    Unrecognized options: --stepz, 3. Perhaps you meant --steps.
    'wsa collect --help' lists the options.
collect --protocol v6
    invalid choice 'v6' for argument '--protocol'. Expected one of ('classic', 'v5').
    'wsa collect --help' lists the options.
learn --models vit clip
    Unrecognized options: clip. Write a list with commas and no spaces.
    'wsa learn --help' lists the options.
learn --layer-norm False
    Unrecognized options: False. Turn an option on or off by its name: --FLAG or --no-FLAG.
    'wsa learn --help' lists the options.
learn --fusion own_fusion.Static
    --fusion own_fusion.Static: write module:Class. Did you mean own_fusion:Static?
encode --precision fp8
    invalid choice 'fp8' for argument '--precision'.
    Expected one of ('fp32', 'tf32', 'fp16', 'bf16'). 'wsa encode --help' lists the options.
eval
    RUN is missing: Folder of a run that 'wsa learn' made.
    'wsa eval --help' lists the options.
collect --game Seaquestt
    'Seaquestt' is not an ALE game. Did you mean Seaquest or LaserGates? Games are
    spelled like Seaquest, MsPacman, or SpaceInvaders; 'wsa list --games' shows all.
collect --steps 0
    --steps must be from 1 to 1000000000, not 0.
collect --sticky nan
    --sticky must be at least 0 and below 1, not nan.
collect --store ftp://lab/wsa
    Stores are kept in folders and in buckets, not on ftp://. Give a folder, such as
    /lab/wsa, or a bucket, such as s3://bucket/wsa, gs://bucket/wsa, or az://container/wsa.
encode --engine tvm
    invalid choice 'tvm' for argument '--engine'. Expected one of ('auto', 'torch',
    'compile', 'openvino'). 'wsa encode --help' lists the options.
encode --models vitt
    'vitt' is not a model (did you mean vit?); choose from vit, resnet, clip, dino,
    swin, lite0, lite1, lite2, ae, sr, oke, okk, vos, palette, objects, or give any timm model as
    timm:<name>, or your own as module:callable.
encode --models timm:resnt18
    timm has no architecture 'resnt18'. Near it: resnet18, resnet18d, skresnet18.
encode --models ,
    --models names no model; leave it out, or write --models vit,resnet,clip.
encode --output grid
    --output 'grid' is not an output; write pooled, cls, grid:7, or map. To reduce it,
    append +pca:512, +pca:512@Pong, or +rp:512, with at most 99999 numbers.
encode --weights vit
    --weights vit: write ALIAS=FILE, such as vit=path.safetensors.
encode --models palette --weights palette=w.pt
    --weights palette=w.pt: palette has no weights.
learn --models palette-000000000000
    The store has no model palette-000000000000. 'wsa models' lists its keys.
encode --weights vit=a.pt,vit=b.pt
    --weights gives vit twice: a.pt and b.pt. Give one.
encode --license mine=MIT,mine=BSD
    --license gives mine twice: MIT and BSD. Give one.
encode --workers -1
    --workers must be at least 0, not -1.
encode --scheduler inproc --workers 3
    --workers 3: --scheduler inproc works in this process alone. Leave out --workers, or choose
    --scheduler local.
encode --scheduler tcp://lab:8786 --workers 3 --dry-run
    --workers 3: --scheduler tcp://lab:8786 has workers of its own. Leave out --workers; start more
    workers with 'dask worker'.
bench --games Breakout --models palette --workers 3
    --workers 3: --scheduler inproc works in this process alone. Leave out --workers, or choose
    --scheduler local.
encode --slurm-cores 0
    --slurm-cores must be at least 1, not 0.
encode --slurm-memory lots
    --slurm-memory lots: write an amount, such as 16GB.
encode --slurm-queue gpu
    --slurm-queue is for SLURM; add --scheduler slurm.
encode --slurm-gpu
    --slurm-gpu is for SLURM; add --scheduler slurm.
encode --models lite0:random --weights lito=lite0.safetensors
    --weights lito=lite0.safetensors: none of the models uses it. Leave it out.
encode --models lite0:random --weights lite0=lite0.safetensors
    --weights lite0=lite0.safetensors: none of the models uses it. Leave it out.
encode --scheduler slrum --slurm-gpu
    --scheduler 'slrum' is not a scheduler; write local, inproc, slurm, or tcp://HOST:PORT.
encode --poll 1
    --poll is for a service; add --watch.
encode --beat 1
    --beat is for a service; add --watch.
encode --metrics-port 9464
    --metrics-port is for a service; add --watch.
encode --metrics-host 0.0.0.0
    --metrics-host is for a service; add --watch.
encode --watch --metrics-host 0.0.0.0
    --metrics-host has no effect alone; add --metrics-port.
encode --watch --metrics-port 70000
    --metrics-port must be from 0 to 65535, not 70000.
encode --watch --report x
    --watch never ends, so it writes no report; leave out --report, and use 'wsa status'.
encode --max-step-error nan
    --max-step-error must be at least 0, not nan.
encode --report s3://lab/rep
    Error parsing --report: s3://lab/rep is a URL, but only stores are kept in buckets;
    give a local path. 'wsa encode --help' lists the options.
learn --run-dir s3://lab/runs/b1
    Error parsing --run-dir: s3://lab/runs/b1 is a URL, but only stores are kept in buckets;
    give a local path. 'wsa learn --help' lists the options.
learn --exp-name ../../x
    Error parsing --exp-name: ../../x has a '/', but it becomes part of a folder's name.
    'wsa learn --help' lists the options.
learn --updates 0
    --updates must be at least 1, not 0.
learn --online --algo ppo --threads 0
    --threads must be at least 1, not 0.
learn --online --algo ppo --threads 9999
    --threads 9999 is more than the {cores()} cores that this process may use.
    Leave it out to use them all.
learn --seed -3
    --seed must be from 0 to 2147482647, not -3.
eval run --threads 0
    --threads must be at least 1, not 0.
eval run --seed -3
    --seed must be from 0 to 2147482647, not -3.
"""


def table(text):
    """Pairs of a command and its message."""
    pairs = []
    for line in text.strip().splitlines():
        if line.startswith(" "):
            command, message = pairs[-1]
            pairs[-1] = (command, f"{message} {line.strip()}".strip())
        else:
            pairs.append((line, ""))
    return pairs


@pytest.mark.parametrize(("command", "message"), table(MESSAGES))
def test_a_wrong_option_is_refused_with_its_message(filled, unchanged, command, message):
    with unchanged():
        code, out, err = filled(*command.split())
    printed = [line for line in err.splitlines() if not line.startswith("store ")]
    assert (code, out, printed) == (2, "", [f"wsa {command.split()[0]}: {message}"])


@pytest.mark.parametrize("command", [("learn", "--run-dir"), ("list", "--store"), ("eval",)])
def test_an_argument_that_is_not_utf_8_is_refused(filled, unchanged, command):
    with unchanged():
        outcome = filled(*command, os.fsdecode(b"r\xfcn"))
    assert outcome.code == 2 and outcome.error.endswith(
        r"'r\udcfcn' is not UTF-8, and wsa cannot write it down. Use another name."
    )


def test_a_message_that_was_wrapped_before_its_period_is_joined():
    assert cli._one_line("import", "invalid choice 'x'\n.\n").startswith("invalid choice 'x'. ")


MISSING = """
collect --policy ppo
    ppo is not the folder of a run: it has no config.json. Give a folder that 'wsa learn' made.
eval no
    no is not the folder of a run: it has no config.json. Give a folder that 'wsa learn' made.
eval store
    store is not the folder of a run: it has no config.json. Give a folder that 'wsa learn' made.
learn --resume no
    no is not the folder of a run: it has no config.json. Give a folder that 'wsa learn' made.
encode --game Pong
    The store ./store has no frames of Pong. Collect some: wsa collect --game Pong
learn --game Pong
    The store ./store has no frames of Pong. Collect some: wsa collect --game Pong
show Pong
    The store ./store has no frames of Pong. Collect some: wsa collect --game Pong
learn --game Breakout --models vit
    vit has not encoded every segment of Breakout in ./store.
    Run: wsa encode --game Breakout --models vit
"""


@pytest.mark.parametrize(("command", "message"), table(MISSING))
def test_what_is_missing_is_named_with_the_command_that_makes_it(
    filled, unchanged, command, message
):
    with unchanged():
        outcome = filled(*command.split())
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.error == f"wsa {command.split()[0]}: {message}"


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_run_keeps_its_only_model(filled, unchanged, key, dry):
    with unchanged():
        outcome = filled("eval", "run", "--episodes", 1, "--without", "nosuch", *dry)
        assert outcome.code == 2
        assert outcome.error == f"wsa eval: --without: {key} is the run's only model."
        outcome = filled("eval", "run", "--only", key, "--without", key, *dry)
        assert outcome.error == "wsa eval: Give --without or --only, not both."


def test_an_unknown_model_is_not_suggested_for_encoding(filled, unchanged):
    with unchanged():
        outcome = filled("learn", "--game", "Breakout", "--models", "nomodel")
    assert outcome.code == 2
    assert outcome.error.startswith("wsa learn: 'nomodel' is not a model; choose from vit, ")


def test_an_alias_is_shown_by_its_key(filled, unchanged, key):
    with unchanged():
        outcome = filled("show", key.rpartition("-")[0])
    assert outcome.code == 2 and outcome.error.endswith(f"is a model; write its key: {key}.")


def test_another_run_in_the_folder_is_kept(filled, unchanged):
    with unchanged():
        for options in ((), ("--dry-run",)):
            command = (*LEARN, "--updates", 2, "--seed", 9, "--save-frequency", 2, *options)
            outcome = filled(*command, "--run-dir", "run")
            assert outcome.code == 4
            assert outcome.error == (
                "wsa learn: run holds another run, started with --seed 1, not 9; --updates 3, not 2. "
                "Give another --run-dir, or continue that run as it was started: wsa learn --resume "
                "run"
            )
            assert "trained so far" not in outcome.err


class _Terminal(io.StringIO):
    """Output to a terminal, for which tyro draws boxes in color."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize("verb", cli.VERBS)
def test_an_error_is_one_plain_line_on_a_terminal_too(verb, monkeypatch):
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stdout", _Terminal())
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(io, "StringIO", _Terminal)  # In which `cli.parse` catches tyro's words.
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert cli.main([verb, "--nonsense"]) == 2
    (line,) = errors.getvalue().splitlines()
    assert line.startswith(f"wsa {verb}: ") and line.isprintable() and line.isascii()
