"""The command as a user meets it: `wsa(...)` runs it in this process, in an empty folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import command_kit
import pytest
from command_kit import COLLECT, ENCODE, LEARN, MODEL, OTHER_MODEL, Outcome, read_files, run_all

Wsa = Callable[..., Outcome]


@pytest.fixture
def wsa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wsa:
    """Run the command in an empty folder, which its output calls `.`; the store is `./store`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WSA_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("WSA_CACHE", str(tmp_path / "cache"))

    def command(*arguments: object) -> Outcome:
        code, out, err = command_kit.run(*arguments)
        return Outcome(code, out.replace(str(tmp_path), "."), err.replace(str(tmp_path), "."))

    return command


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of 200 steps of Breakout, encoded by a tiny model, and a run."""
    folder = tmp_path_factory.mktemp("template")
    run_all(folder, COLLECT, ENCODE, (*LEARN, "--updates", 3, "--run-dir", "run"))
    return folder


@pytest.fixture
def filled(template: Path, tmp_path: Path, wsa: Wsa) -> Wsa:
    """`wsa` in a folder that has the template's store and run."""
    # Files of a store are never written to; a test that damages one replaces it.
    shutil.copytree(template / "store", tmp_path / "store", copy_function=os.link)
    shutil.copytree(template / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace(str(template), str(tmp_path)))
    return wsa


@pytest.fixture
def key(template: Path) -> str:
    """The key of the template's model."""
    return next((template / "store" / "models").iterdir()).name


@pytest.fixture(scope="session")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of short episodes of Breakout, encoded by two tiny models."""
    collect = (*COLLECT[:3], "--steps", 64, "--num-envs", 2, "--segment-steps", 32,
               "--max-episode-steps", 12)  # fmt: skip
    encode = (*ENCODE[:2], f"{MODEL},{OTHER_MODEL}", *ENCODE[3:])
    folder = tmp_path_factory.mktemp("two")
    run_all(folder, collect, encode)
    return folder / "store"


@pytest.fixture
def ready(wsa: Wsa, two_models: Path, monkeypatch: pytest.MonkeyPatch) -> Wsa:
    """`wsa` on the store of two models, which a test must not change."""
    monkeypatch.setenv("WSA_STORE", str(two_models))
    return wsa


@pytest.fixture
def unchanged(tmp_path: Path) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with unchanged():` checks that no file below the test's folder changes."""

    @contextlib.contextmanager
    def watch() -> Iterator[None]:
        before = read_files(tmp_path)
        yield
        assert read_files(tmp_path) == before

    return watch
