"""`wsa models`, and `wsa models check`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from wsa import cli
from wsa.encode.jobs.dry_run import estimate, measure_model
from wsa.encode.models.registry import known_aliases, parse_request
from wsa.encode.registration import probe_frames
from wsa.store.backends.base import Backend
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

NETS = """
import torch
from wsa.encode.models.custom import Input, UserModel

class Draws(torch.nn.Module):
    def forward(self, pixels):
        return torch.rand(len(pixels), 8) + pixels.mean()

class Steady(torch.nn.Module):
    def forward(self, pixels):
        return pixels.mean(dim=3).flatten(1)

def draws():
    return UserModel(Draws(), Input(32, 32))

def steady():
    return UserModel(Steady(), Input(32, 32, channels="grey", interpolation="area"), licence="MIT")
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import sys

    (tmp_path / "cli_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("cli_nets", None)


def test_every_alias_is_listed_with_its_licence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "--json", "--store", str(tmp_path / "none")]) == 0
    listed = json.loads(capsys.readouterr().out)["aliases"]
    assert set(listed) == set(known_aliases()) and all(one["licence"] for one in listed.values())


@pytest.mark.slow
@pytest.mark.usefixtures("whole_strip")
def test_a_model_that_passes_and_one_that_does_not(
    nets: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "check", "cli_nets:steady"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 14 and all(line.startswith("ok ") for line in said)
    assert cli.main(["models", "check", "cli_nets:draws", "--json"]) == 4
    found = json.loads(capsys.readouterr().out)
    failed = [point["what"] for point in found["points"] if not point["ok"]]
    assert found["ok"] is False and "the same again" in failed


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["check"], 2, "wsa models check NAME"),
        (["check", "vitt"], 2, "did you mean vit?"),
        (["check", "no_such_module_of_mine:make"], 3, "cannot be imported by"),
        (["check", "timm:test_resnet:random", "--output", "cls"], 2, "has no class token"),
        (["check", "timm:test_resnet:random", "--output", "grid:9"], 2, "Ask for grid:5"),
        (["chekc", "vit"], 2, "chekc"),
    ],
)
def test_what_cannot_be_checked_is_said_in_a_line(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", *arguments]) == code
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_a_dry_run_tells_of_an_output_and_writes_nothing(
    tmp_path: Path, kit: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    kit.add_segment(store, height=64, width=48)
    command = ["encode", "--models", "timm:test_vit:random", "--dry-run", "--json"]
    command += ["--output", "grid:2+pca:2@Pong", "--geometry", "crop", "--store", store.url]
    command += ["--scheduler", "inproc"]
    assert cli.main(command) == 0
    (line,) = json.loads(capsys.readouterr().out)["models"].values()
    assert line["objects"] == 1 and line["passes"] > 0 and line["bytes"] > 0
    assert line["strip"] == line["passes"], "the basis is fitted on all frames of the game"
    assert not list((tmp_path / "store").glob("models/*"))


@pytest.mark.parametrize(
    ("output", "numbers", "fit"),
    [
        ("pooled", 64, 0),
        ("cls", 64, 0),
        ("map", 10 * 10 * 64, 0),
        ("grid:2+pca:8", 8, sum(len(part.frames) for part in probe_frames.load_frames())),
        ("grid:2+rp:8", 8, 0),
    ],
)
def test_an_estimate_is_made_of_every_output(
    output: str, numbers: int, fit: int, store: Backend, kit: ModuleType
) -> None:
    kit.add_segment(store, height=64, width=48)
    request = parse_request("timm:test_vit:random", {}, output, geometry="pad")
    asked = take_snapshot(store), request, ["Pong"]
    found = estimate(*asked, measure_model(*asked, "cpu", "torch")[0])
    (meta,) = take_snapshot(store).segments()
    assert found.bytes == 2 * numbers * meta.frames and found.strip == fit
    assert take_snapshot(store).models == []
