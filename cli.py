"""The `wsa` command: parse options, call one function, print its result, choose the exit code.

The table below answers `wsa --help` without importing anything heavy. Each command imports its
package when it runs. Results go to standard output, progress and log messages to standard error.

Exit codes: 0 done, 1 unexpected error, 2 usage, 3 not found, 4 conflict, 5 damage found,
6 storage unavailable, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pkgutil
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union

from wsa.store.common import memory, signals, streams
from wsa.store.common.errors import StorageError, Terminated, UsageError, WsaError, redact
from wsa.store.common.version import __version__

UNEXPECTED = 1
INTERRUPTED = 130
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
ANSWERS = ("-h", "--help", "-V", "--version")


class Verb(NamedTuple):
    """One verb of the command line.

    Attributes:
        what: What the verb does, for the help.
        example: A command line, for the help.
        options: `module:name` of a dataclass; or of a function from arguments to a dataclass
            instance, for a verb whose options depend on the command line. The dataclass may say in
            `VERB` and `EXAMPLE` what the help shows instead of the verb's name and example.
        function: `module:name` of the function that takes the options and returns the exit code.
    """

    what: str
    example: str
    options: str
    function: str


GROUPS = {
    "first steps": {
        "demo": Verb(
            "go through all steps on one game, in a few minutes",
            "wsa demo",
            "wsa.learn.configs.data:DemoOptions",
            "wsa.learn.commands.demo:demo",
        ),
        "doctor": Verb(
            "check that this machine is ready: libraries, device, weights, store",
            "wsa doctor",
            "wsa.learn.configs.data:DoctorOptions",
            "wsa.learn.commands.doctor:doctor",
        ),
        "init": Verb(
            "start a store, optionally shared by a group",
            "wsa init --store /lab/wsa --shared --group lab",
            "wsa.store.configs:InitOptions",
            "wsa.store.commands.init:init",
        ),
        "completion": Verb(
            "print a completion script for bash, zsh, or fish",
            "wsa completion bash",
            "wsa.store.configs:CompletionOptions",
            "wsa.cli:completion",
        ),
    },
    "play and encode": {
        "collect": Verb(
            "play a game and store its frames and steps",
            "wsa collect --game Seaquest --steps 100000 --num-envs 8 --policy random --seed 1",
            "wsa.learn.configs.data:CollectOptions",
            "wsa.learn.commands.collect:collect",
        ),
        "encode": Verb(
            "run each frozen model once on every new frame",
            "wsa encode --models vit,resnet,clip --game Seaquest",
            "wsa.encode.configs:EncodeOptions",
            "wsa.encode.commands.encode:encode",
        ),
        "status": Verb(
            "show encoding services and what is left to encode",
            "wsa status --store /lab/wsa",
            "wsa.encode.configs:StatusOptions",
            "wsa.encode.commands.status:status",
        ),
        "models": Verb(
            "list known models and those in a store, or check one",
            "wsa models --store /lab/wsa",
            "wsa.encode.configs:ModelsOptions",
            "wsa.encode.commands.models:models",
        ),
        "pretrain": Verb(
            "train the paper's own encoders on the frames of a store",
            "wsa pretrain --encoder ae,transporter --games Pong,Breakout --run-dir runs/encoders",
            "wsa.learn.configs.pretrain:PretrainOptions",
            "wsa.learn.commands.pretrain:pretrain_encoders",
        ),
        "probe": Verb(
            "measure how much of a game's state each model's embeddings hold",
            "wsa probe --game Pong --models sr,vos,lite0,lite0:random",
            "wsa.learn.configs.probe:ProbeOptions",
            "wsa.learn.commands.probe:probe_models",
        ),
    },
    "train and evaluate": {
        "learn": Verb(
            "train a fusion and a policy on cached or live embeddings",
            "wsa learn --game Seaquest --models lite0,lite1,lite2 --fusion wsa --algo cql",
            "wsa.learn.configs.learn:learn_options",
            "wsa.learn.commands.learn:learn",
        ),
        "eval": Verb(
            "play full games with a trained run and live embeddings",
            "wsa eval runs/Seaquest__wsa__1__1700000000 --episodes 10 --video",
            "wsa.learn.configs.learn:EvalOptions",
            "wsa.learn.commands.evaluate:evaluate",
        ),
        "bench": Verb(
            "train and compare a grid of games, fusions, models, and seeds",
            "wsa bench --games Pong,Breakout --seeds 1,2,3 --fusions wsa,mean,single --models-subsets "
            "lite0+lite1,lite0",
            "wsa.learn.configs.bench:bench_options",
            "wsa.learn.commands.bench:bench",
        ),
        "study": Verb(
            "run the paper's studies; write tables, and a page that you can mail",
            "wsa study scale runs/Seaquest__wsa__1__1700000000 --after cached --study-dir study",
            "wsa.learn.configs.study:study_options",
            "wsa.learn.commands.study:study",
        ),
    },
    "look at a store": {
        "list": Verb(
            "list the games in a store",
            "wsa list --store /lab/wsa",
            "wsa.learn.configs.data:ListOptions",
            "wsa.learn.commands.inspect:list_games",
        ),
        "show": Verb(
            "show everything recorded about a game, a segment, or a model",
            "wsa show Seaquest",
            "wsa.learn.configs.data:ShowOptions",
            "wsa.learn.commands.inspect:show",
        ),
        "du": Verb(
            "sum bytes, frames, and hours of compute by game, policy, model, or author",
            "wsa du --by author",
            "wsa.store.configs:DuOptions",
            "wsa.store.commands.upkeep:du",
        ),
    },
    "share and maintain a store": {
        "push": Verb(
            "copy to another store what it lacks",
            "wsa push s3://lab/wsa --game Seaquest --dry-run",
            "wsa.store.configs:ShareOptions",
            "wsa.store.commands.share:push",
        ),
        "pull": Verb(
            "copy from another store what this one lacks",
            "wsa pull s3://lab/wsa --game Seaquest --models vit --no-frames",
            "wsa.store.configs:ShareOptions",
            "wsa.store.commands.share:pull",
        ),
        "merge": Verb(
            "copy everything that this store lacks from another",
            "wsa merge /mnt/disk/wsa",
            "wsa.store.configs:MergeOptions",
            "wsa.store.commands.share:merge",
        ),
        "export": Verb(
            "write a game as plain Zarr arrays, for zarr, dask, and xarray",
            "wsa export breakout.zarr --game Breakout --models vit,resnet --frames",
            "wsa.learn.configs.data:ExportOptions",
            "wsa.learn.commands.import_export:export",
        ),
        "import": Verb(
            "import Minari datasets or plain arrays into the store",
            "wsa import minari atari/breakout/expert-v0 --game Breakout",
            "wsa.learn.configs.data:ImportOptions",
            "wsa.learn.commands.import_export:import_data",
        ),
        "verify": Verb(
            "read and check every committed byte of a store",
            "wsa verify --store /lab/wsa",
            "wsa.store.configs:VerifyOptions",
            "wsa.store.commands.upkeep:verify",
        ),
        "sweep": Verb(
            "remove files that dead writers left behind",
            "wsa sweep --grace-hours 48",
            "wsa.store.configs:SweepOptions",
            "wsa.store.commands.upkeep:sweep",
        ),
    },
}
VERBS = {name: verb for verbs in GROUPS.values() for name, verb in verbs.items()}


# What people type for some verbs because other tools call them so.
OTHER_NAMES = {"embed": "encode", "ls": "list", "play": "eval", "test": "eval", "train": "learn"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        return 0  # A spawned worker imports the calling script; it must not run the command again.
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # One thread per process: torch would otherwise use all cores, and work is already parallel over
    # worker processes and models. Two threads make updates 1.2 times faster on two idle cores, but
    # ten times slower on busy ones, where the threads wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # If a user asks for more threads, waiting ones yield their cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    with streams.lasting():
        return _execute(verb, rest)


def _execute(verb: str, rest: list[str]) -> int:
    """Run the command, and turn an error into one line and an exit code."""
    try:
        with _stoppable():
            _check_current_folder()
            _check_encoding(rest)
            code = _print_info(verb) if verb in ("", *ANSWERS) else _run(verb, rest)
            sys.stdout.flush()  # Flush here, where a full disk is still reported.
        return code
    except WsaError as error:
        return _fail(verb, str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        how = "terminated" if isinstance(stop, Terminated) else "interrupted"
        command = f"'{stop}'" if stop.args else "the same command"
        why = f"{how}. Nothing committed is lost; {command} continues."
        return _fail(verb, why, getattr(stop, "exit_code", INTERRUPTED))
    except (MemoryError, RuntimeError) as error:
        if not memory.ran_out(error):
            raise
        known = memory.too_little(error, "Ask for less at once, or use a machine with more memory.")
        return _fail(verb, str(known), known.exit_code)
    except SystemExit as stop:  # A library ended the process: the work is not done.
        why = f"something called sys.exit({stop.code!r}) before the command was done."
        return _fail(verb, why, UNEXPECTED)
    except OSError as error:  # A file outside the store: of a run, a cache, or a video.
        where = f"{error.filename}: " if error.filename else ""
        why = f"{where}{error.strerror or error}. Fix it and run the same command again."
        return _fail(verb, why, StorageError.exit_code)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the block, even where they surface as another error.

    A library that is interrupted while it is imported may fail with any exception.
    """
    asked: list[KeyboardInterrupt] = []

    def stop(error: KeyboardInterrupt) -> None:
        asked.append(error)
        raise error

    try:
        with signals.handled_by(stop):
            yield
    except Exception:
        if asked:
            raise asked[-1] from None
        raise


def _check_current_folder() -> None:
    """Check that the current folder exists; some libraries exit the process on import without it.

    Raises:
        UsageError: If the folder was removed.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the current folder was removed. Change to another one with cd.") from None


def _check_encoding(arguments: Sequence[str]) -> None:
    """Check that arguments are UTF-8, as everything that wsa writes them into is.

    Raises:
        UsageError: If one is not.
    """
    for word in arguments:
        try:
            word.encode()
        except UnicodeEncodeError:
            why = f"{word!a} is not UTF-8, and wsa cannot write it down. Use another name."
            raise UsageError(why) from None


def _print_info(flag: str) -> int:
    """Answer a command line without a verb: the version or the overview."""
    print(f"wsa {__version__}" if flag in ("-V", "--version") else _overview())
    return 0 if flag else UsageError.exit_code


def _fail(verb: str, why: str, code: int) -> int:
    print(redact(f"wsa {verb}: {why}"), file=sys.stderr)
    return code


def _overview() -> str:
    lines = "\n".join(
        f"{group}:\n" + "".join(f"  {name:<10} {verb.what}\n" for name, verb in verbs.items())
        for group, verbs in GROUPS.items()
    )
    return (
        "usage: wsa VERB [OPTIONS]\n\n"
        "Run each frozen vision model once per distinct frame, share the embeddings, and train\n"
        f"Weight Sharing Attention on them.\n\n{lines}\n"
        "The store is --store PATH|URL, WSA_STORE, or a folder in your data directory.\n"
        "wsa VERB --help shows a verb's options.\n\n"
        "example:\n  wsa demo"
    )


def _unknown_verb(verb: str) -> str:
    import difflib

    close = OTHER_NAMES.get(verb) or "".join(difflib.get_close_matches(verb, VERBS, n=1))
    hint = f"Did you mean '{close}'? " if close else ""
    return f"there is no such verb. {hint}'wsa --help' lists them."


def _run(name: str, arguments: list[str]) -> int:
    """Parse a verb's options and call its function, or print its help."""
    if name not in VERBS:
        raise UsageError(_unknown_verb(name))
    options = parse(name, arguments)
    if options is None:
        return 0
    from wsa.store.common import terminal

    with terminal.show_log():
        code: int = pkgutil.resolve_name(VERBS[name].function)(options)
    return code


def parse(name: str, arguments: list[str]) -> Any:
    """Parse a verb's options; print the help and an example, and return None, if it is asked for.

    Raises:
        UsageError: If the options cannot be parsed.
    """
    import tyro

    verb = VERBS[name]
    errors = io.StringIO()
    kind = pkgutil.resolve_name(verb.options)
    defaults: dict[str, Any] = {}
    if not isinstance(kind, type):
        default = kind(arguments)
        kind, defaults = type(default), {"default": default}
    name = getattr(kind, "VERB", name)
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind,
                **defaults,
                prog=f"wsa {name}",
                description=verb.what[0].upper() + verb.what[1:] + ".",
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if stop.code:
            raise UsageError(_one_line(name, errors.getvalue())) from None
        print(f"\nexample:\n  {getattr(kind, 'EXAMPLE', verb.example)}")
        return None


def completion(o: Any) -> int:
    """`wsa completion`: print tyro's completion script for all verbs."""
    import tyro

    verbs = []
    for name, verb in VERBS.items():
        kind = pkgutil.resolve_name(verb.options)
        defaults = {} if isinstance(kind, type) else {"default": kind([])}
        kind = type(defaults["default"]) if defaults else kind
        described = tyro.conf.subcommand(name, description=verb.what, prefix_name=False, **defaults)
        verbs.append(Annotated[kind, described])
    kinds: Any = Union[tuple(verbs)]  # noqa: UP007  The members are known only at run time.
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.cli(
            kinds,
            prog="wsa",
            args=["--tyro-write-completion", o.shell, "-"],
            config=(tyro.conf.OmitArgPrefixes,),
        )
    for line in script.getvalue().splitlines():
        # Without this, Bash and zsh offer the text after a line break in a description as a
        # completion.
        print(re.sub(r"\\+n", " ", line) if "COMPLETION_SPEC = {" in line else line)
    return 0


def _one_line(name: str, box: str) -> str:
    """Reduce tyro's boxed error message to one line."""
    # On a capable terminal, the box has line-drawing characters, colors, and a title.
    box = re.sub("[╭╮╰╯│]", "", _COLOR.sub("", box)).replace("─", "-")
    box = re.sub(r"^ *- .* -{3,} *$", "---", box, flags=re.MULTILINE)
    parts = [" ".join(part.split()) for part in re.split(r"^ *-{3,} *$", box, flags=re.MULTILINE)]
    message = parts[1] if len(parts) > 1 else parts[0]
    if refused := re.match(r"Error parsing [-\w .]+: (--.*)", message):
        return refused[1]  # wsa's own message: the option, what it must be, and what it is.
    message = re.sub(r"invalid literal for int\(\).*?: (.*)", r"\1 is not a whole number", message)
    message = re.sub(
        r"no type matching .* from \[(.*?)\]\. Got errors.*", r"\1 is not a number", message
    )
    message = re.sub(r"could not convert string to float: (.*)", r"\1 is not a number", message)
    message = re.sub(
        r"Missing from [\w -]+: (\S+) (.*?)\.? \(required\)", r"\1 is missing: \2", message
    )
    flags = [flag for p in parts if p.startswith("Perhaps") for flag in re.findall(r" --[\w-]+", p)]
    hint = f" Perhaps you meant{flags[0]}." if flags else ""
    if re.match(r"Unrecognized options: (True|False)\b", message):
        hint = " Turn an option on or off by its name: --FLAG or --no-FLAG."
    elif re.match("Unrecognized options: [^-]", message):
        hint = " Write a list with commas and no spaces."
    return f"{message.rstrip('. ')}.{hint} 'wsa {name} --help' lists the options."


if __name__ == "__main__":
    sys.exit(main())
