"""The `wsa` command in tests: its options as it parses them, one run of it, and what it printed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from wsa import cli

# An untrained network of 96 numbers: the cheapest model there is.
MODEL = "timm:test_resnet.r160_in1k:random"
ALIAS = "test_resnet_r160_in1k"
OTHER_MODEL, OTHER_ALIAS = "timm:test_vit.r160_in1k:random", "test_vit_r160_in1k"
ENCODE = ("encode", "--models", MODEL, "--output", "pooled", "--scheduler", "inproc")
# Episodes end soon, so that an evaluation does: a network that does not fire plays 27,000 steps.
COLLECT = (
    "collect", "--game", "Breakout", "--steps", "200", "--num-envs", "2", "--segment-steps", "64",
    "--max-episode-steps", "150",
)  # fmt: skip
LEARN = (
    "learn", "--game", "Breakout", "--batch-size", 4, "--fusion-size", 8, "--frame-stack", 1,
)  # fmt: skip


def options(verb: str, **flags: Any) -> Any:
    """The options of `wsa learn --online --algo ppo` are `options("learn", online=True, algo="ppo")`.

    Args:
        verb: A verb of the command.
        flags: Values of its flags; None stands for a flag that is not given.
    """
    arguments = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            word = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            arguments.append(f"--{flag}={word}")
    return cli.parse(verb, arguments)


class Outcome(NamedTuple):
    """The exit code of a command, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line on standard error, which says what went wrong."""
        return self.err.rstrip("\n").rpartition("\n")[2]

    @property
    def json(self) -> Any:
        """Standard output of a successful command, which must be one JSON document."""
        assert self.code == 0, self.err
        return read_json(self.out)


def _paint(height: float, paint: Callable[[Any], None]) -> str:
    """Stand in for `figures.draw`: paint a figure, but do not lay it out and write it."""
    from matplotlib.figure import Figure

    paint(Figure().add_subplot())
    return "<svg></svg>"


@contextlib.contextmanager
def blank_figures() -> Iterator[None]:
    """Leave figures and charts blank: each takes 0.1 CPU s or more, and a run's report has eight.

    The tests of reports and charts in `learn/` draw them.
    """
    from wsa.learn.report import figures
    from wsa.learn.training import charts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", _paint)
        patch.setattr(charts, "draw", lambda *lines, **options: b"")
        yield


def run(*arguments: object) -> Outcome:
    """Run the command in this process, with blank figures."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), blank_figures():
        code = cli.main([str(argument) for argument in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def run_all(
    folder: Path, *commands: tuple[object, ...], store: Path | None = None
) -> list[Outcome]:
    """Run commands that must succeed in a folder, whose store is `./store` if none is given."""
    outcomes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WSA_STORE", str(store or folder / "store"))
        patch.setenv("WSA_CACHE", str(folder / "cache"))
        for command in commands:
            outcomes.append(run(*command))
            assert outcomes[-1].code == 0, outcomes[-1].err
    return outcomes


def wait_until(happened: Callable[[], object], process: Any = None, pause_s: float = 0.02) -> None:
    """Wait for what another process does; pytest's timeout is the limit.

    Args:
        happened: Whether it is done.
        process: A `subprocess.Popen` that must not end before, if given.
        pause_s: Seconds between two questions.
    """
    while not happened():
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(pause_s)


def read_json(text: str) -> Any:
    """Parse a JSON document; NaN and infinity are refused, as they are no JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    return list(csv.DictReader(path.read_text().splitlines()))


def read_config(run_folder: Path) -> dict[str, Any]:
    """The `config.json` of a run."""
    config: dict[str, Any] = json.loads((run_folder / "config.json").read_text())
    return config


def read_files(folder: Path) -> dict[Path, bytes]:
    """The content of every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip_bit(path: Path) -> None:
    """Change one bit in the middle of a file; other hard links to it keep their content."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
