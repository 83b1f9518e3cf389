"""The command as a user meets it: `wsa(...)` runs it in this process, in an empty folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from wsa.cli import main

MODEL = "timm:test_resnet.r160_in1k:random"
ENCODE = ("--models", MODEL, "--output", "pooled", "--scheduler", "inproc")
# Episodes end soon, so that an evaluation does: a network that does not fire plays 27,000 steps.
COLLECT = (
    "--game", "Breakout", "--steps", "200", "--num-envs", "2", "--segment-steps", "64",
    "--max-episode-steps", "150",
)  # fmt: skip


class Outcome(NamedTuple):
    """What a command did; the test's own folder is written as `.` in what it said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line on standard error: what went wrong."""
        return self.err.rstrip("\n").rpartition("\n")[2]


Wsa = Callable[..., Outcome]


def run(*arguments: object) -> Outcome:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture
def wsa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wsa:
    """Run the command in an empty folder, whose store is `./store` unless `--store` says else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WSA_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("WSA_CACHE", str(tmp_path / "cache"))

    def command(*arguments: object) -> Outcome:
        code, out, err = run(*arguments)
        return Outcome(code, out.replace(str(tmp_path), "."), err.replace(str(tmp_path), "."))

    return command


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of 200 steps of Breakout, encoded by a tiny model, and a run."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WSA_STORE", str(folder / "store"))
        patch.setenv("WSA_CACHE", str(folder / "cache"))
        for command in (
            ("collect", *COLLECT),
            ("encode", *ENCODE),
            ("learn", "--game", "Breakout", "--updates", 3, "--run-dir", "run"),
        ):
            outcome = run(*command)
            assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def filled(template: Path, tmp_path: Path, wsa: Wsa) -> Wsa:
    """`wsa` in a folder that has the template's store and run."""
    # No file of a store is ever written to; a test that damages one
    # replaces it.
    shutil.copytree(template / "store", tmp_path / "store", copy_function=os.link)
    shutil.copytree(template / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace(str(template), str(tmp_path)))
    return wsa


@pytest.fixture(scope="session")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of short episodes of Breakout, encoded by two tiny models."""
    folder = tmp_path_factory.mktemp("two") / "store"
    models = "timm:test_resnet.r160_in1k:random,timm:test_vit.r160_in1k:random"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSA_STORE", str(folder))
        patch.setenv("WSA_CACHE", str(folder.parent / "cache"))
        for command in (
            ("collect", "--game", "Breakout", "--steps", 64, "--num-envs", 2, "--segment-steps", 32,
             "--max-episode-steps", 12),
            ("encode", "--models", models, "--output", "pooled", "--scheduler", "inproc"),
        ):  # fmt: skip
            outcome = run(*command)
            assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def key(template: Path) -> str:
    """The key of the template's model."""
    return next((template / "store" / "models").iterdir()).name


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with the SHA-256 of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def unchanged(tmp_path: Path) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with unchanged():` makes sure that no byte below the test's folder changes."""

    @contextlib.contextmanager
    def watch() -> Iterator[None]:
        before = tree(tmp_path)
        yield
        assert tree(tmp_path) == before

    return watch
